r"""AMR's heads: a focal class loss, the expected overlap of a span with a window, and a mask of the clips it covers.

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622); IoU and mask
         heads are Sim-DETR's
Here     `FocalLoss`, `IouHead` and `MaskHead`  [AMR, heads] extend the `ClassHead` and `SpanHead` of
         `mrlib.detect.detr`; their losses and matching costs  [AMR, losses]
Departs  in SooLab/AMR the mask of the last decoder layer is that of the layer before, without a loss: `PreviousMasks`;
         and padding enlarges the union of a mask and a window: `with_padding`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.arguments import require
from mrlib.detect.dab import DabDecoder, sentence_content, zero_content
from mrlib.detect.detr import ClassHead, Decoded, DetrDetector, SpanHead, Truth, to_ends, windows_order
from mrlib.detect.span_length import span_length
from mrlib.layers import MLP, full_precision
from mrlib.ops import spans
from mrlib.ops.counts import shared_count

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss


class FocalLoss:
    """Class loss that treats foreground and background as two binary classifications.  [AMR, losses]"""

    def __call__(self, logits: Tensor, positive: Tensor, rows: Tensor) -> Tensor:
        r"""The focal loss [Lin et al. 2017], a mean over both logits of all moment queries.

        $$-\alpha_y (1 - p_y)^2 \log p_y, \quad \alpha = 0.25 \text{ where y is 1}, 0.75 \text{ where it is 0}$$

        A matched moment query has foreground 1 and background 0, any other the reverse.

        logits (L, B, K, 2); positive bool (L, B, K); rows bool (B,) samples that count; returns (L,)
        """
        label = torch.stack([positive, ~positive], -1)  # (L, B, K, 2)
        log_p = F.logsigmoid(torch.where(label, logits, -logits))  # (L, B, K, 2)
        alpha = torch.where(label, ALPHA, 1 - ALPHA)  # (L, B, K, 2)
        each = -alpha * (1 - log_p.exp()) ** GAMMA * log_p * rows[:, None, None]  # (L, B, K, 2)
        return each.sum((1, 2, 3)) / shared_count(rows.sum() * logits[0, 0].numel())


class IouHead(nn.Module):
    """Predicts the IoU of each span with its best window.  [AMR, heads]"""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, decoded: Decoded, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """quality  (L, B, K) logits"""
        return {"quality": self.linear(decoded.states)[..., 0]}

    def cost(self, outputs: dict[str, Tensor], truth: Truth) -> float:
        return 0.0

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        """quality, the squared error of the expected IoU; the target is the span's largest IoU, or 0.  [AMR, losses]

        All targets of a null query are 0.
        """
        predicted = to_ends(full_precision(outputs["spans_cw"].detach()))[:, :, :, None]  # (L, B, K, 1, 2)
        overlap = spans.iou(predicted, truth.spans[None, :, None]) * truth.mask[:, None]  # (L, B, K, W)
        largest = overlap.amax(-1) if truth.mask.shape[1] else overlap.new_zeros(overlap.shape[:3])  # (L, B, K)
        quality = full_precision(outputs["quality"]).sigmoid()  # (L, B, K)
        each = (quality - largest).square() * truth.rows[:, None]  # (L, B, K)
        return {"quality": each.sum((1, 2)) / shared_count(truth.rows.sum() * each.shape[2])}

    def score(self, outputs: dict[str, Tensor]) -> Tensor:
        """The expected IoU after the last layer, (B, K)."""
        return full_precision(outputs["quality"][-1]).sigmoid()


def without_padding(masks: Tensor, mask: Tensor) -> Tensor:
    """Set padding to 0 in the masks (L, B, K, T) of the moment queries; mask bool (B, T) marks the real clips."""
    return masks * mask[:, None]


def with_padding(masks: Tensor, mask: Tensor) -> Tensor:
    """Leave padding in the masks, as released; arguments as in `without_padding`."""
    return masks


class OwnMasks:
    """Every decoder layer has masks of its own."""

    def inputs(self, states: Tensor) -> Tensor:
        """The states from which masks are computed; (L, B, K, d) -> (L', B, K, d)."""
        return states

    def outputs(self, masks: Tensor) -> Tensor:
        """The masks of all layers; (L', B, K, T) -> (L, B, K, T)."""
        return masks

    def losses(self, loss: Tensor) -> Tensor:
        """The loss of every layer; (L,) -> (L,)."""
        return loss


class PreviousMasks:
    """As released: the last layer repeats the masks of the layer before and has no loss. Methods as in `OwnMasks`."""

    def inputs(self, states: Tensor) -> Tensor:
        return states[:-1]  # (L - 1, B, K, d)

    def outputs(self, masks: Tensor) -> Tensor:
        return torch.cat([masks, masks[-1:]])  # (L, B, K, T)

    def losses(self, loss: Tensor) -> Tensor:
        return loss * (torch.arange(len(loss), device=loss.device) < len(loss) - 1)


class MaskHead(nn.Module):
    r"""Predicts the clips of each span: $\mu = \sigma(e^\gamma \cos(h + \mathrm{MLP}(h), Z_t))$.  [AMR, heads]"""

    only_trains = True

    def __init__(
        self,
        width: int,
        *,
        cost_mask: float,
        padding: Callable[[Tensor, Tensor], Tensor],
        layers: OwnMasks | PreviousMasks,
    ):
        """A head for moment queries and clips of this width.

        cost_mask  weight of 1 - IoU of mask and window in the matching
        padding    `without_padding` or `with_padding`
        layers     which decoder layers have masks of their own
        """
        super().__init__()
        self.mlp, self.scale = MLP(width, width, 3), nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.cost_mask, self.padding, self.layers = cost_mask, padding, layers

    def forward(self, decoded: Decoded, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """masks  (L, B, K, T) from 0 to 1"""
        states = self.layers.inputs(decoded.states).transpose(0, 1)  # (B, L', K, d)
        directions = F.normalize(states + self.mlp(states), dim=-1)
        lengths = target.norm(dim=-1).clamp(min=1e-12)  # (B, T)
        # one product for all layers, and the many clips stay as they are: their products are divided instead
        products = (directions.flatten(1, 2) @ target.mT).unflatten(1, states.shape[1:3])  # (B, L', K, T)
        cosines = (products / lengths[:, None, None]).transpose(0, 1)  # (L', B, K, T)
        return {"masks": self.layers.outputs(self.padding((self.scale.exp() * cosines).sigmoid(), mask))}

    def overlap(self, masks: Tensor, truth: Truth) -> Tensor:
        """IoU (L, B, K, W) of masks (L, B, K, T) with the clips of the windows."""
        lengths, T = truth.clip_mask.sum(1), truth.clip_mask.shape[1]  # (B,)
        inside = spans.inside(truth.spans, lengths, T).to(masks.dtype)  # (B, W, T)
        shared = masks @ inside.mT  # (L, B, K, W)
        union = masks.sum(-1, keepdim=True) + inside.sum(-1)[:, None] - shared  # (L, B, K, W)
        return shared / union.clamp(min=1e-6)

    def cost(self, outputs: dict[str, Tensor], truth: Truth) -> Tensor:
        """1 - IoU of every mask and window, (L, B, K, W)."""
        return self.cost_mask * (1 - self.overlap(full_precision(outputs["masks"].detach()), truth))

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        """mask, (L,): the mean of 1 - IoU over the matched pairs, for every layer with a mask loss.

        A null query has no matched pair.
        """
        valid = matched >= 0  # (L, B, W)
        overlap = self.overlap(full_precision(outputs["masks"]), truth)  # (L, B, K, W)
        overlap = overlap.gather(2, matched.clamp(min=0)[:, :, None])[:, :, 0]  # (L, B, W)
        loss = ((1 - overlap) * valid).sum((1, 2)) / shared_count(valid[0].sum())  # (L,)
        return {"mask": self.layers.losses(loss)}

    def score(self, outputs: dict[str, Tensor]) -> None:
        return None


def build_dab_quality(
    width: int,
    *,
    cost_l1: float,
    cost_giou: float,
    cost_class: float,
    cost_mask: float,
    last_mask: str,
    padding: str,
    most_windows: int,
    surplus: str,
    length: str,
    content: str,
    decoder_layers: int,
    **decoder: Any,
) -> DetrDetector:
    """The detector "dab_quality".

    cost_...   weights in the matching
    last_mask  the mask of the last decoder layer: its "own", or that of the "previous" layer
    padding    "hidden": masks leave out padding; "seen": they include it, as released
    most_windows, surplus, length  as in `DetrDetector`, `windows_order` and `span_length`
    content    what moment queries start with: "zero", or the vector of the whole "query"
    decoder    further options of `DabDecoder`
    """
    require(last_mask in ("own", "previous"), "last_mask", last_mask, "own or previous")
    require(padding in ("hidden", "seen"), "padding", padding, "hidden or seen")
    require(content in ("zero", "query"), "content", content, "zero or query")
    own_masks = last_mask == "own"
    require(own_masks or decoder_layers != 1, "decoder_layers", decoder_layers, "2 or more, or last_mask own")
    heads = [
        SpanHead(width, cost_l1=cost_l1, cost_giou=cost_giou),
        ClassHead(width, cost_class=cost_class, loss=FocalLoss()),
        MaskHead(
            width,
            cost_mask=cost_mask,
            padding=without_padding if padding == "hidden" else with_padding,
            layers=OwnMasks() if own_masks else PreviousMasks(),
        ),
        IouHead(width),
    ]
    start = zero_content if content == "zero" else sentence_content
    return DetrDetector(
        DabDecoder(width, decoder_layers=decoder_layers, content=start, **decoder),
        heads,
        most_windows=most_windows,
        surplus=windows_order(surplus),
        length=span_length(length),
    )
