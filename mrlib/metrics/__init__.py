"""Metrics of moment retrieval and highlight detection, equal to the official evaluators digit for digit.

    python -m mrlib.metrics predictions.jsonl ground_truth.jsonl

Paper    Lei et al., "QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries",
         NeurIPS 2021 (arXiv 2107.09609); its evaluator is `jayleicn/moment_detr`, standalone_eval
Here     `evaluate` gives what that evaluator prints, to the last digit, for all queries at once: `moments` has its
         scores of moments, `highlights` those of clips, with [TVSum] and YouTube Highlights, `generalized` the scores
         of [GMR] for queries with nothing to find; `moment_scores` gives what other papers report beside it, with the
         multi-moment scores of [QV-M2]; `spurious` scores predictions for videos whose moments were removed
         [TD-DETR, spurious]; `report` prints them
Departs  the evaluator raises an error for a query with no or few predictions, an empty length range and a truth without
         saliency; here they are scored or left out. The evaluator mixes two lines of one id; here they are an error,
         unless each is for another video (a query video searches several): pairs of query and video are scored then
"""

from mrlib.files import read_jsonl
from mrlib.metrics import generalized
from mrlib.metrics.evaluator import evaluate
from mrlib.metrics.highlights import LEVELS, TOP_CLIPS
from mrlib.metrics.masked import spurious
from mrlib.metrics.moments import IOUS, MAX_MOMENTS, RANGES_S
from mrlib.metrics.multi import moment_scores
from mrlib.metrics.tables import main, report

__all__ = [
    "IOUS",
    "LEVELS",
    "MAX_MOMENTS",
    "RANGES_S",
    "TOP_CLIPS",
    "evaluate",
    "generalized",
    "main",
    "moment_scores",
    "read_jsonl",
    "report",
    "spurious",
]
