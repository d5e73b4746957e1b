r"""Two tasks weave one memory: what clips share and what each task has of its own, and where it shines (TaskWeave).

Paper    Yang et al., "Task-Driven Exploration: Decoupling and Inter-Task Feedback for Joint Moment Retrieval and
         Highlight Detection", CVPR 2024 (arXiv 2404.09263)
Here     `peaks` is the pooling over time, `TaskWeaveAligner.shared` what both tasks share, `.highlights` the expert of
         highlight detection with the saliency, `.moments` the expert of moment retrieval, `.fuse` the feedback from the
         one to the other  [TaskWeave]; words come into the clips by QD-DETR's layers
Ours     no decoder: the clips of the moment expert are what a detector sees. The feedback is there from the first step,
         not from epoch 101 on; of its two passes, the first is asked only for highlights and the second only for
         moments. The learned weights of the two tasks' losses stay where they start, so that highlights count twofold
Departs  EdenGabriel/TaskWeave gives the moment expert's convolution the padding for a mask, so that real clips become 0
         and the expert scales channels by constants; here it sees the real clips. There pooling and the mean of the
         saliency read padding too
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.align.projected import FusedAligner, Sizes
from mrlib.align.text_to_video import T2VLayer, Words
from mrlib.data import Batch, Widths
from mrlib.layers import EncoderLayer, masked_mean, sine_positions

NEAR = 2  # clips on either side that pooling and convolution look at
HIGHLIGHTS = 2.0  # weight of what makes the saliency, against the detector's losses
FEEDBACK = 2.0  # what projected clips that shine are multiplied with


def peaks(x: Tensor, mask: Tensor) -> Tensor:
    """The largest of a clip and the real ones among the two on either side, by channel; 0 on padding.  [TaskWeave]

    x (B, T, d), mask bool (B, T) -> (B, T, d)
    """
    low = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min)
    pooled = F.max_pool1d(low.mT, 2 * NEAR + 1, 1, padding=NEAR).mT
    return pooled.masked_fill(~mask[..., None], 0)


def shining(scores: Tensor, mask: Tensor) -> Tensor:
    """Real clips whose saliency is above the mean of their video; (B, T), bool (B, T) -> bool (B, T).  [TaskWeave]"""
    return (scores > masked_mean(scores[..., None], mask)) & mask


class TaskWeaveAligner(FusedAligner):
    """Words into clips, then a branch for highlights, whose saliency goes back into the clips of a branch for moments.

    [TaskWeave]
    """

    def __init__(self, widths: Widths, sizes: Sizes):
        """Two stacks of layers: words into clips, clips among themselves."""
        super().__init__(widths, sizes)
        width, layers = sizes.width, range(sizes.layers)
        self.layers = nn.ModuleList(T2VLayer(*sizes.layer) for _ in layers)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes.layer) for _ in layers)
        self.moment_branch, self.highlight_branch = nn.Linear(width, width), nn.Linear(width, width)
        self.conv = nn.Conv1d(width, width, 2 * NEAR + 1, padding=NEAR, groups=width, bias=False)
        self.norm, self.expert = nn.LayerNorm(width), nn.Linear(width, width)
        self.relevance = nn.Sequential(*(nn.Linear(width, outputs) for outputs in (width, width, 1)))

    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Clips for moments, after those that shine came in twice as large, and the saliency.  [TaskWeave]

        target (B, T, d), query (B, N, d), both projected; returns (B, T, d), (B, T)
        """
        scores = self.highlights(target, mask, query, query_mask)
        louder = torch.where(shining(scores, mask)[..., None], FEEDBACK * target, target)
        return self.moments(louder, mask, query, query_mask), scores

    def highlights(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Tensor:
        r"""$s_t = \mathrm{MLP}(M_t) + \sum_c M_{tc} / \sqrt d$, the MLP linear, $M = X \odot \mathrm{shared}(X)$.

        X are the clips of the branch: the expert of this task is the identity. Returns (B, T)  [TaskWeave]
        """
        x = self.highlight_branch(self.gathered(target, mask, query, query_mask))
        x = x * self.shared(x, mask)
        return self.relevance(x)[..., 0] + x.sum(-1) / self.width**0.5

    def moments(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Tensor:
        r"""$M = W\, \mathrm{LN}(\mathrm{conv}(X)) \odot \mathrm{shared}(X)$, a convolution of each channel; (B, T, d)

        [TaskWeave]
        """
        x = self.moment_branch(self.gathered(target, mask, query, query_mask))
        convolved = self.conv((x * mask[..., None]).mT).mT
        return self.expert(self.norm(convolved)) * self.shared(x, mask)

    def gathered(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Tensor:
        """Clips with what they take from the words, and the peaks of that; (B, T, d)."""
        positions, words, x = sine_positions(mask, self.width), Words(query, query, query_mask), target
        for layer in self.layers:
            x = layer(x, positions, words)
        return peaks(x, mask)

    def shared(self, x: Tensor, mask: Tensor) -> Tensor:
        """The expert of both tasks: clips among themselves, and the peaks of that; (B, T, d)."""
        positions = sine_positions(mask, self.width)
        for layer in self.encoder:
            x = layer(x, positions, mask)
        return peaks(x, mask)

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Twice those of `saliency.terms`: margin, contrast, negative.  [TaskWeave]"""
        clips = aligned.cache["target"], aligned.mask
        terms = saliency.terms(aligned, batch, lambda query, mask: self.highlights(*clips, query, mask))
        return {name: HIGHLIGHTS * term for name, term in terms.items()}
