"""AMR: spliced videos, mined windows and two-stage learning (ICCV 2025)."""

from typing import Any

import torch

from mrlib.arguments import require
from mrlib.papers.moment_detr import (
    JOINT_NAMES,
    MOMENT_QUERY_NAMES,
    UNREAD,
    moment_query_settings,
)
from mrlib.papers.qd_detr import DAB_NAMES, TEXT_TO_VIDEO_NAMES
from mrlib.papers.release import Options, Release, Tensors
from mrlib.papers.schema import Choice, Optimiser, Paper, Schedule, Stage

_ADAMW = Optimiser("adamw", lr=1e-4, weight_decay=1e-4, clip=0.1)
_WEIGHTS = {"l1": 10.0, "giou": 1.0, "class": 4.0, "mask": 5.0, "quality": 1.0, "vtc": 0.3, "ctc": 0.5}

PAPER = Paper(
    name="amr",
    title="Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning (ICCV 2025)",
    aligner=Choice(
        "trilinear",
        {
            "width": 256,
            "layers": 2,
            "heads": 8,
            "hidden": 1024,
            "projections": 2,
            "dropout": 0.1,
            "input_dropout": 0.5,
            "tef": True,
            "encoder_layers": 2,
            "activation": "prelu",
            "padding": "hidden",
            "against": "sentence",
        },
    ),
    detector=Choice(
        "dab_quality",
        {
            "moment_queries": 10,
            "decoder_layers": 4,
            "heads": 8,
            "hidden": 1024,
            "dropout": 0.1,
            "cost_l1": 10.0,
            "cost_giou": 1.0,
            "cost_class": 4.0,
            "most_windows": 10,
            "length": "clips",
            "activation": "prelu",
            "padding": "hidden",
            "cost_mask": 5.0,
            "last_mask": "own",
            "surplus": "first",
            "content": "query",
            "joint_self_attention": True,
        },
    ),
    stages=(
        Stage("mining", epochs=100, batch_size=32, mine=0.5, weights=_WEIGHTS, optimiser=_ADAMW),
        Stage(
            "coldstart",
            epochs=40,
            batch_size=128,
            augment="splice",
            data="ten_passes",
            weights={**_WEIGHTS, "discriminate": 0.0},
            optimiser=_ADAMW,
        ),
        Stage(
            "distill",
            epochs=100,
            batch_size=32,
            start=("coldstart", "last"),
            prepare="active_queries",
            teacher=("coldstart", "last"),
            weights={**_WEIGHTS, "discriminate": 0.5, "distill": 0.5},
            optimiser=_ADAMW,
            schedule=Schedule("step", drop=0.4),
        ),
    ),
    round_s=2.0,
    max_windows=20,
)

PRESETS = {
    "small": {
        "width": 64,
        "hidden": 128,
        "heads": 4,
        "dropout": 0.0,
        "input_dropout": 0.0,
        "epochs": 16,
        "lr": 1e-3,
        "curve": "cosine",
        "warmup": 0.1,
        "activation": "relu",
        "layers": 1,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "batch_size": 32,
        "coldstart.data": "pairs",
        "mining.epochs": 16,
        "coldstart.epochs": 16,
        "mining.mine": 0.1,
    },
    "paper": {},  # `PAPER` as it is
    # the released network and its training
    "official": {
        "padding": "seen",
        "against": "video",
        "last_mask": "previous",
        "length": "duration",
        "joint_self_attention": False,
        "coldstart.augment": "splice_official",
        "distill.prepare": "released_queries",
    },
    # for a dataset with saliency scores and no windows, so that nothing trains the detector; a model for each domain
    "tvsum": {
        "stages": ["coldstart"],
        "augment": "identity",
        "data": "pairs",
        "epochs": 2000,
        "batch_size": 4,
        "lr": 1e-3,
        "keep": "HL-top5-mAP",
        "weights": {**dict.fromkeys(_WEIGHTS, 0.0), "vtc": 0.5, "ctc": 2.0, "discriminate": 0.0},
    },
}


def _settings(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """The released network always has two text-to-video layers; `enc_layers` counts the layers among the clips."""
    for name in ("pre_norm", "use_txt_pos"):
        require(not opt.read(name, bool), f"{name} of opt", True, "False")
    settings = moment_query_settings(opt)
    del settings["query_positions"]
    settings["decoder_layers"] = opt.layers("dec_layers", least=2)
    layers = {"layers": 2, "encoder_layers": settings["layers"]}
    return settings | layers | {"most_windows": opt.size("max_windows")}


def _prepared(opt: Options, tensors: Tensors) -> tuple[str, ...]:
    """A checkpoint of the second stage has a second set of moment queries, and no other has."""
    stage, second = opt.read("stage", str), "new_query_embed.weight" in tensors
    require(stage in ("pretrain", "distill"), "stage of opt", stage, "pretrain or distill")
    fits = second == (stage == "distill")
    require(fits, "stage of opt", stage, "distill where there is a new_query_embed, and only there")
    return ("released_queries",) if second else ()


def _plain(tensors: Tensors) -> Tensors:
    """Drop the decoder's copies of the heads; of two sets of moment queries, use the one of stage 2."""
    plain = dict(tensors)
    for name in tensors:
        head = name.removeprefix("transformer.decoder.")
        if head != name and head.startswith(("span_embed.", "class_embed.", "iou_head.")):
            if head in tensors and not torch.equal(tensors[name], tensors[head]):
                raise ValueError(f"{name} and {head} of model differ, but are one head; copy the file again")
            del plain[name]
        elif name.startswith("fuser."):  # its convolutions over one clip are our linear maps
            tensor = plain[name]
            is_vector = tensor.numel() == max(tensor.shape)
            plain[name] = tensor.flatten() if is_vector else tensor.squeeze(-1)
    if "new_query_embed.weight" in plain:
        plain["query_embed.weight"] = plain.pop("new_query_embed.weight")
    return plain


RELEASE = Release(
    preset="official",
    settings=_settings,
    names=(
        *MOMENT_QUERY_NAMES,
        (r"^detector\.heads\.2\.mlp\.", "mask_head."),
        (r"^detector\.heads\.2\.scale$", "logit_scale"),
        (r"^detector\.heads\.3\.linear\.", "iou_head."),
        *TEXT_TO_VIDEO_NAMES,
        (r"^aligner\.saliency\.", "saliency_proj1."),
        (r"^aligner\.fusion\.clip$", "fuser.cq_attention.w4C"),
        (r"^aligner\.fusion\.word$", "fuser.cq_attention.w4Q"),
        (r"^aligner\.fusion\.both$", "fuser.cq_attention.w4mlu"),
        (r"^aligner\.fusion\.pool$", "fuser.cq_concat.weighted_pool.weight"),
        (r"^aligner\.fusion\.mix\.", "fuser.cq_attention.cqa_linear.conv1d."),
        (r"^aligner\.fusion\.out\.", "fuser.cq_concat.conv1d.conv1d."),
        (r"\.feed_forward\.original\.", "."),
        (r"\.feed_forward\.active([12])\.", r".linear\1_active."),
        *JOINT_NAMES,
        *DAB_NAMES,
    ),
    unread=UNREAD,
    corrected={"padding": "hidden"},
    plain=_plain,
    prepared=_prepared,
)
