"""Small batches with random features, and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace

import torch

from mrlib.data import Batch, Labels, Sample

LENGTHS = (9, 4, 12, 1)  # clips of the four videos of `batch_of`


def make_batch(
    lengths: list[int],
    *,
    joint: int | None = 16,
    motion: int = 0,
    words: int = 5,
    query: int = 12,
    windows: list[list[tuple[int, int]]] | None = None,
    pad_to: int | None = None,
    clip_s: float = 2.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Random features, drawn sample by sample: a sample does not depend on its batch mates or on the padding.

    lengths  n_b, clips of each target
    joint    J, the first columns of the target; None: no joint stream
    motion   further columns of the target, in no joint space
    words    N, query vectors of the longest query, of width `query`; sample b has max(1, words - b % 3)
    windows  per sample, windows as (first clip, clip after the last); None: one window drawn at random
    pad_to   T; None: the longest target
    """
    T, B = pad_to or max(lengths), len(lengths)
    width = (joint or 0) + motion
    target, query_rows = torch.zeros(B, T, width, dtype=dtype), torch.zeros(B, words, query, dtype=dtype)
    target_mask, query_mask = torch.zeros(B, T, dtype=torch.bool), torch.zeros(B, words, dtype=torch.bool)
    query_joint = torch.zeros(B, joint or 0, dtype=dtype)
    random_windows = []
    for b, n in enumerate(lengths):
        g = torch.Generator().manual_seed(1000 * seed + b)
        target[b, :n] = torch.randn(n, width, generator=g, dtype=torch.float64).to(dtype)
        target_mask[b, :n] = True
        n_words = max(1, words - b % 3)
        query_rows[b, :n_words] = torch.randn(n_words, query, generator=g, dtype=torch.float64).to(dtype)
        query_mask[b, :n_words] = True
        if joint:
            query_joint[b] = torch.randn(joint, generator=g, dtype=torch.float64).to(dtype)
        ends = torch.randint(0, n, (2,), generator=g).sort().values.tolist()
        random_windows.append([(ends[0], ends[1] + 1)])
    windows = random_windows if windows is None else windows
    W = max(1, max(len(w) for w in windows))
    spans, span_mask = torch.zeros(B, W, 2, dtype=dtype), torch.zeros(B, W, dtype=torch.bool)
    relevant = torch.zeros(B, T, dtype=torch.bool)
    for b, n in enumerate(lengths):
        for w, (start, end) in enumerate(windows[b]):
            spans[b, w] = torch.tensor([start / n, end / n], dtype=torch.float64).to(dtype)
            span_mask[b, w] = True
            relevant[b, start:end] = True
    return Batch(
        target=target,
        target_mask=target_mask,
        query=query_rows,
        query_mask=query_mask,
        target_joint=target[..., :joint] if joint else None,
        query_joint=query_joint if joint else None,
        video=torch.arange(B),
        duration_s=torch.tensor([n * clip_s for n in lengths]),
        clip_s=torch.full((B,), clip_s),
        labels=Labels(
            spans=spans,
            span_mask=span_mask,
            relevant=relevant,
            saliency=relevant.to(dtype) * 6,
            saliency_mask=torch.ones(B, dtype=torch.bool),
        ),
        samples=[
            Sample(b, "a query", n * clip_s, f"video{b}", [[s * clip_s, e * clip_s] for s, e in windows[b]])
            for b, n in enumerate(lengths)
        ],
    )


def batch_of(
    lengths: Sequence[int] = LENGTHS, *, motion: int = 8, words: int = 6, wrong: bool = False, **options
) -> Batch:
    """`make_batch` of four videos with a joint and a motion stream.

    wrong  with mined labels: the clips of even index that are not relevant
    """
    batch = make_batch(list(lengths), motion=motion, words=words, **options)
    if not wrong:
        return batch
    mined = batch.target_mask & ~batch.labels.relevant & (torch.arange(batch.target.shape[1]) % 2 == 0)
    return replace(batch, labels=replace(batch.labels, wrong=mined))


def batch_and_rows(
    lengths: Sequence[int] = LENGTHS, words: int = 7, **options
) -> tuple[Batch, list[torch.Tensor], list[torch.Tensor]]:
    """A batch for the small networks of `tests/reference`, and the `rows` of its targets and of its queries."""
    batch = batch_of(lengths, joint=None, motion=7, words=words, query=6, seed=1, **options)
    return batch, *rows(batch)


def rows(batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The targets (n_b, D) and the queries (m_b, D') of a batch without their padding."""
    targets, queries = (
        [row[mask] for row, mask in zip(features, masks, strict=True)]
        for features, masks in ((batch.target, batch.target_mask), (batch.query, batch.query_mask))
    )
    return targets, queries


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alone(batch: Batch, b: int) -> Batch:
    """One sample of a batch, without padding and labels."""
    n, words = int(batch.target_mask[b].sum()), int(batch.query_mask[b].sum())
    one = batch.unlabelled()[b : b + 1]
    return replace(
        one,
        target=one.target[:, :n],
        target_mask=one.target_mask[:, :n],
        query=one.query[:, :words],
        query_mask=one.query_mask[:, :words],
        target_joint=None if one.target_joint is None else one.target_joint[:, :n],
    )


def spoilt(batch: Batch) -> Batch:
    """The batch with random numbers on its padding."""
    g = torch.Generator().manual_seed(0)
    target, query = (
        torch.where(mask[..., None], x, 5 * torch.randn(x.shape, generator=g))
        for x, mask in ((batch.target, batch.target_mask), (batch.query, batch.query_mask))
    )
    return replace(batch, target=target, query=query)


def in_float64(x):
    """A batch, or labels, with every floating-point tensor in float64."""

    def converted(value):
        if isinstance(value, torch.Tensor):
            return value.double() if value.is_floating_point() else value
        return in_float64(value) if is_dataclass(value) else value

    return replace(x, **{f.name: converted(getattr(x, f.name)) for f in fields(x) if f.name != "samples"})
