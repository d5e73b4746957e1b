"""A moment retriever is an aligner and a detector."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mrlib import memory
from mrlib.align import Aligned
from mrlib.data import Batch


def unwrapped(model: nn.Module) -> nn.Module:
    """The retriever inside what torch.compile, DataParallel and DistributedDataParallel make of it."""
    while not isinstance(model, MomentRetriever):
        inner = next((model._modules[name] for name in ("_orig_mod", "module") if name in model._modules), None)
        if inner is None:
            break
        model = inner
    return model


@dataclass(frozen=True, kw_only=True)
class Training:
    """The data that a retriever was trained on, as far as it is known; plain values, which checkpoints hold."""

    streams: Mapping[str, int]  # width of every stream of the videos, in their order
    clip_s: float | None  # seconds per clip
    clips: int | None  # of the longest video
    normalize: tuple[str, ...]  # names of streams and "query" whose vectors were divided by their L2 norm
    query: str | None = None  # "text" or "video"
    tokens: int | None = None  # the most rows of a sentence that the model was given
    encoder: Mapping[str, Any] | str | None = None  # recipe of the encoder, or the digest of its weights


class MomentRetriever(nn.Module):
    """An aligner and a detector, which together turn a batch into scored moments."""

    def __init__(
        self,
        aligner: nn.Module,
        detector: nn.Module,
        *,
        round_s: float | None = None,
        max_windows: int = 10,
        recipe: dict[str, Any] | None = None,
    ):
        """Combine an aligner and a detector.

        round_s      predicted times are rounded to multiples of this, in seconds; None: they are not rounded
        max_windows  largest number of predictions per query
        recipe       the arguments by which `mrlib.papers` builds this model again; checkpoints need it
        """
        super().__init__()
        self.aligner, self.detector = aligner, detector
        self.round_s, self.max_windows, self.recipe = round_s, max_windows, recipe
        self.training_data: Training | None = None  # `mrlib.fit` sets it, and `mrlib.checkpoint` if a file says it

    def forward(self, batch: Batch) -> tuple[Aligned, dict[str, Tensor]]:
        """The outputs of the aligner and of the detector for a batch; neither reads its labels."""
        aligned = self.aligner(batch)
        return aligned, self.detector(aligned, batch)

    def losses(
        self, aligned: Aligned, outputs: dict[str, Tensor], batch: Batch, teacher: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """All loss terms of the aligner and the detector, by name.

        teacher  the outputs of another retriever's detector for the same batch, to learn from; None: no teacher
        """
        options = {} if teacher is None else {"teacher": teacher}
        return {**self.aligner.losses(aligned, batch), **self.detector.losses(outputs, aligned, batch, **options)}

    def predict(self, batch: Batch) -> list[dict[str, Any]]:
        """Predict the lines of a QVHighlights submission, see `lines_of`; warn of videos that are too long.

        Most models predict fractions of the video, which mean nothing for videos longer than those of the training.
        """
        longest = batch.target.shape[1] and int(batch.lengths.max())
        if (message := self.too_long(longest)) is not None:
            warnings.warn(message, stacklevel=2)
        return self.lines_of(batch)

    def too_long(self, clips: int) -> str | None:
        """A warning if a video of so many clips is longer than those of the training; None if it is not, or unknown."""
        known = None if self.training_data is None else self.training_data.clips
        if known is None or clips <= known:
            return None
        return (
            f"a video has {clips} clips, and the longest of the training had {known}; moments beyond that length mean "
            "little, so ask mrlib.video.find, which searches in windows of that length"
        )

    @torch.no_grad()
    def lines_of(self, batch: Batch) -> list[dict[str, Any]]:
        """Predict the lines of a QVHighlights submission, one per sample; windows in seconds, best first.

        Lines have `pred_saliency_scores`, one per clip, if the aligner gives saliency. They have no `pred_exist_score`:
        no model here scores the query as a whole, so `mrlib.metrics` takes the largest window score for it.

        The batch is moved to the model's device. OutOfMemory, with a batch size to try, if that has no memory left.
        """
        training = self.training
        self.eval()
        try:
            with memory.naming_batch(len(batch), batch.target.shape[1]):
                batch = batch.unlabelled().to(next(self.parameters(), batch.target).device)
                aligned = self.aligner(batch)
                outputs = getattr(self.detector, "decodable", self.detector)(aligned, batch)
                moments = self.detector.decode(outputs, batch)
        finally:
            self.train(training)
        kept = slice(0, self.max_windows)
        spans, scores, mask = (x[:, kept].cpu() for x in (moments.spans, moments.scores, moments.mask))
        # rounded to milliseconds: in float32, 41 / 75 of 150 s is 82.000002 s, which can miss an IoU of exactly 0.5
        length_s, duration_s = (batch.lengths * batch.clip_s).double().cpu(), batch.duration_s.double().cpu()
        windows_s = (spans.double() * length_s[:, None, None]).round(decimals=3)
        if self.round_s is not None:
            windows_s = (windows_s / self.round_s).round() * self.round_s
        windows_s = windows_s.clamp(min=0).minimum(duration_s[:, None, None])
        rows = torch.cat([windows_s, scores.double()[..., None]], dim=-1)
        lines = []
        for b, sample in enumerate(batch.samples):
            line = {"qid": sample.qid, "query": sample.query, "vid": sample.vid}
            line["pred_relevant_windows"] = rows[b][mask[b]].tolist()
            if aligned.saliency is not None:
                line["pred_saliency_scores"] = aligned.saliency[b][batch.target_mask[b]].tolist()
            lines.append(line)
        return lines
