"""`mrlib.ops.boundary_search` against the sums of the paper, computed in loops."""

import pytest
import torch

from mrlib.ops.boundary_search import anchor, boundaries, query_embedded, transitions
from tests.support.batches import make_batch


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def by_hand(v, q, right="literal"):
    """[A2FA Eq. 1] to [A2FA Eq. 4] for v (n, J) and q (J,): A and lists of f_L on 0..A and f_R on A..n-1."""
    n = len(v)
    v, q = [x / x.norm() for x in v.double()], q.double() / q.double().norm()
    c = [float(q @ x) for x in v]
    e = [ci * q + (1 - ci) * x for ci, x in zip(c, v, strict=True)]  # [A2FA Eq. 1]
    A = max(range(n), key=lambda i: cosine(e[i], q))  # [A2FA Eq. 2]
    u, w, z = ([cosine(e[k], e[i]) for i in range(n)] for k in (0, A, n - 1))
    f_left = [sum(u[1 : b + 1]) + sum(w[b + 1 : A + 1]) for b in range(A + 1)]  # [A2FA Eq. 3]
    if right == "literal":
        f_right = [sum(w[A : b + 1]) + sum(z[b + 1 : n]) for b in range(A, n)]  # [A2FA Eq. 4]
    else:
        f_right = [sum(w[A:b]) + sum(z[b : n - 1]) for b in range(A, n)]
    return A, f_left, f_right


def random_video(n, case, generator):
    """n clips and a query; the most query-like clip is any, the first or the last."""
    v, q = torch.randn(n, 6, generator=generator), torch.randn(6, generator=generator)
    v = v + v.roll(1, 0) + torch.randn(6, generator=generator)  # neighbours are alike
    if case == "first":
        v[0] = q + 0.1 * v[0]
    if case == "last":
        v[-1] = q + 0.1 * v[-1]
    return v, q


@pytest.mark.parametrize("right", ["literal", "mirror"])
@pytest.mark.parametrize("case", ["any", "first", "last"])
def test_the_ends_maximise_the_sums_of_the_paper(right, case):
    """[A2FA Eq. 3] to [A2FA Eq. 5] for 60 ragged videos of at most 14 clips in one batch, garbage on the padding."""
    generator = torch.Generator().manual_seed(len(right) + len(case))
    lengths = [1 + i % 14 for i in range(60)]
    videos = [random_video(n, case, generator) for n in lengths]
    target, mask = torch.randn(60, 16, 6, generator=generator), torch.zeros(60, 16, dtype=torch.bool)
    for b, (v, _) in enumerate(videos):
        target[b, : len(v)], mask[b, : len(v)] = v, True
    query = torch.stack([q for _, q in videos])
    segments = boundaries(target, mask, query, right=right)
    _, curve_left, curve_right = transitions(target, mask, query)
    assert all(t.dtype == torch.int64 and t.shape == (60,) for t in segments)
    for b, (v, q) in enumerate(videos):
        A, f_left, f_right = by_hand(v, q, right)
        a, left, right_end = (int(t[b]) for t in segments)
        assert a == A and 0 <= left <= A <= right_end < len(v)
        assert f_left[left] == max(f_left) and f_right[right_end - A] == max(f_right)
        if case == "first":
            assert A == left == 0
        if case == "last":
            assert A == right_end == len(v) - 1
        shifted = torch.tensor(f_left, dtype=torch.float64)
        torch.testing.assert_close(curve_left[b, : A + 1] - curve_left[b, 0], shifted - shifted[0])
        if right == "literal":
            shifted = torch.tensor(f_right, dtype=torch.float64)
            torch.testing.assert_close(curve_right[b, A : len(v)] - curve_right[b, A], shifted - shifted[0])


def test_the_anchor_is_the_most_query_like_query_embedded_clip():
    """[A2FA Eq. 1] and [A2FA Eq. 2] as printed."""
    batch = make_batch([9, 4, 14], dtype=torch.float64)
    embedded = query_embedded(batch.target_joint, batch.query_joint)
    cosines = torch.cosine_similarity(embedded, batch.query_joint[:, None], dim=-1)
    expected = cosines.masked_fill(~batch.target_mask, -2).argmax(1)
    assert torch.equal(anchor(batch.target_joint, batch.target_mask, batch.query_joint), expected)


def test_query_embedding_by_hand():
    """v at 60 degrees from q, [A2FA Eq. 1]: half of each."""
    q, v = torch.tensor([[2.0, 0.0]]), torch.tensor([[[3 * 0.5, 3 * 0.75**0.5]]])
    torch.testing.assert_close(query_embedded(v, q), torch.tensor([[[0.75, 0.5 * 0.75**0.5]]]))


def test_the_segment_of_query_like_clips_is_found():
    """Clips 3..6 resemble the query; 2 resembles the first, but is inside by [A2FA Eq. 5]; 7 resembles the last."""
    before, moment, after = torch.eye(3)
    v = torch.stack([before] * 3 + [moment] * 4 + [after] * 3)
    segment = boundaries(v[None], torch.ones(1, 10, dtype=torch.bool), moment[None])
    assert [int(x) for x in segment] == [3, 2, 6]
    segment = boundaries(v[None], torch.ones(1, 10, dtype=torch.bool), moment[None], right="mirror")
    assert [int(x) for x in segment] == [3, 2, 7]


@pytest.mark.parametrize("right", ["literal", "mirror"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_static_video_is_one_segment(right, dtype):
    """All clips are equal: the first is the anchor and the segment is the whole video, whatever the rounding."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(3, 1, 130, generator=generator).to(dtype).expand(3, 37, 130)
    mask = torch.arange(37) < torch.tensor([37, 20, 1])[:, None]
    a, left, right_end = boundaries(v, mask, torch.randn(3, 130, generator=generator).to(dtype), right=right)
    assert a.tolist() == left.tolist() == [0, 0, 0]
    assert right_end.tolist() == [36, 19, 0]


def test_clips_of_one_direction_and_several_norms_are_one_segment():
    generator = torch.Generator().manual_seed(0)
    v = (
        torch.randn(8, 1, 50, generator=generator, dtype=torch.float64)
        * torch.rand(8, 40, 1, generator=generator).double()
    )
    q = torch.randn(8, 50, generator=generator, dtype=torch.float64)
    a, left, right = boundaries(v, torch.ones(8, 40, dtype=torch.bool), q)
    assert a.tolist() == left.tolist() == [0] * 8 and right.tolist() == [39] * 8


def test_the_first_of_equally_query_like_clips_is_the_anchor():
    generator = torch.Generator().manual_seed(0)
    v, q = torch.randn(1, 67, 130, generator=generator), torch.randn(1, 130, generator=generator)
    v[0, [5, 31, 66]] = q
    assert int(anchor(v, torch.ones(1, 67, dtype=torch.bool), q)) == 5


def test_the_mirrored_right_end_is_the_left_end_of_the_reversed_video():
    batch = make_batch([14] * 20, dtype=torch.float64)
    v, mask, q = batch.target_joint, batch.target_mask, batch.query_joint
    a, left, _ = boundaries(v, mask, q, right="mirror")
    a_back, _, right_back = boundaries(v.flip(1), mask, q, right="mirror")
    assert torch.equal(a_back, 13 - a) and torch.equal(right_back, 13 - left)


def test_ten_thousand_clips_in_float32_are_accurate():
    """The sums at the predicted ends equal the largest sums of an independent float64 evaluation."""
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(10_000, 8, generator=generator).cumsum(0) * 0.1 + torch.randn(10_000, 8, generator=generator)
    q = torch.randn(8, generator=generator)
    a, left, right = (int(x) for x in boundaries(v[None], torch.ones(1, 10_000, dtype=torch.bool), q[None]))
    e = query_embedded(v[None].double(), q[None].double())[0]
    e = e / e.norm(dim=-1, keepdim=True)
    u, w, z = e @ e[0], e @ e[a], e @ e[-1]
    f_left = (u - w)[: a + 1].cumsum(0)
    f_right = (w - z)[a:].cumsum(0)
    assert f_left[left] >= f_left.max() - 1e-6 and f_right[right - a] >= f_right.max() - 1e-6


def test_clips_that_are_0_give_indices_and_no_nan():
    batch = make_batch([6, 1])
    v = batch.target_joint * 0
    a, left, right = boundaries(v, batch.target_mask, batch.query_joint)
    assert a.tolist() == left.tolist() == [0, 0] and right.tolist() == [5, 0]
    assert all(t.isfinite().all() for t in transitions(v, batch.target_mask, batch.query_joint))


def test_the_sums_have_no_gradient():
    batch = make_batch([6])
    _, left, right = transitions(batch.target_joint.requires_grad_(), batch.target_mask, batch.query_joint)
    assert not left.requires_grad and not right.requires_grad


def test_an_unknown_right_end_raises_an_error():
    batch = make_batch([3])
    with pytest.raises(ValueError, match="'literal' or 'mirror'"):
        boundaries(batch.target_joint, batch.target_mask, batch.query_joint, right="left")
