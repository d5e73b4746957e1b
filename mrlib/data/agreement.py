"""What the lines of a file, or the samples of a dataset, must agree on.

All have windows, or none has; all have saliency scores of equally many annotators; lines about one video give it one
duration, and lines with one query about one video give its clips the same labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from mrlib.data import Sample
from mrlib.data.clips import require_clip_s
from mrlib.data.lines import Defect, clip_labels, label_scale, line_defects, short

_LABELS = "labels of clips"
_OTHER_FILE = "put them into a file of their own, or take them out"


def disagreements(
    samples: Sequence[Sample | None], numbers: Sequence[int | None], *, alike: bool
) -> dict[int, list[Defect]]:
    """The defects of samples that contradict others, by their position.

    samples  checked line by line; None: there is no sample at this position
    numbers  of the lines, for messages
    alike    all must have windows, or all must have none

    Where the samples are of two kinds, those of the rarer kind have the defect. Of two samples that contradict each
    other about a video, it is the second.
    """
    found: dict[int, list[Defect]] = defaultdict(list)
    kept = {i: sample for i, sample in enumerate(samples) if sample is not None}
    checks = [other_kinds] if alike else []
    for check in (*checks, _other_annotators):
        for i, defect in check(kept).items():
            found[i].append(defect)
            del kept[i]
    for i, defect in _other_facts(kept, numbers):
        found[i].append(defect)
    return dict(found)


def require_sound(samples: Sequence[Sample], clip_s: float, *, scored: bool) -> None:
    """ValueError, naming qid and field, unless samples pass the check of annotation files.

    clip_s  seconds per clip
    scored  they will be scored, so a pair of qid and vid comes once
    """
    require_clip_s(clip_s)
    seen = set()
    for sample in samples:
        for defect in line_defects(sample.as_line(), clip_s, words=bool(sample.query)):
            if defect.fatal:
                raise ValueError(f"qid {short(sample.qid)}: {defect.field} {defect.message}")
        if scored and (key := (str(sample.qid), sample.vid)) in seen:
            raise ValueError(f"qid {short(sample.qid)}: comes twice on video {short(sample.vid)}; it is scored once")
        seen.add(key if scored else None)
    for i, found in disagreements(samples, [None] * len(samples), alike=False).items():
        raise ValueError(f"qid {short(samples[i].qid)}: {found[0].field} {found[0].message}")


def kind_of(sample: Sample) -> str:
    """What a sample is annotated with: "windows", which may be an empty list, "labels of clips" of a scale, or ""."""
    if sample.relevant_windows is not None:
        return "windows"
    labels = labels_of(sample)
    return "" if labels is None else f"{_LABELS} {label_scale(labels)}".rstrip()


def labels_of(sample: Sample) -> list[list[float]] | None:
    """The labels of every clip of a sample without windows, a row of the annotators for each; None if it has none."""
    labels = clip_labels({"label": sample.extra.get("label")})
    return labels if sample.relevant_windows is None and isinstance(labels, list | tuple) else None


def other_kinds(samples: dict[int, Sample]) -> dict[int, Defect]:
    """A defect for every sample that is annotated in another way than most."""
    kinds = {i: kind_of(sample) for i, sample in samples.items()}
    counts = Counter(kinds.values())
    if _LABELS in counts and len(counts) > 1:  # labels of 1 alone fit both scales
        fitting = max((k for k in counts if k.startswith(f"{_LABELS} ")), key=counts.__getitem__, default=_LABELS)
        kinds = {i: fitting if kind == _LABELS else kind for i, kind in kinds.items()}
        counts = Counter(kinds.values())
    if len(counts) < 2:
        return {}
    usual = max(counts, key=lambda kind: (counts[kind], kind == "windows", kind))
    most = f"{counts[usual]} of {len(kinds)} lines have {usual or 'no annotation'}"
    return {i: _other_kind(kind, most, usual) for i, kind in kinds.items() if kind != usual}


def _other_kind(kind: str, most: str, usual: str) -> Defect:
    if kind:
        field = "relevant_windows" if kind == "windows" else "label"
        return Defect(field, f"the line has {kind}, but {most}; {_OTHER_FILE}")
    if usual == "windows":
        return Defect("relevant_windows", f"is missing, but {most}; add them, [] if nothing answers the query")
    return Defect("label", f"is missing, but {most}; add it, or take the line out")


def _other_annotators(samples: dict[int, Sample]) -> dict[int, Defect]:
    """A defect for every sample whose saliency scores are those of more or fewer annotators than most."""
    widths = {i: len(sample.saliency_scores[0]) for i, sample in samples.items() if sample.saliency_scores}
    counts = Counter(widths.values())
    if len(counts) < 2:
        return {}
    usual = max(counts, key=lambda width: (counts[width], width))
    most = f"{counts[usual]} of {len(widths)} lines with scores have {usual}"
    return {
        i: Defect("saliency_scores", f"has {width} scores for each clip, but {most}; {_OTHER_FILE}")
        for i, width in widths.items()
        if width != usual
    }


def _other_facts(samples: dict[int, Sample], numbers: Sequence[int | None]) -> list[tuple[int, Defect]]:
    """A defect for every sample that says something else about its video than an earlier sample."""
    found, first = [], {}
    for i, sample in samples.items():
        facts = {("duration", sample.vid): sample.duration}
        if (labels := labels_of(sample)) is not None:
            facts["label", sample.vid, sample.query] = labels  # another query may have other labels
        for key, value in facts.items():
            field = key[0]
            earlier, position = first.setdefault(key, (value, i))
            if earlier != value and not (field == "duration" and abs(earlier - value) <= 1e-6):
                place = f"on line {numbers[position]}" if numbers[position] is not None else "before"
                values = f"is {value:g} s, but {earlier:g} s" if field == "duration" else "differs from the one"
                message = f"{values} of the same video, {short(sample.vid)}, {place}; correct one of the two"
                found.append((i, Defect(field, message)))
    return found
