"""What a device computes, against float64 on the CPU: every paper's model, and every kernel.

Each check is a generator of pairs: what was compared, and the largest error as a fraction of the largest number.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mrlib import papers
from mrlib.data import Batch, Widths
from mrlib.ops import alignment, conv, spans
from mrlib.ops.alignment_variants import drop_dtw, mean_dtw
from mrlib.ops.attention import attend
from mrlib.ops.divergence import soft_dtw_divergence
from mrlib.ops.dropout import dropout
from mrlib.ops.matching import match
from mrlib.retriever import MomentRetriever
from tests.support.alignments import TOPOLOGIES
from tests.support.batches import in_float64, make_batch
from tests.support.modules import shaken

Errors = Iterator[tuple[str, float]]
WIDTHS = Widths(24, 12, 16)
LENGTHS = (9, 5, 12, 7)


class DrawnOnCpu(TorchFunctionMode):
    """Within this block random numbers come from the CPU's generator, so that they are the same for every device."""

    DRAWS = (torch.rand, torch.randn, torch.randint, torch.randperm)

    def __torch_function__(self, function: Callable, types: Any, arguments: tuple = (), options: dict | None = None):
        options = options or {}
        if function not in self.DRAWS:
            return function(*arguments, **options)
        return function(*arguments, **options | {"device": "cpu"}).to(options.get("device") or "cpu")


def error(got: Tensor, want: Tensor) -> float:
    """The largest absolute difference over the largest finite absolute value; 0 for two empty tensors."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    if not want.numel():
        return 0.0
    different = torch.where(got == want, 0.0, got - want).abs().max()  # equal infinities differ by 0
    return float(different / want[want.isfinite()].abs().max().clamp(min=1e-12))


# ---- models


def models(device: str, precision: str = "fp32") -> Errors:
    """Every paper at size small, in evaluation mode with weights at random: losses, gradients, moments.

    precision  "fp32", or "bf16" for autocast
    """
    for name in papers.PAPERS:
        retriever = shaken(papers.build(papers.get(name, "small"), WIDTHS, seed=1))
        batch = make_batch(LENGTHS, motion=8)
        wanted = results(copy.deepcopy(retriever).double(), in_float64(batch))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            got = results(retriever.to(device), batch.to(device))
        for part in wanted:
            yield f"{name}, {part}, {precision}", error(got[part], wanted[part])


def results(retriever: MomentRetriever, batch: Batch) -> dict[str, Tensor]:
    """The loss terms, the gradients of their sum, and the scores of the moments, each as one vector."""
    torch.manual_seed(0)
    with DrawnOnCpu():
        aligned, outputs = retriever(batch)
        terms = retriever.losses(aligned, outputs, batch)
    sum(terms.values()).backward()
    gradients = [p.grad.flatten() for p in retriever.parameters() if p.grad is not None]
    with torch.no_grad():
        scores = retriever.detector.decode(outputs, batch).scores
    return {"losses": torch.stack(list(terms.values())), "gradients": torch.cat(gradients), "scores": scores}


# ---- kernels


def kernels(device: str, *, large: bool) -> Errors:
    """Every kernel; large: in sizes that fill a GPU, else in those that an interpreter manages."""
    yield from _alignments(device, (16, 75, 30) if large else (3, 9, 6))
    yield from _convolutions(device, large)
    yield from _attention(device)
    yield from _chosen(device)


def dropouts(device: str) -> Errors:
    """The share of numbers that dropout keeps, and their mean, of a million draws."""
    kept = dropout(torch.ones(1 << 20, device=device), 0.3)
    yield "dropout, share kept", error((kept != 0).double().mean(), torch.tensor(0.7))
    yield "dropout, mean", error(kept.double().mean(), torch.tensor(1.0))


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """The value of a function of tensors, and the gradients of its sum over values with weights 1, 2, ..."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    value = function(*inputs, **options)
    weight = torch.arange(1, value.numel() + 1, device=value.device, dtype=value.dtype).view_as(value)
    return [value, *torch.autograd.grad((value * weight / value.numel()).sum(), inputs)]


def _compared(name: str, function: Callable[..., Tensor], inputs: Sequence[Tensor], device: str, **options: Any):
    """The larger of the errors of value and gradients in float32 on the device."""
    wanted = with_gradients(function, [x.double() for x in inputs], **options)
    moved = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in options.items()}
    got = with_gradients(function, [x.to(device) for x in inputs], **moved)
    yield name, max(error(a, b) for a, b in zip(got, wanted, strict=True))


def _alignments(device: str, shape: tuple[int, int, int]) -> Errors:
    g = torch.Generator().manual_seed(0)
    B, T, N = shape
    cost = torch.rand(shape, generator=g)
    lengths = {
        "target_lengths": torch.arange(T, T - B, -1),
        "query_lengths": torch.arange(N, N - B, -1).clamp(min=1),
    }
    for topology in TOPOLOGIES:
        for band in (None, T // 2):
            options = {"topology": topology, "gamma": 0.1, "band": band, **lengths}
            yield from _compared(f"soft_dtw, {topology}, band {band}", alignment.soft_dtw, [cost], device, **options)
        paths = (alignment.hard_alignment(cost.to(x), topology=topology) for x in ("cpu", device))
        yield f"hard_alignment, {topology}", error(*(path.double() for path in paths))
    yield from _compared("drop_dtw", drop_dtw, [cost], device, drop=0.4, **lengths)
    yield from _compared("mean_dtw", mean_dtw, [cost], device, **lengths)
    features = [torch.randn(B, n, 8, generator=g) for n in (T, N)]
    yield from _compared("soft_dtw_divergence", soft_dtw_divergence, features, device, gamma=1.0)


def _convolutions(device: str, large: bool) -> Errors:
    g = torch.Generator().manual_seed(0)
    sizes = (
        [(2, 1, 8, 75, 21), (2, 8, 8, 75, 21), (1, 4, 4, 300, 21)] if large else [(2, 1, 3, 20, 9), (2, 3, 3, 20, 9)]
    )
    for batch, inputs, outputs, side, kernel in sizes:
        x = torch.randn(batch, inputs, side, side, generator=g)
        weight = torch.randn(outputs, inputs, kernel, kernel, generator=g) / kernel
        for way in (conv.direct, conv.fourier):
            wanted = with_gradients(conv.direct, [x.double(), weight.double()])
            got = with_gradients(way, [x.to(device), weight.to(device)])
            name = f"{way.__name__}, {inputs} to {outputs} channels, {side} x {side}, kernel {kernel}"
            yield name, max(error(a, b) for a, b in zip(got, wanted, strict=True))


def _attention(device: str) -> Errors:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 32, generator=g) for n in (40, 50, 50))
    mask = torch.arange(50) < torch.tensor([[50], [17]])
    visible = torch.rand(2, 4, 40, 50, generator=g) < 0.7
    for name, options in {"key mask": {}, "key mask and visible": {"visible": visible}}.items():
        options = {"heads": 4, "key_mask": mask, "p": 0.0, **options}
        yield from _compared(f"attend, {name}", attend, [q, k, v], device, **options)


def _chosen(device: str) -> Errors:
    """What is chosen must be the same, so the error is 0 or not."""
    g = torch.Generator().manual_seed(0)
    cost, mask = torch.rand(3, 4, 10, 5, generator=g), torch.rand(4, 5, generator=g) < 0.6
    yield "match", error(match(cost.to(device), mask.to(device)).double(), match(cost, mask).double())
    ends = torch.rand(4, 60, 2, generator=g).sort(-1).values
    kept = [spans.nms(ends.to(x), torch.ones(4, 60, dtype=torch.bool, device=x), 0.5, 10) for x in ("cpu", device)]
    yield "nms", max(error(a.double(), b.double()) for a, b in zip(kept[1], kept[0], strict=True))
