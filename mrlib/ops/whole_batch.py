"""The whole batch, where every rank trains on a share of it: other ranks' rows, with gradients, and draws for all rows.

Inside `dealt_out(B)`, rank r of R holds rows r, r + R, r + 2 R, ... of a batch of B rows, padded as the whole batch is.
What compares the rows of a batch with one another asks `whole` for all of them; what draws at random for every row
uses `drawn`, so that the numbers do not depend on R. Every rank calls the same functions in the same order. Outside,
and on one process, a batch is whole already.

If a rank computes a loss from `whole(x)`, and gradients are then averaged over the ranks, they are those of the average
of the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mrlib import parallel
from mrlib.ops.eager import eager

_rows: int | None = None  # of the whole batch; None: no batch is dealt out


def has_shares(rows: int) -> bool:
    """Whether a batch of so many rows is dealt out; with fewer rows than ranks, every rank takes them all."""
    return rows >= parallel.rank_and_world()[1] > 1


@contextmanager
def dealt_out(rows: int) -> Iterator[None]:
    """In this block, each rank holds its share of a batch of so many rows, or all of them, see `has_shares`."""
    global _rows
    _rows = rows if has_shares(rows) else None
    try:
        yield
    finally:
        _rows = None


def ranks() -> int:
    """The number of ranks that the batch is dealt out to; 1 for a batch that is whole."""
    return 1 if _rows is None else parallel.rank_and_world()[1]


@eager
def whole(x: Tensor) -> Tensor:
    """The rows of all ranks in the order of the whole batch, from this rank's rows; a gradient goes to its rank.

    x (share, ...), equal from the second axis on for all ranks; returns (B, ...)
    """
    return x if _rows is None else _Whole.apply(x, _rows)


@eager
def own(x: Tensor) -> Tensor:
    """This rank's rows of the whole batch; (B, ...) -> (share, ...)."""
    if _rows is None:
        return x
    rank, world = parallel.rank_and_world()
    return x[rank::world]


def drawn(draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """This rank's rows of what `draw` draws at random for the whole batch, with the random numbers of rank 0.

    draw     from x of the whole batch (B, ...) to what is drawn for every row, (B, ...)
    x        (share, ...)
    returns  (share, ...)
    """
    return draw(x) if _rows is None else own(parallel.of_first(draw(whole(x))))


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: int) -> Tensor:
        rank, world = ctx.place = parallel.rank_and_world()
        share = x.new_zeros(-(-rows // world), *x.shape[1:])  # as large on every rank
        share[: len(x)] = x
        return torch.stack(parallel.share_out(share), 1).flatten(0, 1)[:rows]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        rank, world = ctx.place
        total = parallel.add_up(grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True))
        return total[rank::world].to(grad.dtype), None
