r"""One branch for highlights and one for moments, with a shared expert; highlights feed back to moments (TaskWeave).

Paper    Yang et al., "Task-Driven Exploration: Decoupling and Inter-Task Feedback for Joint Moment Retrieval and
         Highlight Detection", CVPR 2024 (arXiv 2404.09263)
Here     `max_pool_time` is the pooling over time, `TaskWeaveAligner.shared` the expert of both tasks,
         `.highlight_scores` the branch of highlight detection with the saliency, `.moment_features` the branch of
         moment retrieval, `.fuse` the feedback from the first to the second  [TaskWeave]; clips attend to words through
         QD-DETR's layers
Ours     no decoder: the detector gets the clips of the moment branch. The feedback works from the first step, not from
         epoch 101 on; of its two passes, the first computes only highlights and the second only moments. The learned
         weights of the two tasks' losses stay at their initial values, so that highlights count twofold
Departs  EdenGabriel/TaskWeave masks the moment expert's convolution by the padding, so that real clips become 0 and the
         expert scales channels by constants; here it reads the real clips. There the pooling and the mean of the
         saliency include padding
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.align.fused import Fused, FusedAligner, from_sizes
from mrlib.align.words import T2VLayer, Words
from mrlib.data import Batch, Widths
from mrlib.layers import EncoderLayer, Sizes, masked_mean, sine_positions

NEAR = 2  # clips on either side that pooling and convolution read
HIGHLIGHT_WEIGHT = 2.0  # weight of the saliency losses, relative to the detector's
FEEDBACK = 2.0  # factor of the projected clips that are highlights


def max_pool_time(x: Tensor, mask: Tensor) -> Tensor:
    """The maximum, by channel, over a clip and the real clips among the two on either side; 0 on padding.  [TaskWeave]

    x (B, T, d), mask bool (B, T) -> (B, T, d)
    """
    low = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min)  # (B, T, d)
    pooled = F.max_pool1d(low.mT, 2 * NEAR + 1, 1, padding=NEAR).mT  # (B, T, d)
    return pooled.masked_fill(~mask[..., None], 0)


def above_mean(scores: Tensor, mask: Tensor) -> Tensor:
    """Real clips whose saliency is above the mean of their video; (B, T), bool (B, T) -> bool (B, T).  [TaskWeave]"""
    return (scores > masked_mean(scores[..., None], mask)) & mask


class TaskWeaveAligner(FusedAligner):
    """A branch for highlights gives the saliency, and a branch for moments the clips.  [TaskWeave]

    Both begin with the same layers from words to clips; clips above the mean saliency enter the second branch doubled.
    """

    def __init__(self, widths: Widths, sizes: Sizes):
        """`sizes.layers` layers from words to clips, and as many over the clips in the shared expert."""
        super().__init__(widths, sizes)
        width, layers = sizes.width, range(sizes.layers)
        self.layers = nn.ModuleList(T2VLayer(*sizes.layer) for _ in layers)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes.layer) for _ in layers)
        self.moment_branch, self.highlight_branch = nn.Linear(width, width), nn.Linear(width, width)
        self.conv = nn.Conv1d(width, width, 2 * NEAR + 1, padding=NEAR, groups=width, bias=False)
        self.norm, self.expert = nn.LayerNorm(width), nn.Linear(width, width)
        self.relevance = nn.Sequential(*(nn.Linear(width, outputs) for outputs in (width, width, 1)))

    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Fused:
        """Projected clips (B, T, d) and words (B, N, d) -> clips of the moment branch and the saliency.  [TaskWeave]

        The moment branch reads the projected clips with the highlights doubled.
        """
        scores = self.highlight_scores(target, mask, query, query_mask)  # (B, T)
        lifted = torch.where(above_mean(scores, mask)[..., None], FEEDBACK * target, target)  # (B, T, d)
        return Fused(self.moment_features(lifted, mask, query, query_mask), scores)

    def highlight_scores(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Tensor:
        r"""$s_t = \mathrm{MLP}(M_t) + \sum_c M_{tc} / \sqrt d$, the MLP linear, $M = X \odot \mathrm{shared}(X)$.

        [TaskWeave]

        X are the clips of the branch, since this task's own expert is the identity. target (B, T, d), query (B, N, d);
        returns (B, T)
        """
        x = self.highlight_branch(self.with_words(target, mask, query, query_mask))  # X (B, T, d)
        x = x * self.shared(x, mask)  # M (B, T, d)
        return self.relevance(x)[..., 0] + x.sum(-1) / self.width**0.5  # (B, T)

    def moment_features(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Tensor:
        r"""$M = (W\, \mathrm{LN}(\mathrm{conv}(X)) + b) \odot \mathrm{shared}(X)$.  [TaskWeave]

        X are the clips of the branch. The convolution over time is channel by channel and reads zeros on padding.
        target (B, T, d), query (B, N, d); returns (B, T, d)
        """
        x = self.moment_branch(self.with_words(target, mask, query, query_mask))  # X (B, T, d)
        convolved = self.conv((x * mask[..., None]).mT).mT  # (B, T, d)
        return self.expert(self.norm(convolved)) * self.shared(x, mask)

    def with_words(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Tensor:
        """Clips (B, T, d) after they attended to the words (B, N, d), pooled by `max_pool_time`; (B, T, d)."""
        positions, words, x = sine_positions(mask, self.width), Words(query, query, query_mask), target
        for layer in self.layers:
            x = layer(x, positions, words)
        return max_pool_time(x, mask)

    def shared(self, x: Tensor, mask: Tensor) -> Tensor:
        """The expert of both tasks: clips (B, T, d) attend to one another and are pooled; (B, T, d)."""
        positions = sine_positions(mask, self.width)  # (B, T, d)
        for layer in self.encoder:
            x = layer(x, positions, mask)
        return max_pool_time(x, mask)

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Twice the terms of `saliency.terms`: margin, contrast, negative; null queries as there.  [TaskWeave]"""
        clips = aligned.cache["target"], aligned.mask
        terms = saliency.terms(aligned, batch, lambda query, mask: self.highlight_scores(*clips, query, mask))
        return {name: HIGHLIGHT_WEIGHT * term for name, term in terms.items()}


build_taskweave = from_sizes(TaskWeaveAligner, Sizes)
