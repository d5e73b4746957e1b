"""A moment retriever is an aligner and a detector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.data import Batch


class MomentRetriever(nn.Module):
    """From a batch to scored moments."""

    def __init__(
        self,
        aligner: nn.Module,
        detector: nn.Module,
        *,
        round_s: float | None = None,
        max_windows: int = 10,
        recipe: dict[str, Any] | None = None,
    ):
        """An aligner and a detector.

        round_s      predicted times are rounded to multiples of this, in seconds; None: not at all
        max_windows  predictions a query at most
        recipe       how `mrlib.papers` builds the same again; a checkpoint needs it
        """
        super().__init__()
        self.aligner, self.detector = aligner, detector
        self.round_s, self.max_windows, self.recipe = round_s, max_windows, recipe

    def forward(self, batch: Batch) -> tuple[Aligned, dict[str, Tensor]]:
        """What the aligner and the detector make of a batch; neither reads its labels."""
        aligned = self.aligner(batch)
        return aligned, self.detector(aligned, batch)

    def losses(
        self, aligned: Aligned, outputs: dict[str, Tensor], batch: Batch, teacher: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Every loss term of both, by name.

        teacher  what another retriever's detector gave for the batch, to learn from; None: there is none
        """
        taught = {} if teacher is None else {"teacher": teacher}
        return {**self.aligner.losses(aligned, batch), **self.detector.losses(outputs, aligned, batch, **taught)}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[dict[str, Any]]:
        """Lines of a QVHighlights submission, a line per sample; windows in seconds, best first.

        `pred_saliency_scores`, one per clip, is there when the aligner gives saliency. The batch comes to the model's
        device.
        """
        batch = batch.unlabelled().to(next(self.parameters(), batch.target).device)
        training = self.training
        self.eval()
        try:
            aligned, outputs = self(batch)
            moments = self.detector.decode(outputs, batch)
        finally:
            self.train(training)
        kept = slice(0, self.max_windows)
        spans, scores, mask = (x[:, kept].cpu() for x in (moments.spans, moments.scores, moments.mask))
        # to the millisecond: 41 / 75 of 150 s in float32 is 82.000002, and an IoU of exactly 0.5 would be missed
        length_s, duration_s = (batch.lengths * batch.clip_s).double().cpu(), batch.duration_s.double().cpu()
        windows = (spans.double() * length_s[:, None, None]).round(decimals=3)
        if self.round_s is not None:
            windows = (windows / self.round_s).round() * self.round_s
        windows = windows.clamp(min=0).minimum(duration_s[:, None, None])
        rows = torch.cat([windows, scores.double()[..., None]], dim=-1)
        lines = []
        for b, sample in enumerate(batch.samples):
            line = {"qid": sample.qid, "query": sample.query, "vid": sample.vid}
            line["pred_relevant_windows"] = rows[b][mask[b]].tolist()
            if aligned.saliency is not None:
                line["pred_saliency_scores"] = aligned.saliency[b][batch.target_mask[b]].tolist()
            lines.append(line)
        return lines
