"""Load checkpoints of the official releases as our models.

Here     `load_official` reads the files that Moment-DETR and its descendants write, a dict of model, optimizer,
         lr_scheduler, epoch and opt, and those of Lighthouse and Lightning; `read_saved` says what is unpickled. The
         network is built from the options and checked against every tensor; each paper's file has its `Release`
Departs  options of what the official scripts do around the network are ignored: weights of losses, rounding,
         suppression. The released UniVTG has no forward pass for `pre_norm`; it is read as MATR's
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mrlib.arguments import require, shown
from mrlib.data import Widths
from mrlib.papers.models import build, prepare
from mrlib.papers.networks import network_of, refusal
from mrlib.papers.registry import RELEASES
from mrlib.papers.saved import read_saved
from mrlib.papers.settings import get
from mrlib.retriever import MomentRetriever, Training

Tensors = dict[str, Tensor]
SHOWN = 10  # most keys that an error lists
_MODELS = ("model", "state_dict", "model_state_dict")  # under which checkpoints have their tensors
_OPTIONS = ("opt", "args", "config", "cfg")  # under which they have the options of the training
_WRAPPERS = {"module", "_orig_mod", "model"}  # parts of names that DataParallel, torch.compile and Lightning add
_MOST_LAYERS = 64  # more than any release has; a network of so many is built in less than a second
_LIGHTHOUSE = {"use_txt_pos": False, "pre_norm": False}  # with which Lighthouse builds all its networks
_LARGEST_JSON = 2**20  # bytes of an opt.json
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Release:
    """How one official repository stores its network."""

    preset: str  # of the paper: the behaviour of the released code
    settings: Callable[[Options, Tensors], dict[str, Any]]  # further settings of `mrlib.papers.get`
    names: tuple[
        tuple[str, str | Callable], ...
    ]  # substitutions of `re.sub` that turn our name of a tensor into theirs, without the parts of `_WRAPPERS`
    transposed: tuple[str, ...] = ()  # official tensors that are stored transposed
    unread: tuple[str, ...] = ()  # beginnings of official names that no prediction reads, unless `names` leads to them
    corrected: Mapping[str, Any] = field(default_factory=dict)  # settings under which padding has no effect
    plain: Callable[[Tensors], Tensors] = dict  # official tensors -> the same, each once and in our shape
    paper: str | None = None  # whose settings are changed to describe the network; None: its own
    # those of `PREPARATIONS` that the network went through
    prepared: Callable[[Options, Tensors], tuple[str, ...]] = lambda opt, tensors: ()

    def official_name(self, name: str) -> str:
        """The official name of one of our tensors."""
        for pattern, replacement in self.names:
            name = re.sub(pattern, replacement, name)
        return name


class Options(dict[str, Any]):
    """The `opt` of a checkpoint."""

    def __init__(self, values: Mapping[str, Any], widest: int):
        """widest  the largest dimension of the checkpoint's tensors, which no size can exceed"""
        super().__init__(values)
        self.widest = widest

    def read(self, name: str, kind: type) -> Any:
        """The value of an option; ValueError if it is missing or of another type, or infinite, or a long text."""
        if name not in self:
            raise ValueError(f"opt has no {name}; give a checkpoint that the official training script saved")
        value = self[name]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if kind is float and fits:
            fits = abs(value) < 1e30  # not NaN either
        self._require(fits and not (kind is str and len(value) > 80), name, f"of type {kind.__name__}")
        return value

    def size(self, name: str) -> int:
        """A width, or a number of vectors; ValueError unless it is 1 or more, and not above all the file's tensors."""
        most = f"at most {self.widest}, the largest size of the file's tensors"
        self._require(1 <= self.read(name, int) <= self.widest, name, f"1 or more, and {most}")
        return self[name]

    def layers(self, name: str, least: int = 1) -> int:
        """A number of layers; ValueError unless it is `least` or more, and not far above that of every release."""
        fits = least <= self.read(name, int) <= _MOST_LAYERS
        self._require(fits, name, f"{least} or more, and at most {_MOST_LAYERS}")
        return self[name]

    def share(self, name: str) -> float:
        """A probability of dropout; ValueError unless it is from 0 to 1."""
        self._require(0 <= self.read(name, float) <= 1, name, "from 0 to 1")
        return self[name]

    def refuse(self, name: str, reason: str) -> None:
        """ValueError if an option is there that the network cannot have: it must be missing, None or 0."""
        value = self.get(name)
        self._require(value is None or (type(value) is int and value == 0), name, f"None: {reason}")

    def _require(self, fits: bool, name: str, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{name} of opt must be {wanted}, not {shown(self.get(name))}")


def load_official(path: str | os.PathLike, paper: str | None = None, corrected: bool = False) -> MomentRetriever:
    """The model of a checkpoint that an official release wrote, on the CPU, in evaluation mode.

    path       the file; options that it lacks are read from an opt.json beside it
    paper      a name of `RELEASES`; None: the one that the names of its tensors tell
    corrected  False: the outputs are those of the official network for a padded batch. True: those of the official
               network for each sample alone, whatever the padding
    raises     ValueError that names the file and the keys, shapes or options that do not fit; FileNotFoundError
    """
    if paper is not None and paper not in RELEASES:
        raise ValueError(f"unknown release {paper!r}; known: {', '.join(RELEASES)}")
    path = Path(path)
    tensors, options = _read(path)
    paper = paper or network_of(tensors, options)
    if paper is None:
        raise ValueError(f"{path} does not tell whose network it holds; known: {', '.join(RELEASES)}")
    if (reason := refusal(paper, tensors, options)) is not None:
        raise ValueError(f"{path} {reason}")
    if paper not in RELEASES:
        raise ValueError(f"{path} holds a network of {paper}, which cannot be loaded; known: {', '.join(RELEASES)}")
    release = RELEASES[paper]
    _require_floats(path, {name: x for name, x in tensors.items() if not name.startswith(release.unread)})
    try:
        settings = release.settings(options, tensors) | (dict(release.corrected) if corrected else {})
        with torch.device("meta"), _Unset():  # no memory is used before the shapes are known to fit
            described = get(release.paper or paper, preset=release.preset, **settings)
            retriever = build(described, _widths(options, tensors), seed=0)
            for name in release.prepared(options, tensors):
                prepare(retriever, name)
        tensors = release.plain(tensors)
    except ValueError as error:
        raise ValueError(f"{path} does not describe a network that can be built: {error}") from error
    retriever.load_state_dict(_matched(path, release, retriever.state_dict(), tensors), assign=True)
    retriever.training_data = _training_data(options, retriever.recipe["widths"]["target"], described.query)
    return retriever.eval()


class _Unset(TorchFunctionMode):
    """Leave out the initial values of parameters, which take seconds to compute for the first "meta" tensor."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if function is Tensor.mul:  # a draw times a number
            return args[0]
        return (torch.empty if function is torch.randn else function)(*args, **kwargs)


def _training_data(opt: Options, width: int, query: str) -> Training:
    """What the options say about the data of the training; official loaders normalise unless they say otherwise."""
    folders = opt.get("v_feat_dirs")
    named = [str(folder).lower() for folder in folders] if isinstance(folders, list | tuple) else []
    streams = {"slowfast": 2304, "clip": 512}  # of the published features
    streams = {name: w for name, w in streams.items() if any(name in folder for folder in named)}
    streams = streams if sum(streams.values()) == width else {"features": width}
    clip_s, clips, tokens = (opt.get(name) for name in ("clip_length", "max_v_l", "max_q_l"))
    normalised = [name for name in streams if opt.get("no_norm_vfeat") is not True]
    return Training(
        streams=streams,
        clip_s=float(clip_s) if type(clip_s) in (int, float) and 0 < clip_s < 1e3 else None,
        clips=clips if type(clips) is int and clips >= 1 else None,
        normalize=(*normalised, *(() if opt.get("no_norm_tfeat") is True else ("query",))),
        query=query,
        tokens=tokens if type(tokens) is int and tokens >= 1 else None,
    )


def _read(path: Path) -> tuple[Tensors, Options]:
    """The tensors and options of a checkpoint, under their own names, whatever has wrapped the network."""
    content = read_saved(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {shown(content)}, not a dict of model and opt")
    model = _model(content)
    if not isinstance(model, Mapping):
        raise ValueError(f"{path} has no model; it has {_listed(content)}")
    if not model or not all(isinstance(k, str) and isinstance(x, Tensor) for k, x in model.items()):
        raise ValueError(f"model of {path} is not a dict of tensors")
    options, tensors = _options(path, content), {}
    for name, tensor in model.items():
        name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if name in tensors:
            raise ValueError(f"model of {path} has two tensors named {_listed([name])}; save one network alone")
        tensors[name] = tensor
    if "model_name" in options:
        options = _LIGHTHOUSE | options
    return tensors, Options(
        options, max((max(x.shape) for x in tensors.values() if _is_whole(x) and x.ndim), default=0)
    )


def _model(content: Mapping[str, Any]) -> Any:
    """The tensors of a checkpoint: its entry of `_MODELS`, or one within that, or the checkpoint itself; None: none."""
    entry = content
    for _ in range(2):
        name = next((name for name in _MODELS if isinstance(entry, Mapping) and name in entry), None)
        entry = entry if name is None else entry[name]
    return entry if entry is not content or any(isinstance(x, Tensor) for x in content.values()) else None


def _options(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a checkpoint: its entry of `_OPTIONS`, those of Lightning, or those of the opt.json beside it."""
    hyper = content.get("hyper_parameters")
    places = (_first_of(_OPTIONS, x) for x in (content, hyper if isinstance(hyper, Mapping) else {}))
    found = next((x for x in (*places, hyper) if isinstance(x, argparse.Namespace | Mapping) and x), None)
    if found is not None:
        return dict(vars(found) if isinstance(found, argparse.Namespace) else found)
    beside = path.with_name("opt.json")
    if not beside.is_file():
        hint = "put the opt.json of its training into its folder"
        raise ValueError(f"{path} has no opt; it has {_listed(content)}; {hint}")
    return _of_json(beside)


def _first_of(names: Iterable[str], content: Mapping[str, Any]) -> Any:
    """The first entry of these names that holds options."""
    return next((content[k] for k in names if isinstance(content.get(k), argparse.Namespace | Mapping)), None)


def _of_json(file: Path) -> dict[str, Any]:
    """The options in a JSON file."""
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it has more than {_LARGEST_JSON} bytes")
        options = json.loads(file.read_bytes())
        if not isinstance(options, dict):
            raise ValueError(f"it holds {shown(options)}")
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{file} is not the JSON object of a training's options: {error}; copy it again") from None
    return options


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one whose numbers are all in the file."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return 0 < tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _matched(path: Path, release: Release, ours: Tensors, tensors: Tensors) -> Tensors:
    """The official tensors under our names; ValueError unless they are exactly ours, in our shapes, and finite."""
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
    _require_numbers(path, {name: tensors[name] for name in shapes})
    return {
        name: (tensors[key].mT if key in release.transposed else tensors[key]).detach().float().contiguous()
        for name, key in official.items()
    }


def _require_floats(path: Path, tensors: Tensors) -> None:
    """ValueError unless all tensors are ordinary ones of floating-point numbers."""
    kinds = [f"{name} of {x.dtype}".replace("torch.", "") for name, x in tensors.items() if x.dtype not in _FLOATS]
    kinds += [f"{name} without its numbers" for name, x in tensors.items() if x.dtype in _FLOATS and not _is_whole(x)]
    if kinds:
        raise ValueError(f"{path} has {_listed(kinds)} where floating-point weights are expected; copy it again")


def _require_numbers(path: Path, tensors: Tensors) -> None:
    """ValueError unless all tensors are floating-point, finite in float32, and together no more than the file holds."""
    _require_floats(path, tensors)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors.values()}
    if sum(x.numel() * x.element_size() for x in tensors.values()) > sum(storages.values()):
        raise ValueError(f"{path} has tensors that share their numbers, as no release writes; copy it again")
    infinite = [name for name, x in tensors.items() if not x.float().isfinite().all()]
    if infinite:
        raise ValueError(f"{path} has NaN or Inf in {_listed(infinite)}; copy it again, or take an earlier epoch")


def _listed(names: Iterable[Any]) -> str:
    """The first names, in one line."""
    names = [
        name if isinstance(name, str) and len(name) < 120 and name.isprintable() else shown(name) for name in names
    ]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _widths(opt: Options, tensors: Tensors) -> Widths:
    """D and D'. The official scripts add 2 for TEF before they store `v_feat_dim`; files without the 2 work too."""
    target = opt.size("v_feat_dim")
    norm = tensors.get("input_vid_proj.0.LayerNorm.weight")  # as wide as what the network reads
    ends = 2 if "tef" in opt.read("ctx_mode", str) else 0
    if norm is None or norm.shape != (target + ends,):
        target -= ends
    require(target >= 1, "v_feat_dim of opt", opt["v_feat_dim"], "the width of the video's features")
    return Widths(target=target, query=opt.size("t_feat_dim"), joint=None)
