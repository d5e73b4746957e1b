"""What is searched for in a corpus: a sentence or a clip, as features of the encoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mrlib.data.bank import Bank
from mrlib.retriever import MomentRetriever
from mrlib.video import retrievers, zero_shot
from mrlib.video.coarse import Windows, best_by_clip, best_by_cosine, cosines_with, smoothed
from mrlib.video.retrievers import normalised
from mrlib.video.windows import USUAL_S, Query, Window


@dataclass(frozen=True)
class Asked:
    """A query, and what each step of a search does with it."""

    text: str  # the sentence, or the path of the query video
    rows: Tensor  # (N, D') of its words, or of the clips of the query video
    vector: Tensor | None  # (J,) of the sentence; None for a query video
    clip_s: float
    shown: float | None = None  # see `mrlib.video.zero_shot.exists`

    @property
    def by_clip(self) -> bool:
        """Whether the query is a clip, not a sentence."""
        return self.vector is None

    @property
    def window(self) -> int:
        """Clips of a window without a retriever: 150 s, or twice the clip, so that what it shows lies whole in one."""
        usual = max(1, round(USUAL_S / self.clip_s))
        return max(usual, 2 * len(self.rows)) if self.by_clip else usual

    def best_windows(self, bank: Bank, windows: Windows, most: int) -> tuple[Tensor, Tensor, float]:
        """The coarse step.

        windows  of the bank's videos
        most     windows to return, at most
        returns  int64 (K,) numbers of the best ones, best first; (K,) their scores; the existence score of a sentence,
                 1 for a clip
        """
        if self.by_clip:
            return *best_by_clip(bank, windows, normalised(self.rows), most), 1.0
        cosines = cosines_with(bank, self.vector)
        best = best_by_cosine(windows, smoothed(cosines, bank.lengths), most)
        return *best, zero_shot.exists(cosines.numpy(), self.shown)

    def moment_in(self, window: Window) -> tuple[float, float, float]:
        """The fine step without training: start and end, in seconds of the video, and score of the best moment."""
        answer = zero_shot.by_rows if self.by_clip else zero_shot.by_vector
        what = normalised(self.rows) if self.by_clip else self.vector  # as the rows of a corpus
        (start, end, score), *_ = answer(window.rows, what, self.clip_s, window.duration_s, 1)[0]
        return window.start_s + start, window.start_s + end, score

    def of(self, model: MomentRetriever) -> Query:
        """The query as a retriever reads it."""
        if self.by_clip:
            return retrievers.query_of_clip(model, self.text, self.rows)
        return retrievers.query_of_words(model, self.text, self.rows, self.vector)
