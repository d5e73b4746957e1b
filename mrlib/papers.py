"""Each paper as its choices in the slots, its numbers and its training stages. Read it like a table.

A model is two names: one of `ALIGNERS`, one of `DETECTORS`; any pair composes, and any of `AUGMENTERS` may feed them.
To add one, add a line.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from mrlib.align.anchor import AnchorAligner, ConcatAligner, RawAligner
from mrlib.align.cg_detr import CgDetrAligner, CgDetrSizes
from mrlib.align.dual_stage import DualStageAligner
from mrlib.align.dynamics import dynamics
from mrlib.align.joint import JointAligner, JointEncoder
from mrlib.align.joint_memory import JointMemoryAligner
from mrlib.align.projected import Sizes
from mrlib.align.separate import SeparateAligner
from mrlib.align.taskweave import TaskWeaveAligner
from mrlib.align.text_to_video import T2VLayer, TextToVideoAligner
from mrlib.align.trilinear import TrilinearAligner
from mrlib.align.uvcom import UvcomAligner, UvcomSizes
from mrlib.augment import identity
from mrlib.augment.clip_query import clip_alone, clip_query, each_video
from mrlib.augment.splice import splice, splice_official
from mrlib.augment.synthesize import synthesize, synthesize_official
from mrlib.data import Batch, MomentDataset, Widths, open_dataset
from mrlib.detect.boundary import BoundaryDetector
from mrlib.detect.dab import DabDecoder, DabDetector
from mrlib.detect.detr import ClassHead, DetrDecoder, DetrDetector, SpanHead
from mrlib.detect.dual_query import active_queries, released_queries
from mrlib.detect.pyramid import PyramidDetector
from mrlib.detect.quality import FocalHead, IouHead, MaskHead
from mrlib.detect.similarity_map import SimilarityMapDetector
from mrlib.detect.tan import TanDetector
from mrlib.layers import EncoderLayer
from mrlib.retriever import MomentRetriever
from mrlib.settings import is_plain, require, require_like

# name -> (indices, dataset, draw, *, options) -> batch
AUGMENTERS: dict[str, Callable[..., Batch]] = {
    "identity": identity,
    "clip_query": clip_query,
    "clip_alone": clip_alone,
    "splice": splice,
    "splice_official": splice_official,
    "synthesize": synthesize,
    "synthesize_official": synthesize_official,
}
# name -> dataset -> what a stage trains on
TRAINING_SETS: dict[str, Callable[[MomentDataset], MomentDataset]] = {
    "pairs": lambda dataset: dataset,
    "videos": each_video,
    "ten_passes": lambda dataset: dataset.subset(list(range(len(dataset))) * 10),
}
# name -> what a stage changes in a trained retriever before it goes on, given (retriever, teacher=False); and in its
# teacher, given (retriever, teacher=True)
PREPARATIONS: dict[str, Callable[..., None]] = {
    "active_queries": active_queries,
    "released_queries": released_queries,
}


# What the functions below take with a default can be set as the options that the papers give. beta is the share of the
# clips where their dynamics flow in; None: none do.


def _encoder(
    make: Callable[..., nn.Module],
    widths: Widths,
    beta: float | None,
    *,
    pre_norm: bool,
    query_positions: str,
    places: int,
    **options: Any,
) -> nn.Module:
    """A joint encoder, or the aligner that is one."""
    sizes = Sizes(**options)
    mix = dynamics(1, sizes.width, sizes.heads, sizes.dropout, beta)[0]
    return make(widths, sizes, pre_norm=pre_norm, query_positions=query_positions, places=places, mix=mix)


def _joint(widths: Widths, *, temperature: float, beta: float | None = None, **encoder: Any) -> JointAligner:
    return JointAligner(_encoder(JointEncoder, widths, beta, **encoder), temperature=temperature)


def _joint_memory(widths: Widths, *, beta: float | None = None, **encoder: Any) -> JointMemoryAligner:
    return _encoder(JointMemoryAligner, widths, beta, **encoder, activation="relu")


# of the decoder or of the alignments; the rest of the options of "dual_stage" are the joint encoder's
_DUAL_STAGE = ("moment_queries", "decoder_layers", "gamma", "align", "pre", "post", "cost", "typed", "memory")


def _dual_stage(widths: Widths, *, beta: float | None = None, **options: Any) -> DualStageAligner:
    own = {name: options.pop(name) for name in _DUAL_STAGE}
    shared = {name: options[name] for name in ("heads", "hidden", "dropout")}
    fuse = _encoder(JointEncoder, widths, beta, **options)
    return DualStageAligner(fuse, layers=own.pop("decoder_layers"), **shared, **own)


def _stacks(sizes: Sizes, encoder_layers: int, beta: float | None) -> list[list[nn.Module]]:
    """Layers from words to clips, and layers among clips."""
    mixes = dynamics(sizes.layers, sizes.width, sizes.heads, sizes.dropout, beta)
    return [[T2VLayer(*sizes.layer, mix) for mix in mixes], [EncoderLayer(*sizes.layer) for _ in range(encoder_layers)]]


def _text_to_video(
    widths: Widths, *, query_positions: str, places: int, masks: str, beta: float | None = None, **options: Any
) -> TextToVideoAligner:
    sizes = Sizes(**options)
    stacks = _stacks(sizes, sizes.layers, beta)
    return TextToVideoAligner(widths, sizes, *stacks, query_positions=query_positions, places=places, masks=masks)


def _trilinear(
    widths: Widths, *, encoder_layers: int, padding: str, against: str, beta: float | None = None, **options: Any
) -> TrilinearAligner:
    sizes = Sizes(**options)
    stacks = _stacks(sizes, encoder_layers, beta)
    return TrilinearAligner(widths, sizes, *stacks, padding=padding, against=against)


def _sized(aligner: Callable[[Widths, Any], nn.Module], sizes: type[Sizes]) -> Callable[..., nn.Module]:
    """An aligner whose options are its sizes, field by field."""

    def make(widths: Widths, **options: Any) -> nn.Module:
        return aligner(widths, sizes(**options))

    make.__signature__ = inspect.signature(sizes)  # for those who ask which options there are
    return make


def _taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options.pop(name) for name in names}


def _moment_queries(detector: type, decoder: type) -> Callable[..., nn.Module]:
    def make(width: int, **options: Any) -> nn.Module:
        heads = [
            SpanHead(width, **_taken(options, "cost_l1", "cost_giou")),
            ClassHead(width, **_taken(options, "cost_class", "background")),
        ]
        around = _taken(options, "most_windows", "length")
        return detector(decoder(width, **options), heads, **around)

    return make


def _dab_quality(width: int, *, last_mask: str, **options: Any) -> DabDetector:
    layers = options["decoder_layers"]
    require(last_mask != "previous" or layers != 1, "decoder_layers", layers, "2 or more, or last_mask own")
    heads = [
        SpanHead(width, **_taken(options, "cost_l1", "cost_giou")),
        FocalHead(width, **_taken(options, "cost_class")),
        MaskHead(width, last=last_mask, **_taken(options, "cost_mask", "padding")),
        IouHead(width),
    ]
    around = _taken(options, "most_windows", "surplus", "length")
    return DabDetector(DabDecoder(width, **options), heads, **around)


# name -> (widths of the dataset, options) -> aligner
ALIGNERS: dict[str, Callable[..., nn.Module]] = {
    "anchor": lambda widths, **options: AnchorAligner(widths.joint, **options),
    "raw": lambda widths, **options: RawAligner(widths.joint, **options),
    "concat": lambda widths, **options: ConcatAligner(widths.joint, **options),
    "separate": SeparateAligner,
    "joint": _joint,
    "joint_memory": _joint_memory,
    "text_to_video": _text_to_video,
    "trilinear": _trilinear,
    "dual_stage": _dual_stage,
    "taskweave": _sized(TaskWeaveAligner, Sizes),
    "uvcom": _sized(UvcomAligner, UvcomSizes),
    "cg_detr": _sized(CgDetrAligner, CgDetrSizes),
}
# name -> (width of the aligner, options) -> detector
DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "similarity_map": lambda width, **options: SimilarityMapDetector(**options),
    "boundary": BoundaryDetector,
    "pyramid": PyramidDetector,
    "detr": _moment_queries(DetrDetector, DetrDecoder),
    "dab": _moment_queries(DabDetector, DabDecoder),
    "dab_quality": _dab_quality,
    "tan": TanDetector,
}


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _above_0(x: Any) -> bool:
    return _is_number(x) and x > 0


def _texts(x: Any) -> bool:
    return isinstance(x, list | tuple) and all(isinstance(each, str) for each in x)


def _keyword_defaults(make: Callable[..., Any]) -> dict[str, Any]:
    """What a function takes that may be left out."""
    taken = inspect.signature(make).parameters.values()
    return {p.name: p.default for p in taken if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


@dataclass(frozen=True)
class Choice:
    """What stands in a slot: a name of `ALIGNERS` or `DETECTORS` and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimiser:
    """Adam or AdamW."""

    method: str = "adamw"  # "adam" | "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float | None = None  # largest norm of the gradient

    def __post_init__(self):
        require(self.method in ("adam", "adamw"), "method", self.method, "adam or adamw")
        require(self.lr >= 0 and math.isfinite(self.lr), "lr", self.lr, "a number from 0 on")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number from 0 on")
        require(self.clip is None or self.clip > 0, "clip", self.clip, "None or a number above 0")


@dataclass(frozen=True)
class Schedule:
    """The learning rate at a share of a stage's steps: linear warm-up, then the curve."""

    curve: str = "constant"  # "constant" | "cosine" down to 0 | "step" down by ten after every `drop`
    warmup: float = 0.0  # share of the steps
    drop: float = 1.0  # share of the steps after which "step" drops, again and again

    def __post_init__(self):
        require(self.curve in ("constant", "cosine", "step"), "curve", self.curve, "constant, cosine or step")
        for name in ("warmup", "drop"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        require(self.drop > 0, "drop", self.drop, "above 0")

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied with at `step`, counted from 0, of `steps`."""
        warmup = self.warmup * steps
        if step < warmup:
            return (step + 1) / warmup if warmup > 1 else 1.0
        if self.curve == "cosine":
            done = (step - warmup) / max(steps - warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * done))
        # the share is exact: 0.4 * 100 steps drop at step 40
        return 0.1 ** math.floor(step / steps / self.drop + 1e-9) if self.curve == "step" else 1.0


@dataclass(frozen=True)
class Stage:
    """One training of a paper."""

    name: str
    epochs: int
    batch_size: int
    augment: str = "identity"  # one of `AUGMENTERS`
    data: str = "pairs"  # one of `TRAINING_SETS`
    start: tuple[str, str] | None = None  # (earlier stage, "last" or "best") to take the weights from; None: go on
    prepare: str | None = None  # one of `PREPARATIONS`, after the weights are taken
    teacher: tuple[str, str] | None = None  # (earlier stage, "last" or "best"): frozen, its outputs go to the losses
    # train on each half of the videos, for the other half's windows that are predicted with a higher score than this
    # and answer nothing: later stages have them as `wrong_spans`. None: train on all, mine nothing
    mine: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)  # of loss terms; 1 where nothing stands
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    keep: str = "MR-full-mAP"  # the validation score, or sum of scores, by which the best epoch is chosen
    augment_options: Mapping[str, Any] = field(default_factory=dict)  # of the augmenter; its defaults, where not here

    def __post_init__(self):
        require(self.name.isidentifier(), "name of a stage", self.name, "a plain word: a folder is called so")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            require(type(value) is int and value >= 1, name, value, "a whole number from 1 on")
        for name in ("start", "teacher"):
            value = getattr(self, name)
            known = value is None or (_texts(value) and len(value) == 2 and value[1] in ("last", "best"))
            require(known, name, value, 'None, or the name of a stage and "last" or "best"')
        require(self.mine is None or _is_number(self.mine), "mine", self.mine, "None or a score")
        for name in ("start", "prepare", "teacher") if self.mine is not None else ():
            require(getattr(self, name) is None, name, getattr(self, name), "None where a stage mines: it begins anew")
        known = self.prepare is None or self.prepare in PREPARATIONS
        require(known, "prepare", self.prepare, f"None or one of {', '.join(PREPARATIONS)}")
        weighed = isinstance(self.weights, Mapping) and all(_is_number(w) for w in self.weights.values())
        require(weighed, "weights", self.weights, "numbers by the names of loss terms")
        require(self.augment in AUGMENTERS, "augment", self.augment, f"one of {', '.join(AUGMENTERS)}")
        usual = _keyword_defaults(AUGMENTERS[self.augment])
        known = isinstance(self.augment_options, Mapping) and self.augment_options.keys() <= usual.keys()
        wanted = f"a table of options of {self.augment}: {', '.join(usual) or 'it has none'}"
        require(known, "augment_options", self.augment_options, wanted)
        for name, value in self.augment_options.items():
            require_like(usual[name], name, value)
        require(self.data in TRAINING_SETS, "data", self.data, f"one of {', '.join(TRAINING_SETS)}")


@dataclass(frozen=True)
class Paper:
    """A paper's choices."""

    name: str
    title: str
    aligner: Choice
    detector: Choice
    stages: tuple[Stage, ...]
    query: str = "text"  # what asks: "text" or "video"
    streams: str | tuple[str, ...] | None = None  # what to open a dataset with: "joint", names, or None for all
    round_s: float | None = None  # predicted times are rounded to multiples of this
    max_windows: int = 10
    given: Mapping[str, Any] = field(default_factory=dict)  # the arguments of `get`

    def __post_init__(self):
        names = [s.name for s in self.stages]
        require(len(set(names)) == len(names), "stages", names, "of different names")
        trained = all(s.mine is None for s in self.stages[-1:])
        require(trained, "stages", names, "more than stages that mine: the last one trains on what they find")
        for i, stage in enumerate(self.stages):
            for name in ("start", "teacher"):
                source = getattr(stage, name)
                known = [s.name for s in self.stages[:i] if s.mine is None]
                ok = source is None or source[0] in known
                require(ok, f"{stage.name}.{name}", source, f"None or an earlier stage that trains all: {known}")
        require(self.query in ("text", "video"), "query", self.query, "text or video")
        require(type(self.max_windows) is int and self.max_windows >= 1, "max_windows", self.max_windows, "1 or more")
        require(self.round_s is None or _above_0(self.round_s), "round_s", self.round_s, "None or seconds above 0")
        named = self.streams is None or isinstance(self.streams, str) or _texts(self.streams)
        require(named, "streams", self.streams, "None, a name or a list of names")

    @property
    def weighed(self) -> bool:
        """Weights of losses were given, and not only the paper's own taken.

        Those may name terms of an aligner or detector that another has taken the place of; they then weigh nothing.
        """
        return not self.given or any(key.rpartition(".")[2] == "weights" for key in self.given)

    def describe(self) -> dict[str, Any]:
        """Everything as plain values, for records."""
        return {name: value for name, value in asdict(self).items() if name != "given"}


_BOUNDARY = {"heads": 8, "offsets": "bounded", "timestamps": "centre", "length": "clips", "background": 1.0}
_BOUNDARY |= {"padding": "hidden", "nms": 0.7, "answer": "heads"}
_ADAMW = Optimiser("adamw", 1e-4, weight_decay=1e-4, clip=0.1)
_TRANSFORMER = {"width": 256, "layers": 2, "heads": 8, "hidden": 1024, "projections": 2, "dropout": 0.1}
_TRANSFORMER |= {"input_dropout": 0.5, "tef": True, "query_positions": "none", "places": 32}
_MOMENT_QUERIES = {"moment_queries": 10, "decoder_layers": 2, "heads": 8, "hidden": 1024, "dropout": 0.1}
_MOMENT_QUERIES |= {"cost_l1": 10.0, "cost_giou": 1.0, "cost_class": 4.0, "background": 0.1}
_MOMENT_QUERIES |= {"most_windows": 5, "length": "clips"}
_DETR = Stage(
    "train",
    200,
    32,
    weights={"l1": 10.0, "giou": 1.0, "class": 4.0},
    optimiser=_ADAMW,
)
_RETRIEVED = "mIoU + MR-full-R1@0.5"
_QUALITY = {**_MOMENT_QUERIES, "decoder_layers": 4, "most_windows": 10, "activation": "prelu", "padding": "hidden"}
_QUALITY |= {"cost_mask": 5.0, "last_mask": "own", "surplus": "first", "content": "query"}
_QUALITY |= {"joint_self_attention": True}
del _QUALITY["background"]
_AMR = {"l1": 10.0, "giou": 1.0, "class": 4.0, "mask": 5.0, "quality": 1.0, "vtc": 0.3, "ctc": 0.5}

PAPERS = {
    "f2sgd": Paper(
        name="f2sgd",
        title="Anchor-Aware Similarity Cohesion in Target Frames Enables Predicting Temporal Moment Boundaries in 2D "
        "(CVPR 2025)",
        aligner=Choice("anchor", {"reweight": True, "align": True, "right": "literal", "scale": False}),
        detector=Choice(
            "similarity_map",
            {"kernel": 21, "channels": 32, "candidates": 10, "head": "linear", "standardise": False}
            | {"loss_cells": "triangle", "reduction": "sum", "zero_init": True},
        ),
        stages=(Stage("train", 10, 128, optimiser=Optimiser("adam", 1e-4), schedule=Schedule("cosine", warmup=0.1)),),
        streams="joint",
    ),
    "matr": Paper(
        name="matr",
        title="Aligning Moments in Time using Video Queries (ICCV 2025)",
        aligner=Choice(
            "dual_stage",
            {"width": 1024, "layers": 4, "heads": 8, "hidden": 1024, "projections": 2, "activation": "relu"}
            | {"dropout": 0.1, "input_dropout": 0.5, "tef": False, "query_positions": "sine", "places": 75}
            | {"pre_norm": False, "moment_queries": 10, "decoder_layers": 4, "gamma": 0.1, "align": "subsequence"}
            | {"pre": True, "post": True, "cost": "cosine", "typed": False, "memory": "part"},
        ),
        detector=Choice("boundary", {**_BOUNDARY, "fusion": "sequence"}),
        stages=(
            Stage("pretrain", 50, 600, augment="clip_query", data="videos", optimiser=_ADAMW, keep=_RETRIEVED),
            Stage("finetune", 200, 1200, start=("pretrain", "last"), optimiser=_ADAMW, keep=_RETRIEVED),
        ),
        query="video",
        streams="joint",
    ),
    "univtg": Paper(
        name="univtg",
        title="UniVTG: Towards Unified Video-Language Temporal Grounding (ICCV 2023)",
        aligner=Choice(
            "joint",
            {"width": 1024, "layers": 4, "heads": 8, "hidden": 1024, "projections": 2, "activation": "gelu"}
            | {"dropout": 0.0, "input_dropout": 0.5, "tef": True, "query_positions": "none", "places": 75}
            | {"pre_norm": False, "temperature": 0.07},
        ),
        detector=Choice("boundary", {**_BOUNDARY, "fusion": "none", "background": 0.1}),
        stages=(
            Stage(
                "train",
                200,
                32,
                weights={"fg": 10.0, "l1": 10.0, "iou": 1.0, "inter": 0.01, "intra": 0.05},
                optimiser=_ADAMW,
            ),
        ),
    ),
    # The released numbers for Charades-STA, in as many steps of its batches of 8 videos with up to 4 sentences: it has
    # none for QVHighlights. With beta=0.7 and augment="synthesize" this is TD-DETR's SnAG + TD.
    "snag": Paper(
        name="snag",
        title="SnAG: Scalable and Accurate Video Grounding (CVPR 2024)",
        aligner=Choice("separate", {"width": 256, "layers": 5, "heads": 4, "hidden": 1024, "dropout": 0.1}),
        detector=Choice("pyramid", {"levels": 6, "heads": 4, "hidden": 1024, "dropout": 0.1}),
        stages=(
            Stage(
                "train",
                48,
                32,
                optimiser=Optimiser("adamw", 5e-4, weight_decay=5e-4, clip=1.0),
                schedule=Schedule(warmup=0.3125),  # 5 epochs of 16
            ),
        ),
    ),
    "moment_detr": Paper(
        name="moment_detr",
        title="QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries (NeurIPS 2021)",
        aligner=Choice("joint_memory", {**_TRANSFORMER, "pre_norm": False}),
        detector=Choice("detr", {**_MOMENT_QUERIES, "pre_norm": False}),
        stages=(_DETR,),
        round_s=2.0,
    ),
    "qd_detr": Paper(
        name="qd_detr",
        title="Query-Dependent Video Representation for Moment Retrieval and Highlight Detection (CVPR 2023)",
        aligner=Choice("text_to_video", {**_TRANSFORMER, "activation": "prelu", "masks": "keys"}),
        detector=Choice("dab", {**_MOMENT_QUERIES, "activation": "prelu"}),
        stages=(_DETR,),
        round_s=2.0,
    ),
    "td_detr": Paper(
        name="td_detr",
        title="The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning (ICCV 2025)",
        aligner=Choice(
            "text_to_video", {**_TRANSFORMER, "layers": 4, "activation": "prelu", "masks": "keys", "beta": 0.7}
        ),
        detector=Choice(
            "dab",
            {**_MOMENT_QUERIES, "decoder_layers": 4, "activation": "prelu", "cost_l1": 1.0, "cost_giou": 10.0},
        ),
        stages=(
            Stage(
                "train",
                200,
                16,  # and two videos made of each, the 48 of the released batches
                augment="synthesize",
                weights={"l1": 1.0, "giou": 10.0, "class": 4.0},
                optimiser=_ADAMW,
                schedule=Schedule("step", drop=0.4),
            ),
        ),
        round_s=2.0,
    ),
    "amr": Paper(
        name="amr",
        title="Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning (ICCV 2025)",
        aligner=Choice(
            "trilinear",
            {name: value for name, value in _TRANSFORMER.items() if name not in ("query_positions", "places")}
            | {"encoder_layers": 2, "activation": "prelu", "padding": "hidden", "against": "sentence"},
        ),
        detector=Choice("dab_quality", _QUALITY),
        stages=(
            Stage("mining", 100, 32, mine=0.5, weights=_AMR, optimiser=_ADAMW),
            Stage(
                "coldstart",
                40,
                128,
                augment="splice",
                data="ten_passes",
                weights={**_AMR, "discriminate": 0.0},
                optimiser=_ADAMW,
            ),
            Stage(
                "distill",
                100,
                32,
                start=("coldstart", "last"),
                prepare="active_queries",
                teacher=("coldstart", "last"),
                weights={**_AMR, "discriminate": 0.5, "distill": 0.5},
                optimiser=_ADAMW,
                schedule=Schedule("step", drop=0.4),
            ),
        ),
        round_s=2.0,
        max_windows=20,
    ),
}

_SMALL_DETR = {"width": 64, "hidden": 128, "heads": 4, "dropout": 0.0, "input_dropout": 0.0, "epochs": 16}
_SMALL_DETR |= {"lr": 2e-3, "curve": "cosine", "warmup": 0.1}

# TD-DETR where there are windows and no saliency scores: QD-DETR's weights, the saliency's fourfold
_TD_WINDOWS = {"layers": 3, "decoder_layers": 3, "cost_l1": 10.0, "cost_giou": 1.0, "epochs": 100, "lr": 2e-4}
_TD_WINDOWS |= {"weights": {**_DETR.weights, "margin": 4.0, "contrast": 4.0, "negative": 4.0}, "curve": "constant"}
_TD_WINDOWS |= {"keep": "MR-full-R1@0.7"}

# without windows nothing trains the detector; a model per domain
_HIGHLIGHTS = {"epochs": 2000, "batch_size": 4, "lr": 1e-3, "keep": "HL-top5-mAP"}

# Settings for a size of the simulator, or for a dataset that the paper treats apart.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "f2sgd": {
        "small": {"kernel": 9, "channels": 8, "standardise": True, "batch_size": 32, "lr": 1e-3},
        "charades_sta": {"kernel": 27, "candidates": 1},
        "activitynet_captions": {"kernel": 27, "candidates": 1},
    },
    "matr": {
        "small": {"width": 64, "layers": 2, "hidden": 128, "dropout": 0.0, "input_dropout": 0.0, "decoder_layers": 1}
        | {"heads": 4, "moment_queries": 4, "projections": 1, "epochs": 16, "lr": 3e-3, "curve": "cosine"}
        | {"warmup": 0.1, "pretrain.batch_size": 32, "finetune.batch_size": 32}
        # with the printed weight of 1 all features become one direction, which costs nothing to align
        | {"weights": {"align_pre": 0.01, "align_post": 0.01}},
        "sportsmoments": {"finetune.epochs": 40, "finetune.batch_size": 40, "pretrain.batch_size": 20},
        "paper": {},  # the row above
        # the released network, for its checkpoints; its heads read nothing of its decoder, which is left out
        "official_code": {"tef": True, "query_positions": "none", "typed": True, "cost": "contrastive"}
        | {"align": "mean", "memory": "whole", "moment_queries": 0, "fusion": "none", "offsets": "raw"}
        | {"timestamps": "edge", "background": 0.1, "dropout": 0.0, "length": "duration", "padding": "seen"},
    },
    "univtg": {
        "small": {"width": 64, "layers": 2, "hidden": 128, "dropout": 0.0, "input_dropout": 0.0}
        | {"heads": 4, "epochs": 16, "lr": 3e-3, "curve": "cosine", "warmup": 0.1},
        "official": {"timestamps": "edge", "padding": "seen", "length": "duration"},
    },
    "snag": {
        "small": {"width": 64, "layers": 2, "hidden": 128, "dropout": 0.0, "heads": 4, "levels": 4}
        | {"epochs": 16, "lr": 1e-3, "curve": "cosine", "warmup": 0.1},
    },
    # learned queries without a place of their own take longer to find one
    "moment_detr": {"small": _SMALL_DETR | {"epochs": 40}, "official": {"length": "duration"}},
    "qd_detr": {
        "small": _SMALL_DETR | {"activation": "relu"},
        # the released network, for its checkpoints
        "official": {"masks": "released", "length": "duration"},
        "tvsum": {**_HIGHLIGHTS, "weights": {"l1": 0.0, "giou": 0.0, "class": 0.0}},
    },
    "td_detr": {
        # as many samples a step and nearly as many steps as QD-DETR's; weights are those of Charades-STA, with which so
        # few steps lead further
        "small": _SMALL_DETR
        | {"activation": "relu", "layers": 2, "decoder_layers": 2, "batch_size": 11, "epochs": 6}
        | {"cost_l1": 10.0, "cost_giou": 1.0, "weights": {"l1": 10.0, "giou": 1.0, "class": 4.0}},
        "charades_sta": _TD_WINDOWS | {"round_s": 1.0},
        "tacos": _TD_WINDOWS,
        # the released network and how it is trained
        "official": {"masks": "released", "length": "duration", "augment": "synthesize_official"},
    },
    "amr": {
        "small": _SMALL_DETR
        | {"activation": "relu", "layers": 1, "encoder_layers": 1, "decoder_layers": 2, "batch_size": 32, "lr": 1e-3}
        | {"coldstart.data": "pairs", "mining.epochs": 16, "coldstart.epochs": 16, "mining.mine": 0.1},
        "paper": {},  # the row above
        # the released network and how it is trained on
        "official": {"padding": "seen", "against": "video", "last_mask": "previous", "length": "duration"}
        | {"joint_self_attention": False, "coldstart.augment": "splice_official"}
        | {"distill.prepare": "released_queries"},
        "tvsum": {"stages": ["coldstart"], "augment": "identity", "data": "pairs", **_HIGHLIGHTS}
        | {"weights": {**dict.fromkeys(_AMR, 0.0), "vtc": 0.5, "ctc": 2.0, "discriminate": 0.0}},
    },
}

# What a choice that stands in no paper takes for the small simulated world; at the other size, its own defaults.
SMALL: dict[str, dict[str, Any]] = {
    "uvcom": {"width": 64, "layers": 2, "hidden": 128, "heads": 4, "dropout": 0.0, "input_dropout": 0.0},
    "cg_detr": {"width": 64, "layers": 2, "encoder_layers": 2, "hidden": 128, "heads": 4, "dropout": 0.0}
    | {"input_dropout": 0.0, "dummies": 8, "dummy_layers": 1},
    "taskweave": {"width": 64, "hidden": 128, "heads": 4, "dropout": 0.0, "input_dropout": 0.0},
    "tan": {"channels": 16, "kernel": 5},
}


def get(name: str, size: str = "paper", preset: str | None = None, **settings: Any) -> Paper:
    """A paper, with any of its numbers changed.

    name      one of `PAPERS`
    size      "paper", or "small" for the small simulated world
    preset    a named set of settings of `PRESETS`, over those of the size
    settings  field=value, or **{"stage.field": value}: a field of the paper, an option of its aligner or detector (of
              both, where both have it), or a field of a stage, its optimiser or schedule (without the stage's name: of
              every stage), or an option of its augmenter (of every stage whose augmenter has it). `aligner` and
              `detector` take a name, `stages` a list of those to keep. `epochs` sets the last stage and scales the
              others.
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
    slots = ("aligner", "detector", "stages")
    for table in (presets.get("small", {}) if size == "small" else {}, presets.get(preset, {}), settings):
        # names of slots first, then of augmenters: options are looked up in what then stands there
        for key in sorted(table, key=lambda k: (k not in slots, k.rpartition(".")[2] != "augment")):
            paper = _changed(paper, key, table[key], size)
    return replace(paper, given=given)


def build(paper: Paper, dataset: MomentDataset | Widths, seed: int = 0) -> MomentRetriever:
    """A model of a paper, for the widths of a dataset, its weights a function of `seed`."""
    widths = dataset if isinstance(dataset, Widths) else dataset.widths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        aligner = ALIGNERS[paper.aligner.name](widths, **paper.aligner.options)
        detector = DETECTORS[paper.detector.name](aligner.width, **paper.detector.options)
    recipe = {"paper": dict(paper.given), "widths": asdict(widths), "seed": seed} if paper.given else None
    return MomentRetriever(aligner, detector, round_s=paper.round_s, max_windows=paper.max_windows, recipe=recipe)


def prepare(retriever: MomentRetriever, name: str, seed: int = 0, teacher: bool = False) -> None:
    """Change a retriever as one of `PREPARATIONS` says, what is new a function of `seed`.

    Its recipe tells so, and its checkpoints are loaded so; a teacher has none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        PREPARATIONS[name](retriever, teacher=teacher)
    if retriever.recipe is not None and not teacher:
        retriever.recipe = {**retriever.recipe, "prepared": [*retriever.recipe.get("prepared", ()), name]}


def open_split(paper: Paper, name: str, root: str | None = None, split: str = "train", **options: Any) -> MomentDataset:
    """A dataset with the streams that a paper reads, in its size where it is simulated; see `mrlib.open_dataset`."""
    if name == "sim":
        options = {"size": paper.given["size"], "query": paper.query} | options
    return open_dataset(name, root, split, **({"streams": paper.streams} | options))


def usual(name: str, dataset: str) -> dict[str, str | None]:
    """The size and preset that `get` takes for a dataset: small for the simulator, the paper's numbers for files."""
    preset = dataset if dataset in PRESETS.get(name, {}) else None
    return {"size": "small" if dataset == "sim" else "paper", "preset": preset}


def validation_split(name: str) -> str:
    """The split that epochs are chosen on: "val", or "test" where a dataset has been released without one."""
    return "test" if name == "charades_sta" else "val"


def _choice(slot: str, name: str, size: str) -> Choice:
    """A slot's choice by name, with the options of the paper it comes from; of none, with its own defaults."""
    known = ALIGNERS if slot == "aligner" else DETECTORS
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown {slot} {name!r}; known: {', '.join(known)}")
    choices = (getattr(get(paper, size), slot) for paper in PAPERS)
    own = Choice(name, SMALL.get(name, {}) if size == "small" else {})
    return next((choice for choice in choices if choice.name == name), own)


def _changed(paper: Paper, key: str, value: Any, size: str) -> Paper:
    stage_name, _, name = key.rpartition(".")
    if not stage_name:
        if name in ("aligner", "detector"):
            if getattr(paper, name).name == value:
                return paper
            return replace(paper, **{name: _choice(name, value, size)})
        if name in ("query", "streams", "round_s", "max_windows"):
            return replace(paper, **{name: value})
        if name == "stages":
            return replace(paper, stages=_some_stages(paper, value))
        changed = {}
        for slot, makers in (("aligner", ALIGNERS), ("detector", DETECTORS)):
            choice = getattr(paper, slot)
            usual = _keyword_defaults(makers[choice.name])
            if name in usual or name in choice.options:
                if value is not None or usual.get(name, ...) is not None:
                    require_like((usual | dict(choice.options))[name], key, value)
                changed[slot] = replace(choice, options={**choice.options, name: value})
        if changed:
            return replace(paper, **changed)
        if name == "epochs":
            require(type(value) is int, key, value, "a whole number from 1 on")
            share = value / paper.stages[-1].epochs
            scaled = [replace(s, epochs=max(1, round(s.epochs * share))) for s in paper.stages[:-1]]
            return replace(paper, stages=(*scaled, replace(paper.stages[-1], epochs=value)))
    elif stage_name not in (s.name for s in paper.stages):
        raise ValueError(
            f"{key!r}: {paper.name} has no stage {stage_name!r}; it has {', '.join(s.name for s in paper.stages)}"
        )
    chosen = [s for s in paper.stages if stage_name in ("", s.name)]
    chosen = [s for s in chosen if name in _keyword_defaults(AUGMENTERS[s.augment])] or chosen
    stages = {s.name: _changed_stage(s, key, name, value) for s in chosen}
    return replace(paper, stages=tuple(stages.get(s.name, s) for s in paper.stages))


def _some_stages(paper: Paper, names: Any) -> tuple[Stage, ...]:
    """The stages of these names; one that was to start from another goes on with what there is, without a teacher."""
    known = [s.name for s in paper.stages]
    ok = _texts(names) and len(names) > 0 and set(names) <= set(known)
    require(ok, "stages", names, f"a list of some of {', '.join(known)}")
    kept = [s for s in paper.stages if s.name in names]
    gone = {s.name: [of for of in ("start", "teacher") if (x := getattr(s, of)) and x[0] not in names] for s in kept}
    return tuple(replace(s, **dict.fromkeys(gone[s.name])) for s in kept)


def _changed_stage(stage: Stage, key: str, name: str, value: Any) -> Stage:
    own = [f.name for f in fields(Stage) if f.name not in ("name", "optimiser", "schedule")]
    if name == "augment" and value != stage.augment:  # which knows no options of another
        stage = replace(stage, augment_options={})
    if name in own:
        return replace(stage, **{name: _checked(stage, key, name, value)})
    for part in ("optimiser", "schedule"):
        numbers = getattr(stage, part)
        if name in (f.name for f in fields(numbers)):
            return replace(stage, **{part: replace(numbers, **{name: _checked(numbers, key, name, value)})})
    options = _keyword_defaults(AUGMENTERS[stage.augment])
    if name in options:
        require_like(options[name], key, value)
        return replace(stage, augment_options={**stage.augment_options, name: value})
    parts = [f.name for f in (*fields(Optimiser), *fields(Schedule))]
    raise ValueError(
        f"unknown setting {key!r}; a paper has aligner, detector, stages, query, streams, round_s, max_windows and the "
        f"options of its aligner and detector, a stage has {', '.join([*own, *parts, *options])}"
    )


def _checked(of: Stage | Optimiser | Schedule, key: str, name: str, value: Any) -> Any:
    """A value for a field, of the kind that is there; None where that is its default."""
    usual = {f.name: f.default for f in fields(of)}
    if value is not None or usual[name] is not None:
        require_like(getattr(of, name), key, value)
    return value
