"""Augmenters, what the model sees in training: `augment(indices (B,), dataset, draw) -> Batch`.

An augmenter may change lengths and the number of samples. It throws no hidden dice: `draw` is an `mrlib.ops.draw.Draw`.
"""

from __future__ import annotations

from torch import Tensor

from mrlib.data import Batch, MomentDataset
from mrlib.ops.draw import Draw


def identity(indices: Tensor, dataset: MomentDataset, draw: Draw) -> Batch:
    """The samples as they are."""
    return dataset.batch(indices)
