"""What the kernels promise beside their values, which are in test_neighbours: they add, and threads change nothing."""

import numpy as np
import pytest

pytest.importorskip("numba")
from mrlib.ops import neighbours_cpu

MASK = np.arange(7) < np.array([[7], [3], [0]])


def arrays(*shapes):
    g = np.random.default_rng(0)
    return [g.standard_normal(shape) for shape in shapes]


def gradients(initial, dtype=np.float64):
    """The gradients of both operations, added to arrays of this number."""
    x, taps, *grads = (a.astype(dtype) for a in arrays((3, 7, 4), (2, 3, 4), (3, 4, 4), (3, 4, 4)))
    q, k, v, dout, out = (a.astype(dtype) for a in arrays(*[(3, 7, 4)] * 5))
    share = np.empty((3, 7, 2, 5), dtype)
    neighbours_cpu.attend(q, k, v, MASK, share, out)
    dx, dq, dk, dv = (np.full_like(x, initial) for _ in range(4))
    dtaps = np.full((3, *taps.shape), initial, dtype)
    neighbours_cpu.convolve_gradient(x, MASK, taps, tuple(grads), dx, dtaps, 2)
    neighbours_cpu.attend_gradient(q, k, v, MASK, share, dout, dq, dk, dv)
    return out, share, dx, dtaps, dq, dk, dv


def test_gradients_are_added():
    for zero, one in list(zip(gradients(0.0), gradients(1.0), strict=True))[2:]:
        np.testing.assert_allclose(one, zero + 1, rtol=1e-12)


def test_shares_of_a_window_sum_to_one_and_padding_has_none():
    _, share, *_ = gradients(0.0)
    np.testing.assert_allclose(share.sum(-1), 1)
    assert not share[1, 2, :, 3:].any()  # places 3 and 4 of the second sample


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_threads_gives_the_same_bytes(dtype, monkeypatch):
    results = []
    for threads in (1, 2, 3, 5):
        monkeypatch.setattr(neighbours_cpu, "threads_for", lambda numbers, threads=threads: threads)
        results.append([a.tobytes() for a in gradients(0.0, dtype)])
    assert all(each == results[0] for each in results)
