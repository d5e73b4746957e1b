"""Contrastive loss between the queries and the videos of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.ops.counts import shared_count
from mrlib.ops.whole_batch import own, whole


def batch_contrast(query: Tensor, video: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE: each query against all videos of the batch, and each video against all queries.

    [AMR, losses], [UVCOM]

    The logits are cosines over the temperature; the loss is the mean over both directions and over the samples that
    take part, 0 if there are none. With several processes, the alternatives are those of the whole batch.

    query, video  (B, d)  query b matches video b
    rows          bool (B,)  samples that take part; the others are no alternatives either. A null query, which is about
                  no moment of its video, does not
    returns       scalar
    """
    query, video = whole(F.normalize(query, dim=-1)), whole(F.normalize(video, dim=-1))
    part = whole(rows)
    similarity = query @ video.mT / temperature  # (B, B)
    similarity = similarity.masked_fill(~(part[:, None] & part), torch.finfo(similarity.dtype).min)
    matching = own(sum(side.log_softmax(1).diagonal() for side in (similarity, similarity.mT)))  # (B,)
    return -(matching * rows).sum() / 2 / shared_count(rows.sum())
