r"""How good an answer is: a focal class, the overlap it expects, the clips it covers (AMR).

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622); IoU and mask
         heads are Sim-DETR's
Here     `FocalHead`, `IouHead` and `MaskHead` [AMR, heads] are heads for a detector of `mrlib.detect.detr`, beside its
         `SpanHead`; their losses and what they cost in the matching [AMR, losses]
Departs  in SooLab/AMR the mask after the last decoder layer is that after the layer before, and trains nothing
         (`last="previous"`); padding enlarges the union of masks (`padding="seen"`)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.detect.detr import ClassHead, Decoded, Truth, to_ends
from mrlib.layers import MLP
from mrlib.ops import spans
from mrlib.ops.counts import shared_count
from mrlib.settings import require

ALPHA, GAMMA = 0.25, 2.0


class FocalHead(ClassHead):
    """Two logits, foreground and background, each a question of its own in the loss.  [AMR, losses]"""

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        r"""class, the focal loss [Lin et al. 2017], a mean over both logits of all queries.

        $$-\alpha_y (1 - p_y)^2 \log p_y, \quad \alpha = 0.25 \text{ where y is 1}, 0.75 \text{ where it is 0}$$

        A matched query has foreground 1 and background 0, any other the reverse.
        """
        logits = outputs["logits"].float()
        answers = (torch.arange(logits.shape[2], device=matched.device) == matched[..., None]).any(2)  # (L, B, K)
        wanted = torch.stack([answers, ~answers], -1)
        log_right = F.logsigmoid(torch.where(wanted, logits, -logits))
        alpha = torch.where(wanted, ALPHA, 1 - ALPHA)
        each = -alpha * (1 - log_right.exp()) ** GAMMA * log_right * truth.rows[:, None, None]
        return {"class": each.sum((1, 2, 3)) / shared_count(truth.rows.sum() * logits[0, 0].numel())}


class IouHead(nn.Module):
    """How much a query expects its span to overlap a window.  [AMR, heads]"""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, decoded: Decoded, aligned: Aligned) -> dict[str, Tensor]:
        """quality (L, B, K), logits"""
        return {"quality": self.linear(decoded.states)[..., 0]}

    def cost(self, outputs: dict[str, Tensor], truth: Truth) -> float:
        return 0.0

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        """quality, the mean squared error of what a query expects to what its span overlaps most.  [AMR, losses]"""
        found = to_ends(outputs["spans_cw"].detach().float())[:, :, :, None]
        overlap = spans.iou(found, truth.spans[None, :, None]) * truth.mask[:, None]  # (L, B, K, W)
        most = overlap.amax(-1) if truth.mask.shape[1] else overlap.new_zeros(overlap.shape[:3])
        each = (outputs["quality"].float().sigmoid() - most).square() * truth.rows[:, None]
        return {"quality": each.sum((1, 2)) / shared_count(truth.rows.sum() * each.shape[2])}

    def score(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["quality"][-1].float().sigmoid()


class MaskHead(nn.Module):
    r"""Which clips a query means: $\mu = \sigma(e^\gamma \cos(h + \mathrm{MLP}(h), Z_t))$.  [AMR, heads]"""

    def __init__(self, width: int, *, cost_mask: float = 5.0, last: str = "own", padding: str = "hidden"):
        """Of a width.

        cost_mask  what 1 - IoU of a mask and a window weighs in the matching
        last       the mask after the last decoder layer is its "own", or that after the layer before, "previous"
        padding    "hidden", or "seen": part of every mask
        """
        super().__init__()
        require(last in ("own", "previous"), "last", last, "own or previous")
        self.mlp, self.scale = MLP(width, width, 3), nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.cost_mask, self.last, self.padding = cost_mask, last, padding

    def forward(self, decoded: Decoded, aligned: Aligned) -> dict[str, Tensor]:
        """masks (L, B, K, T), from 0 to 1"""
        states = decoded.states if self.last == "own" else decoded.states[:-1]
        means, clips = F.normalize(states + self.mlp(states), dim=-1), F.normalize(aligned.target, dim=-1)
        masks = (self.scale.exp() * means @ clips.mT).sigmoid()
        masks = masks if self.padding == "seen" else masks * aligned.mask[:, None]
        return {"masks": masks if self.last == "own" else torch.cat([masks, masks[-1:]])}

    def _overlap(self, masks: Tensor, truth: Truth) -> Tensor:
        """IoU (L, B, K, W) of masks (L, B, K, T) and windows."""
        batch = truth.batch
        wanted = spans.inside(truth.spans, batch.lengths, batch.target_mask.shape[1]).to(masks.dtype)
        shared = masks @ wanted.mT
        union = masks.sum(-1, keepdim=True) + wanted.sum(-1)[:, None] - shared
        return shared / union.clamp(min=1e-6)

    def cost(self, outputs: dict[str, Tensor], truth: Truth) -> Tensor:
        return self.cost_mask * (1 - self._overlap(outputs["masks"].detach().float(), truth))

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        """mask, the mean of 1 - IoU over the matched pairs; 0 after a last layer that has no mask of its own."""
        masks, there = outputs["masks"].float(), matched >= 0
        overlap = self._overlap(masks, truth).gather(2, matched.clamp(min=0)[:, :, None])[:, :, 0]  # (L, B, W)
        loss = ((1 - overlap) * there).sum((1, 2)) / shared_count(there[0].sum())
        return {
            "mask": loss if self.last == "own" else loss * (torch.arange(len(loss), device=loss.device) < len(loss) - 1)
        }

    def score(self, outputs: dict[str, Tensor]) -> None:
        return None
