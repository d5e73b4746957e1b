"""Load checkpoints of the official releases as our models.

Here     `load_official` reads the files that Moment-DETR and its descendants write: a dict of model, optimizer,
         lr_scheduler, epoch and opt. Only tensors, plain values and the `argparse.Namespace` of options are unpickled.
         The network is built from `opt` and checked against every tensor; each paper's file has its `Release`
Departs  options of what the official scripts do around the network are ignored: weights of losses, rounding,
         suppression. The released UniVTG has no forward pass for `pre_norm`; it is read as MATR's
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrlib.arguments import require
from mrlib.data import Widths
from mrlib.papers.models import build, prepare
from mrlib.papers.registry import RELEASES
from mrlib.papers.settings import get
from mrlib.retriever import MomentRetriever

Tensors = dict[str, Tensor]
SHOWN = 10  # most keys that an error lists


@dataclass(frozen=True)
class Release:
    """How one official repository stores its network."""

    preset: str  # of the paper: the behaviour of the released code
    settings: Callable[[Options, Tensors], dict[str, Any]]  # further settings of `mrlib.papers.get`
    names: tuple[
        tuple[str, str | Callable], ...
    ]  # substitutions of `re.sub` that turn our name of a tensor into theirs
    transposed: tuple[str, ...] = ()  # official tensors that are stored transposed
    unread: tuple[str, ...] = ()  # beginnings of official names that no prediction reads, unless `names` leads to them
    corrected: Mapping[str, Any] = field(default_factory=dict)  # settings under which padding has no effect
    plain: Callable[[Tensors], Tensors] = dict  # official tensors -> the same, each once and in our shape
    # those of `PREPARATIONS` that the network went through
    prepared: Callable[[Options, Tensors], tuple[str, ...]] = lambda opt, tensors: ()

    def official_name(self, name: str) -> str:
        """The official name of one of our tensors."""
        for pattern, replacement in self.names:
            name = re.sub(pattern, replacement, name)
        return name


class Options(dict[str, Any]):
    """The `opt` of a checkpoint."""

    def read(self, name: str, kind: type) -> Any:
        """The value of an option; ValueError if it is missing or of another type."""
        if name not in self:
            raise ValueError(f"opt has no {name}; give a checkpoint that the official training script saved")
        value = self[name]
        fits = type(value) is kind or (kind is float and type(value) is int)
        require(fits, f"{name} of opt", value, f"of type {kind.__name__}")
        return value


def load_official(path: str | os.PathLike, paper: str, corrected: bool = False) -> MomentRetriever:
    """The model of a checkpoint that an official release wrote, on the CPU, in evaluation mode.

    path       the file
    paper      a name of `RELEASES`
    corrected  False: the outputs are those of the official network for a padded batch. True: those of the official
               network for each sample alone, whatever the padding
    raises     ValueError that names the file and the keys and shapes that do not fit; FileNotFoundError
    """
    if paper not in RELEASES:
        raise ValueError(f"unknown release {paper!r}; known: {', '.join(RELEASES)}")
    release = RELEASES[paper]
    tensors, options = _read(Path(path))
    try:
        settings = release.settings(options, tensors) | (dict(release.corrected) if corrected else {})
        with torch.device("meta"):  # no memory is used before the shapes are known to fit
            retriever = build(get(paper, preset=release.preset, **settings), _widths(options, tensors), seed=0)
            for name in release.prepared(options, tensors):
                prepare(retriever, name)
        tensors = release.plain(tensors)
    except ValueError as error:
        raise ValueError(f"{path} does not describe a network that can be built: {error}") from error
    retriever.load_state_dict(_matched(path, release, retriever.state_dict(), tensors), assign=True)
    return retriever.eval()


def _read(path: Path) -> tuple[Tensors, Options]:
    """The tensors and options of a checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or no file; give the path of an official checkpoint")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, since the file may hold anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ValueError(
                f"{path} holds {refused[1]}; only tensors, plain values and an argparse.Namespace are unpickled"
            ) from None
        raise ValueError(
            f"{path} is not a whole checkpoint of PyTorch ({type(error).__name__}); copy it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of model and opt")
    missing = [name for name in ("model", "opt") if name not in content]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}; it has {_listed(map(str, content))}")
    model, opt = content["model"], content["opt"]
    if not isinstance(opt, argparse.Namespace):
        raise ValueError(f"opt of {path} is a {type(opt).__name__}, not an argparse.Namespace")
    if not isinstance(model, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in model.items()):
        raise ValueError(f"model of {path} is not a dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in model.items()}, Options(vars(opt))


def _matched(path: str | os.PathLike, release: Release, ours: Tensors, tensors: Tensors) -> Tensors:
    """The official tensors under our names; ValueError unless they are exactly ours, in our shapes."""
    official = {name: release.official_name(name) for name in ours}
    shapes = {official[name]: tuple(tensor.shape) for name, tensor in ours.items()}
    shapes |= {name: shapes[name][::-1] for name in release.transposed}
    unread = tuple(module for module in release.unread if not any(name.startswith(module) for name in shapes))
    wrong = {
        "missing": [name for name in shapes if name not in tensors],
        "unexpected": [name for name in tensors if name not in shapes and not name.startswith(unread)],
        "of another shape": [
            f"{name} expected {shape} found {tuple(tensors[name].shape)}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    if any(wrong.values()):
        problems = (f"{len(names)} {what}: {_listed(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"{path} does not fit the network that its opt describes; {'; '.join(problems)}")
    return {
        name: (tensors[key].mT if key in release.transposed else tensors[key]).float().contiguous()
        for name, key in official.items()
    }


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _widths(opt: Options, tensors: Tensors) -> Widths:
    """D and D'. The official scripts add 2 for TEF before they store `v_feat_dim`; files without the 2 work too."""
    target = opt.read("v_feat_dim", int)
    norm = tensors.get("input_vid_proj.0.LayerNorm.weight")  # as wide as what the network reads
    ends = 2 if "tef" in opt.read("ctx_mode", str) else 0
    if norm is None or len(norm) != target + ends:
        target -= ends
    require(target >= 1, "v_feat_dim of opt", opt["v_feat_dim"], "the width of the video's features")
    return Widths(target=target, query=opt.read("t_feat_dim", int), joint=None)
