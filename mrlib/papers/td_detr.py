"""TD-DETR: synthesised videos and dynamics against spurious correlations (ICCV 2025)."""

from typing import Any

from mrlib.papers.moment_detr import UNREAD, projection_name
from mrlib.papers.qd_detr import NAMES, dab_settings
from mrlib.papers.release import Options, Release, Tensors
from mrlib.papers.schema import Choice, Optimiser, Paper, Schedule, Stage

PAPER = Paper(
    name="td_detr",
    title="The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning (ICCV 2025)",
    aligner=Choice(
        "text_to_video",
        {
            "width": 256,
            "layers": 4,
            "heads": 8,
            "hidden": 1024,
            "projections": 2,
            "dropout": 0.1,
            "input_dropout": 0.5,
            "tef": True,
            "query_positions": "none",
            "places": 32,
            "activation": "prelu",
            "masks": "keys",
            "beta": 0.7,
        },
    ),
    detector=Choice(
        "dab",
        {
            "moment_queries": 10,
            "decoder_layers": 4,
            "heads": 8,
            "hidden": 1024,
            "dropout": 0.1,
            "cost_l1": 1.0,
            "cost_giou": 10.0,
            "cost_class": 4.0,
            "background": 0.1,
            "most_windows": 5,
            "length": "clips",
            "activation": "prelu",
        },
    ),
    stages=(
        Stage(
            "train",
            epochs=200,
            batch_size=16,  # with two synthesised videos for each, the 48 of the released batches
            augment="synthesize",
            weights={"l1": 1.0, "giou": 10.0, "class": 4.0},
            optimiser=Optimiser("adamw", lr=1e-4, weight_decay=1e-4, clip=0.1),
            schedule=Schedule("step", drop=0.4),
        ),
    ),
    round_s=2.0,
)

# for a dataset with windows and without saliency scores: QD-DETR's weights, and 4 for the terms of the saliency
_WINDOWS_ONLY = {
    "layers": 3,
    "decoder_layers": 3,
    "cost_l1": 10.0,
    "cost_giou": 1.0,
    "epochs": 100,
    "lr": 2e-4,
    "weights": {"l1": 10.0, "giou": 1.0, "class": 4.0, "margin": 4.0, "contrast": 4.0, "negative": 4.0},
    "curve": "constant",
    "keep": "MR-full-R1@0.7",
}
PRESETS = {
    # as many samples a step as QD-DETR, and nearly as many steps; costs and weights are those of Charades-STA, which
    # score higher after so few steps
    "small": {
        "width": 64,
        "hidden": 128,
        "heads": 4,
        "dropout": 0.0,
        "input_dropout": 0.0,
        "epochs": 6,
        "lr": 2e-3,
        "curve": "cosine",
        "warmup": 0.1,
        "activation": "relu",
        "layers": 2,
        "decoder_layers": 2,
        "batch_size": 11,
        "cost_l1": 10.0,
        "cost_giou": 1.0,
        "weights": {"l1": 10.0, "giou": 1.0, "class": 4.0},
    },
    "charades_sta": _WINDOWS_ONLY | {"round_s": 1.0},
    "tacos": _WINDOWS_ONLY,
    # the released network and its training
    "official": {"masks": "released", "length": "duration", "augment": "synthesize_official"},
}


def _settings(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """QD-DETR's, and beta; if the options have none, it is the paper's."""
    return dab_settings(opt, tensors) | ({"beta": opt.read("beta", float)} if "beta" in opt else {})


RELEASE = Release(
    preset="official",
    settings=_settings,
    names=(
        (r"^aligner\.layers\.0\.mix\.start\.", "video_embed."),
        (r"^(aligner\.layers\.\d+)\.mix\.attend\.", r"\1.self_attn_flow."),
        (r"^(aligner\.layers\.\d+)\.mix\.project\.(\d+)\.", projection_name),
        *NAMES,
    ),
    unread=UNREAD,
    corrected={"masks": "keys"},
)
