"""All scores of two files as printed tables: what `python -m mrlib.metrics` does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mrlib.arguments import printing
from mrlib.data import Sample
from mrlib.data.annotations import load_annotations
from mrlib.data.lenient import Mode
from mrlib.files import read_jsonl
from mrlib.metrics import generalized
from mrlib.metrics.evaluator import evaluate
from mrlib.metrics.moments import RANGES_S
from mrlib.metrics.multi import moment_scores
from mrlib.metrics.reading import matched_lines, ranked_lines, with_windows

_WHOSE = "(mR@k and mIoU@k are those of {})"  # of two benchmarks, each with its own


def report(
    predictions: Sequence[Mapping], ground_truth: Sequence[Mapping], clip_s: float = 2.0, *, unscored: bool = False
) -> str:
    """All scores as a text of tables, "brief" first; arguments as in `evaluate`."""
    predictions = ranked_lines(predictions) if unscored else predictions
    scores = evaluate(predictions, ground_truth, clip_s)
    both = "mR@1" in scores["brief"]  # scores of this name are in two of the tables
    brief = {name: {"": value} for name, value in scores["brief"].items()}
    tables = [_table("brief", brief, _WHOSE.format("Soccer-GMR") if both else "")]
    if "AUROC" in brief:
        lines, truth = matched_lines(predictions, ground_truth)
        tables.append(generalized.note(lines, len(truth) - len(with_windows(lines, truth)[1])))
    ranges = [name for name in RANGES_S if name in scores]
    for metric in ("MR-mAP", "MR-R1") if ranges else ():
        tables.append(_table(f"{metric} by IoU", {name: scores[name][metric] for name in ranges}))
    if levels := {name: scores[name] for name in scores if name.startswith("HL-min")}:
        tables.append(_table("highlights", levels))
    if ranges:
        groups = moment_scores(predictions, ground_truth, clip_s)
        rows = {metric: {name: row.get(metric, "-") for name, row in groups.items()} for metric in groups["all"]}
        tables.append(_table("by number of annotated windows", rows, _WHOSE.format("QV-M2") if both else ""))
    return "\n\n".join(tables)


def _table(title: str, rows: dict[str, dict[str, Any]], caption: str = "") -> str:
    """Rows of values below the title and the names of the columns, a caption between both if there is one."""
    cells = {title: list(next(iter(rows.values())))}  # the names of the columns, then their values
    for name, row in rows.items():
        cells[name] = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
    left = max(map(len, cells))
    head, *rest = ((n.ljust(left) + "".join(f"{cell:>9}" for cell in row)).rstrip() for n, row in cells.items())
    return "\n".join([head, *filter(None, [caption]), *rest])


def _read_truth(path: str, clip_s: float, bad: Mode | None) -> Sequence[Mapping | Sample]:
    """The lines of a truth file; with `bad`, the samples that a dataset opened so has."""
    if bad is None:
        return read_jsonl(path)
    return load_annotations(path, clip_s, bad=bad)


@printing()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores of two files; a line on stderr and exit code 1 if they cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m mrlib.metrics", description="Score predicted moments and highlights."
    )
    parser.add_argument(
        "predictions", help=".jsonl or .jsonl.gz, lines with qid, pred_relevant_windows, pred_saliency_scores"
    )
    parser.add_argument("ground_truth", help=".jsonl or .jsonl.gz, lines in the QVHighlights schema")
    parser.add_argument("--clip-s", type=float, default=2.0, help="seconds per clip; default 2, Charades-STA has 1")
    parser.add_argument("--unscored", action="store_true", help="windows are [start, end], best first")
    parser.add_argument(
        "--bad", choices=["skip", "clamp"], help="what to do with odd lines of the truth, as in training"
    )
    given = parser.parse_args(arguments)
    try:
        files = [read_jsonl(given.predictions), _read_truth(given.ground_truth, given.clip_s, given.bad)]
    except (OSError, ValueError) as error:
        sys.exit(f"mrlib.metrics: {error}")
    try:
        print(report(*files, given.clip_s, unscored=given.unscored))
    except ValueError as error:
        sys.exit(f"mrlib.metrics: {given.predictions} with the ground truth {given.ground_truth}: {error}")
