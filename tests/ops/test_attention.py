"""`mrlib.ops.attention` against its definition, with the mask of the dropout written out."""

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F

from mrlib.ops import attention as module
from mrlib.ops.attention import attend
from mrlib.ops.dropout import dropout
from tests.support.memory import costs

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
P = 0.3


def inputs(B=2, L=5, S=7, heads=2, e=3, f=4, dtype=torch.float64):
    """q, k, v and the gradient of the output."""
    g = torch.Generator().manual_seed(L * 1000 + S)
    shapes = ((B, L, heads * e), (B, S, heads * e), (B, S, heads * f), (B, L, heads * f))
    q, k, v, dy = (torch.randn(shape, generator=g, dtype=dtype) for shape in shapes)
    return [x.requires_grad_() for x in (q, k, v)], dy


def by_definition(q, k, v, heads, key_mask, p, visible, seed):
    """Head by head and row by row over the visible keys; the mask is the dropout of ones (B, heads, L, S)."""
    (B, L, _), S = q.shape, k.shape[1]
    torch.manual_seed(seed)
    kept = dropout(torch.ones(B, heads, L, S, dtype=q.dtype), p) if p else torch.ones(B, heads, L, S, dtype=q.dtype)
    q, k, v = (x.unflatten(2, (heads, -1)) for x in (q, k, v))  # (B, L or S, heads, e or f)
    out = []
    for b in range(B):
        real = torch.ones(S, dtype=torch.bool) if key_mask is None or not key_mask[b].any() else key_mask[b]
        for h in range(heads):
            scores = q[b, :, h] @ k[b, :, h].T / math.sqrt(q.shape[-1])  # (L, S)
            seen = real.expand(L, S) if visible is None else real & visible[b, h]
            equal = ~seen.any(1, keepdim=True)  # rows that see no key
            scores = torch.where(seen, scores, -torch.inf).masked_fill(equal, 0.0)
            out.append((scores.softmax(-1) * kept[b, h]) @ v[b, :, h])
    return torch.stack(out).unflatten(0, (B, heads)).transpose(1, 2).flatten(2)


def check(arguments, dy, heads, key_mask=None, p=P, visible=None, seed=3, **tolerance):
    """Values and gradients of `attend` with the dropout of a seed equal those of the definition."""
    torch.manual_seed(seed)
    y = attend(*arguments, heads, key_mask, p, visible)
    expected = by_definition(*arguments, heads, key_mask, p, visible, seed)
    torch.testing.assert_close(y, expected, **tolerance)
    for ours, reference in zip(*(torch.autograd.grad(out, arguments, dy) for out in (y, expected)), strict=True):
        torch.testing.assert_close(ours, reference, **tolerance)


@pytest.fixture(params=["stored", "blocks of 1", "blocks of 9", "blocks of 40", "one block"])
def blocks(request, monkeypatch):
    """Weights are stored, or computed in blocks of at most so many; a head of 5 x 7 has 35."""
    if request.param != "stored":
        monkeypatch.setattr(module, "_FEW", 0)
        size = request.param.split()[-1]
        monkeypatch.setattr(module, "_BLOCK", int(size) if size.isdigit() else 1 << 18)


RAGGED = torch.arange(7) < torch.tensor([[4], [7]])


@needs_numba
@pytest.mark.parametrize("key_mask", [None, RAGGED, RAGGED & torch.tensor([[True], [False]])])
@pytest.mark.parametrize("see", [False, True])
def test_values_and_gradients_follow_from_the_definition(key_mask, see, blocks):
    """Ragged keys, a sample without any, and keys hidden from single rows, of which one sees none."""
    arguments, dy = inputs()
    visible = torch.rand(2, 2, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.6 if see else None
    if see:
        visible[0, 1, 2] = False
        dy[0, 2] = 0  # nobody reads such a row, and its gradient is not defined
    check(arguments, dy, 2, key_mask, P, visible)


@needs_numba
@pytest.mark.parametrize("L", [1, 127, 128, 129, 130])
@pytest.mark.parametrize("S", [1, 128, 129, 300])
def test_it_makes_no_difference_where_blocks_begin(L, S, monkeypatch):
    """Around the size from which weights are not stored, with blocks of 10 rows."""
    monkeypatch.setattr(module, "_BLOCK", 10 * S)
    arguments, dy = inputs(1, L, S)
    check(arguments, dy, 2, torch.arange(S)[None] < max(1, S - 2))


@needs_numba
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_blocks_of_whole_heads_and_of_rows_meet(over, monkeypatch):
    """A block holds two heads less or more one weight."""
    monkeypatch.setattr(module, "_BLOCK", 2 * 130 * 131 + over)
    arguments, dy = inputs(3, 130, 131, 1)
    check(arguments, dy, 1)


@needs_numba
def test_float32_equals_float64():
    arguments, dy = inputs(2, 200, 210, 4, 32, 32, torch.float32)
    key_mask = torch.arange(210) < torch.tensor([[210], [150]])
    results = []
    for dtype in (torch.float32, torch.float64):
        cast = [x.detach().to(dtype).requires_grad_() for x in arguments]
        torch.manual_seed(3)
        y = attend(*cast, 4, key_mask, P)
        results.append([y, *torch.autograd.grad(y, cast, dy.to(dtype))])
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5 * double.abs().max().item())


@needs_numba
def test_gradients_equal_finite_differences(monkeypatch):
    monkeypatch.setattr(module, "_FEW", 0)
    monkeypatch.setattr(module, "_BLOCK", 20)
    arguments, _ = inputs()

    def function(*x):
        torch.manual_seed(1)
        return attend(*x, 2, RAGGED, P)

    assert torch.autograd.gradcheck(function, arguments)


@needs_numba
def test_a_second_derivative_raises_an_error(monkeypatch):
    monkeypatch.setattr(module, "_FEW", 0)
    arguments, dy = inputs()
    with pytest.raises(RuntimeError, match="no second derivative: set the dropout to 0"):
        torch.autograd.grad(attend(*arguments, 2, None, P), arguments, dy, create_graph=True)


@needs_numba
def test_equal_seeds_give_equal_bytes_and_different_seeds_other_masks():
    arguments, dy = inputs(2, 150, 140, dtype=torch.float32)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        y = attend(*arguments, 2, None, P)
        results.append([y, *torch.autograd.grad(y, arguments, dy)])
    assert all(map(torch.equal, results[0], results[1]))
    assert not results[0][0].equal(results[2][0])


def dropped(L, S, p, heads=1):
    """Which weights (heads, L, S) are dropped: queries and keys are 0, values the unit vectors, so weights are 1/S."""
    q, k = torch.zeros(1, L, heads), torch.zeros(1, S, heads)
    v = torch.eye(S)[:, None].expand(S, heads, S).reshape(1, S, heads * S)
    y = attend(q, k, v, heads, None, p).view(L, heads, S) * S * (1 - p)
    assert ((y.abs() < 1e-5) | ((y - 1).abs() < 1e-5)).all()
    return (y < 0.5).transpose(0, 1)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_p_of_the_weights_is_dropped_and_the_rest_scaled(p):
    """Of a quarter of a million; five standard deviations."""
    torch.manual_seed(0)
    share = dropped(500, 500, p).double().mean()
    assert abs(share - p) < 5 * (p * (1 - p) / 250_000) ** 0.5


def test_masks_of_two_layers_of_two_heads_and_of_neighbouring_rows_are_uncorrelated():
    torch.manual_seed(0)
    first, second = (dropped(400, 400, 0.5, heads=2).double() - 0.5 for _ in range(2))
    for a, b in (
        (first, second),
        (first[0], first[1]),
        (first[:, 1:], first[:, :-1]),
        (first[..., 1:], first[..., :-1]),
    ):
        assert abs((a * b).mean()) < 0.25 * 5 / a.numel() ** 0.5


@needs_numba
def test_results_do_not_depend_on_the_number_of_threads_but_for_rounding():
    arguments, dy = inputs(2, 300, 300, 2, 16, 16, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            y = attend(*arguments, 2, None, P)
            results.append([y, *torch.autograd.grad(y, arguments, dy)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            torch.testing.assert_close(a, b)


def test_half_precision_and_autocast_are_left_to_torch():
    arguments, _ = inputs(1, 150, 150, dtype=torch.bfloat16)
    assert attend(*arguments, 2, None, P).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(*(x.float() for x in arguments), 2, None, P).isfinite().all()


def test_visible_counts_without_a_mask_of_the_keys():
    (q, k, v), _ = inputs()
    visible = torch.rand(2, 2, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.6
    visible[..., 0] = True
    everything = torch.ones(2, 7, dtype=torch.bool)
    assert attend(q, k, v, 2, None, 0.0, visible).equal(attend(q, k, v, 2, everything, 0.0, visible))


def test_no_weights_are_kept_and_none_are_written_as_a_whole():
    """Of 3,000 clips the weights of one head are 34 MiB, and of all heads 275 MiB."""
    setup = """
import torch
from mrlib.ops.attention import attend
torch.set_num_threads(1)
def run(T, p):
    x = torch.randn(1, T, 64, requires_grad=True)
    attend(x, x, x, 8, torch.ones(1, T, dtype=torch.bool), p).sum().backward()
run(200, 0.1), run(200, 0.0)
"""
    with_dropout, without = costs(setup, ["run(3000, 0.1)", "run(3000, 0.0)"])
    assert (with_dropout.said, without.said) == ("done", "done")
    assert with_dropout.size < 64 * 2**20 and without.size < 64 * 2**20


def test_attention_without_dropout_equals_torchs():
    arguments, dy = inputs(2, 140, 150)
    key_mask = torch.arange(150) < torch.tensor([[150], [20]])
    check(arguments, dy, 2, key_mask, 0.0)
    q, k, v = (x.unflatten(2, (2, -1)).transpose(1, 2) for x in arguments)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask[:, None, None])
    torch.testing.assert_close(attend(*arguments, 2, key_mask, 0.0), expected.transpose(1, 2).flatten(2))
