"""`get`: a paper by its name, with some of its settings changed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from mrlib.arguments import is_plain, keyword_defaults, require, require_like
from mrlib.papers.registry import PAPERS, PRESETS
from mrlib.papers.schema import Choice, Optimiser, Paper, Schedule, Stage, are_texts
from mrlib.papers.slots import ALIGNERS, AUGMENTERS, DETECTORS, SMALL


def get(name: str, size: str = "paper", preset: str | None = None, **settings: Any) -> Paper:
    """A paper, with any of its settings changed: first by its size, then by the preset, then by `settings`.

    name      one of `PAPERS`
    size      "paper", or "small" for the small simulated world
    preset    a named set of settings of `PRESETS`
    settings  a field of the paper; an option of its aligner or detector, of both if both have it; a field of its
              stages, or of their optimiser or schedule; an option of their augmenters, where they have it.
              **{"stage.field": value} sets one stage only. `aligner` and `detector` take a name, `stages` a list of the
              stages to keep; `epochs` sets the last stage and scales the others
    raises    ValueError that names an unknown paper, size, preset or setting, or a value that does not fit
    """
    if name not in PAPERS:
        raise ValueError(f"unknown paper {name!r}; known: {', '.join(PAPERS)}")
    if size not in ("paper", "small"):
        raise ValueError(f"unknown size {size!r}; known: paper, small")
    presets = PRESETS.get(name, {})
    if preset is not None and preset not in presets:
        raise ValueError(f"unknown preset {preset!r} of {name}; known: {', '.join(presets)}")
    paper = PAPERS[name]
    for key, value in settings.items():
        require(is_plain(value), key, value, "a plain value: a number, text, or lists and dicts of them")
    given = {"name": name, "size": size, "preset": preset} | settings
    parts = ("aligner", "detector", "stages")
    for table in (presets.get("small", {}) if size == "small" else {}, presets.get(preset, {}), settings):
        # parts first, then augmenters: the other settings may be options of those
        for key in sorted(table, key=lambda k: (k not in parts, k.rpartition(".")[2] != "augment")):
            paper = _changed(paper, key, table[key], size)
    return replace(paper, given=given)


def usual(name: str, dataset: str) -> dict[str, str | None]:
    """Size and preset of `get` for a dataset: small for the simulator, the paper's numbers for files."""
    preset = dataset if dataset in PRESETS.get(name, {}) else None
    return {"size": "small" if dataset == "sim" else "paper", "preset": preset}


def _choice(slot: str, name: str, size: str) -> Choice:
    """The part of this name, with the options of the first paper that has it; else with its defaults, see `SMALL`."""
    known = ALIGNERS if slot == "aligner" else DETECTORS
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown {slot} {name!r}; known: {', '.join(known)}")
    choices = (getattr(get(paper, size), slot) for paper in PAPERS)
    default = Choice(name, SMALL.get(name, {}) if size == "small" else {})
    return next((choice for choice in choices if choice.name == name), default)


def _changed(paper: Paper, key: str, value: Any, size: str) -> Paper:
    """A paper with one setting changed; `key` as in `get`."""
    stage_name, _, name = key.rpartition(".")
    if stage_name:
        known = [s.name for s in paper.stages]
        if stage_name not in known:
            raise ValueError(f"{key!r}: {paper.name} has no stage {stage_name!r}; it has {', '.join(known)}")
        return _with_stage_field(paper, key, stage_name, name, value)
    if name in ("aligner", "detector"):
        same = getattr(paper, name).name == value
        return paper if same else replace(paper, **{name: _choice(name, value, size)})
    if name in ("query", "streams", "round_s", "max_windows"):
        return replace(paper, **{name: value})
    if name == "stages":
        return replace(paper, stages=_some_stages(paper, value))
    choices = _with_option(paper, key, value)
    if choices:
        return replace(paper, **choices)
    if name == "epochs":
        return replace(paper, stages=_with_epochs(paper, key, value))
    return _with_stage_field(paper, key, "", name, value)


def _with_option(paper: Paper, name: str, value: Any) -> dict[str, Choice]:
    """The choices of the slots whose part has this option, with the option changed; empty if no part has it."""
    choices = {}
    for slot, builders in (("aligner", ALIGNERS), ("detector", DETECTORS)):
        choice = getattr(paper, slot)
        defaults = keyword_defaults(builders[choice.name])
        if name in defaults or name in choice.options:
            if value is not None or defaults.get(name, ...) is not None:
                require_like((defaults | dict(choice.options))[name], name, value)
            choices[slot] = replace(choice, options={**choice.options, name: value})
    return choices


def _with_epochs(paper: Paper, key: str, value: Any) -> tuple[Stage, ...]:
    """The stages with so many epochs in the last one, the others scaled in proportion."""
    require(type(value) is int, key, value, "a whole number from 1 on")
    share = value / paper.stages[-1].epochs
    earlier = [replace(s, epochs=max(1, round(s.epochs * share))) for s in paper.stages[:-1]]
    return (*earlier, replace(paper.stages[-1], epochs=value))


def _some_stages(paper: Paper, names: Any) -> tuple[Stage, ...]:
    """The stages of these names; a `start` or `teacher` that refers to a stage left out becomes None."""
    known = [s.name for s in paper.stages]
    fits = are_texts(names) and len(names) > 0 and set(names) <= set(known)
    require(fits, "stages", names, f"a list of some of {', '.join(known)}")
    kept = []
    for stage in paper.stages:
        sources = {name: getattr(stage, name) for name in ("start", "teacher")}
        missing = [name for name, source in sources.items() if source is not None and source[0] not in names]
        if stage.name in names:
            kept.append(replace(stage, **dict.fromkeys(missing)))
    return tuple(kept)


def _with_stage_field(paper: Paper, key: str, stage_name: str, name: str, value: Any) -> Paper:
    """A paper with a field changed in one stage, or in every stage that has it if no stage is named."""
    chosen = [s for s in paper.stages if stage_name in ("", s.name)]
    chosen = [s for s in chosen if name in keyword_defaults(AUGMENTERS[s.augment])] or chosen
    stages = {s.name: _changed_stage(s, key, name, value) for s in chosen}
    return replace(paper, stages=tuple(stages.get(s.name, s) for s in paper.stages))


def _changed_stage(stage: Stage, key: str, name: str, value: Any) -> Stage:
    """A stage with one field changed: its own, its optimiser's, its schedule's, or an option of its augmenter."""
    stage_fields = [f.name for f in fields(Stage) if f.name not in ("name", "optimiser", "schedule")]
    if name == "augment" and value != stage.augment:  # a new augmenter has options of its own
        stage = replace(stage, augment_options={})
    if name in stage_fields:
        return replace(stage, **{name: _checked(stage, key, name, value)})
    for part in ("optimiser", "schedule"):
        before = getattr(stage, part)
        if name in (f.name for f in fields(before)):
            return replace(stage, **{part: replace(before, **{name: _checked(before, key, name, value)})})
    options = keyword_defaults(AUGMENTERS[stage.augment])
    if name in options:
        require_like(options[name], key, value)
        return replace(stage, augment_options={**stage.augment_options, name: value})
    parts = [f.name for f in (*fields(Optimiser), *fields(Schedule))]
    raise ValueError(
        f"unknown setting {key!r}; a paper has aligner, detector, stages, query, streams, round_s, max_windows and the "
        f"options of its aligner and detector, a stage has {', '.join([*stage_fields, *parts, *options])}"
    )


def _checked(part: Stage | Optimiser | Schedule, key: str, name: str, value: Any) -> Any:
    """The value; ValueError unless it has the type of the field, or is None and None is the default."""
    defaults = {f.name: f.default for f in fields(part)}
    if value is not None or defaults[name] is not None:
        require_like(getattr(part, name), key, value)
    return value
