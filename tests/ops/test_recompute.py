"""`mrlib.ops.recompute`: the same results, with and without numbers that are kept."""

import pytest
import torch
from torch import nn

from mrlib.align.words import T2VLayer, Words
from mrlib.detect.dab import DabLayer, Positions
from mrlib.layers import EncoderLayer
from mrlib.ops import recompute as module
from mrlib.ops.recompute import recomputed

T, SIZES = 9, (8, 2, 16, 0.4)


def inputs(seed, *lengths):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, n, 8, generator=g, requires_grad=True) for n in lengths]


def encode():
    x, positions = inputs(0, T, T)
    return EncoderLayer(*SIZES), x, lambda layer: layer(x, positions, torch.arange(T) < torch.tensor([[T], [4]]))


def attend_to_words():
    x, positions, words = inputs(1, T, T, 3)
    words = Words(words, words, torch.ones(2, 3, dtype=torch.bool))
    return T2VLayer(*SIZES), x, lambda layer: layer(x, positions, words)


def decode():
    x, places, sines, memory, positions = inputs(2, 3, 3, 3, T, T)
    mask = torch.ones(2, T, dtype=torch.bool)
    layer = DabLayer(*SIZES, "prelu", first=True, across_sets=True)
    return layer, memory, lambda layer: layer(x, places, sines, memory, Positions(positions, None), mask, 1)


@pytest.mark.parametrize("case", [encode, attend_to_words, decode])
def test_long_layers_give_the_bytes_of_short_ones(case, monkeypatch):
    """Values, gradients and the generator afterwards, with dropout."""
    torch.manual_seed(0)
    layer, x, call = case()
    layer.train()
    results, kept = [], []
    for long in (T, T - 1):
        monkeypatch.setattr(module, "_LONG", long)
        torch.manual_seed(5)
        size = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, size=size: size.append(t.numel()) or t, lambda t: t):
            y = call(layer)
        grads = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()], allow_unused=True)
        results.append([y, *(g for g in grads if g is not None), torch.get_rng_state()])
        kept.append(sum(size))
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
    assert kept[1] < kept[0] / 5


def test_prediction_runs_once(monkeypatch):
    monkeypatch.setattr(module, "_LONG", 0)
    calls = []

    def function(x):
        calls.append(1)
        return x.exp()

    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        recomputed(3, function, x)
    assert len(calls) == 1
    recomputed(3, function, x).sum().backward()
    assert len(calls) == 3


def test_a_second_derivative_exists(monkeypatch):
    monkeypatch.setattr(module, "_LONG", 0)
    x = torch.tensor(2.0, requires_grad=True)
    (dx,) = torch.autograd.grad(recomputed(1, lambda x: x**3, x), x, create_graph=True)
    assert torch.autograd.grad(dx, x)[0] == 12


def test_a_long_layer_can_be_a_part_of_a_module_in_double_precision(monkeypatch):
    monkeypatch.setattr(module, "_LONG", 0)
    layer = nn.Linear(2, 2).double()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: recomputed(3, layer, x), x)
