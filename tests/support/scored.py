"""Lines of predictions with their truth: of one query, and the official sample of QVHighlights."""

import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from mrlib.metrics import read_jsonl

GOOD = {"qid": 1, "pred_relevant_windows": [[0, 10, 0.5]], "pred_saliency_scores": [0.5]}
TRUTH = {
    "qid": 1,
    "duration": 10,
    "relevant_windows": [[0, 10]],
    "relevant_clip_ids": [0],
    "saliency_scores": [[1, 2, 3]],
}


@cache
def official_sample():
    """The sample predictions of QVHighlights, their truth and their official scores; the test is skipped without."""
    if "MRLIB_DATA" not in os.environ:
        pytest.skip("MRLIB_DATA, the folder of the real annotations, is not set")
    root = Path(os.environ["MRLIB_DATA"]) / "qvhighlights"
    sample = root / "official_eval" / "sample_val_preds.jsonl"
    return SimpleNamespace(
        predictions=read_jsonl(sample),
        truth=read_jsonl(root / "highlight_val_release.jsonl"),
        scores=json.loads(sample.with_name("sample_val_preds_metrics_raw.json").read_text()),
    )


def retrieval(moments, windows, qid=1):
    """One query: [(start, end, score), ...] predicted, [(start, end), ...] annotated."""
    line = {"qid": qid, "pred_relevant_windows": [list(moment) for moment in moments]}
    return [line], [{"qid": qid, "relevant_windows": [list(window) for window in windows]}]


def highlights(scores, clips, saliency, duration=10):
    """One query: predicted scores; annotated clips with the three scores of each."""
    truth = {"qid": 1, "duration": duration, "relevant_clip_ids": clips, "saliency_scores": saliency}
    return [{"qid": 1, "pred_saliency_scores": scores}], [truth]


def labelled(scores, annotators, qid=1, **truth):
    """One video: predicted scores; of each annotator the labels of all clips."""
    line = {"qid": qid, "label": [list(clip) for clip in zip(*annotators, strict=True)]}
    return [{"qid": qid, "pred_saliency_scores": scores}], [line | truth]


def youtube(*videos):
    """Predictions and truth of videos, each as (scores, labels, domain)."""
    lines = [{"qid": i, "pred_saliency_scores": scores} for i, (scores, _, _) in enumerate(videos)]
    truth = [{"qid": i, "label": [[x] for x in row], "domain": domain} for i, (_, row, domain) in enumerate(videos)]
    return lines, truth
