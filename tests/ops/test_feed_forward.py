"""`mrlib.ops.feed_forward` against its layers one after another, with the same mask."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("numba")
from mrlib.layers import FeedForward
from mrlib.ops import feed_forward as module
from mrlib.ops.dropout import dropout
from mrlib.ops.feed_forward import feed_forward, saves_memory
from tests.support.memory import costs

ACTIVATIONS = {"relu": lambda h, _: h.relu(), "gelu": lambda h, _: F.gelu(h), "prelu": F.prelu}


def inputs(n=23, activation="prelu", dtype=torch.float64):
    """x (n, 5), weights and biases of layers 5 -> 7 -> 3, the slope, the gradient of the output."""
    g = torch.Generator().manual_seed(0)
    shapes = (n, 5), (7, 5), (7,), (3, 7), (3,)
    arguments = [torch.randn(shape, generator=g, dtype=dtype).requires_grad_() for shape in shapes]
    slope = torch.full((1,), 0.25, dtype=dtype).requires_grad_() if activation == "prelu" else None
    return arguments, slope, torch.randn(n, 3, generator=g, dtype=dtype)


@pytest.mark.parametrize("rows", [1, 10, 22, 23, 24])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_values_and_gradients_are_those_of_the_layers_one_after_another(rows, activation, p, monkeypatch):
    """In blocks of as many rows, with the dropout of the same seed."""
    monkeypatch.setattr(module, "_ROWS", rows)
    (x, w1, b1, w2, b2), slope, dy = inputs(activation=activation)
    learned = [t for t in (x, w1, b1, w2, b2, slope) if t is not None]
    torch.manual_seed(3)
    y = feed_forward(x, w1, b1, w2, b2, activation, slope, p)
    torch.manual_seed(3)
    expected = F.linear(dropout(ACTIVATIONS[activation](F.linear(x, w1, b1), slope), p), w2, b2)
    torch.testing.assert_close(y, expected)
    for ours, reference in zip(*(torch.autograd.grad(out, learned, dy) for out in (y, expected)), strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_equal_finite_differences(activation, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 4)
    arguments, slope, _ = inputs(9, activation)

    def function(*x):
        torch.manual_seed(1)
        return feed_forward(*x[:5], activation, x[5] if len(x) > 5 else None, 0.3)

    assert torch.autograd.gradcheck(function, [*arguments, *([] if slope is None else [slope])])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_layer_gives_the_same_for_few_and_for_many_numbers(activation, monkeypatch):
    layer = FeedForward(6, 8, 0.4, activation).train()
    x, results = torch.randn(2, 5, 6), []
    for many in (1 << 22, 1):
        monkeypatch.setattr(module, "_MANY", many)
        torch.manual_seed(0)
        y = layer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), layer.parameters())])
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(few, many)


def test_only_large_tensors_that_the_kernels_support_are_computed_twice():
    x = torch.ones(1, 1).expand(4096, 256)
    assert saves_memory(x, 1024) and not saves_memory(x, 1023)
    assert not saves_memory(x.bfloat16(), 1024) and not saves_memory(torch.ones(0, 256), 1024)


def test_a_second_derivative_raises_an_error():
    arguments, slope, dy = inputs()
    with pytest.raises(RuntimeError, match="feed_forward has no second derivative"):
        torch.autograd.grad(feed_forward(*arguments, "prelu", slope, 0.4), arguments, dy, create_graph=True)


def test_the_numbers_between_the_layers_are_not_kept():
    """Of 32,768 rows, the hidden numbers are 128 MiB; input, output and both gradients 8 MiB each."""
    setup = """
import torch
from mrlib.layers import FeedForward
torch.set_num_threads(1)
layer = FeedForward(64, 1024, 0.1, "gelu").train()
def run(n):
    layer(torch.randn(n, 64, requires_grad=True)).sum().backward()
run(4096)
"""
    (cost,) = costs(setup, ["run(32768)"])
    assert cost.said == "done" and cost.size < 96 * 2**20
