"""UniVTG: a joint encoder and dense boundary regression (ICCV 2023). MATR shares its reader of options."""

from typing import Any

from mrlib.arguments import require
from mrlib.papers.moment_detr import JOINT_NAMES, encoder_settings
from mrlib.papers.release import Options, Release, Tensors
from mrlib.papers.schema import Choice, Optimiser, Paper, Stage

PAPER = Paper(
    name="univtg",
    title="UniVTG: Towards Unified Video-Language Temporal Grounding (ICCV 2023)",
    aligner=Choice(
        "joint",
        {
            "width": 1024,
            "layers": 4,
            "heads": 8,
            "hidden": 1024,
            "projections": 2,
            "activation": "gelu",
            "dropout": 0.0,
            "input_dropout": 0.5,
            "tef": True,
            "query_positions": "none",
            "places": 75,
            "pre_norm": False,
            "temperature": 0.07,
        },
    ),
    detector=Choice(
        "boundary",
        {
            "heads": 8,
            "offsets": "bounded",
            "timestamps": "centre",
            "length": "clips",
            "background": 0.1,
            "padding": "hidden",
            "nms": 0.7,
            "answer": "heads",
            "fusion": "none",
        },
    ),
    stages=(
        Stage(
            "train",
            epochs=200,
            batch_size=32,
            weights={"fg": 10.0, "l1": 10.0, "iou": 1.0, "inter": 0.01, "intra": 0.05},
            optimiser=Optimiser("adamw", lr=1e-4, weight_decay=1e-4, clip=0.1),
        ),
    ),
)

PRESETS = {
    "small": {
        "width": 64,
        "hidden": 128,
        "heads": 4,
        "dropout": 0.0,
        "input_dropout": 0.0,
        "epochs": 16,
        "lr": 3e-3,
        "curve": "cosine",
        "warmup": 0.1,
        "layers": 2,
    },
    "official": {"timestamps": "edge", "padding": "seen", "length": "duration"},  # the released network
}


def joint_settings(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """The settings of the encoder and the time of a clip, for UniVTG and MATR."""
    seconds = opt.read("clip_length", float)
    # the official time of clip i is (i + seconds / 2) / n
    times = {1: "centre", 2: "edge"}
    require(seconds in times, "clip_length of opt", seconds, "1 or 2 seconds")
    return encoder_settings(opt) | {"pre_norm": opt.read("pre_norm", bool), "timestamps": times[seconds]}


RELEASE = Release(
    preset="official",
    settings=joint_settings,
    names=(
        *JOINT_NAMES,
        (r"^aligner\.pool\.", "weightedpool."),
        (r"^detector\.foreground\.", "class_embed."),
        (r"^detector\.boundary\.", "span_embed."),
    ),
    transposed=("weightedpool.weight",),
    unread=("txt_position_embed.",),
    corrected={"padding": "hidden"},
)
