"""Augmenters decide what the model sees in training: `augment(indices (B,), dataset, draw) -> Batch`.

An augmenter may change the length of videos and the number of samples. All its random numbers come from `draw`, an
`mrlib.ops.draw.Draw`.
"""

from __future__ import annotations

from torch import Tensor

from mrlib.data import Batch, MomentDataset
from mrlib.ops.draw import Draw


def identity(indices: Tensor, dataset: MomentDataset, draw: Draw) -> Batch:
    """The batch of the samples, unchanged."""
    return dataset.batch(indices)
