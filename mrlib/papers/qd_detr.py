"""QD-DETR: cross-attention from clips to words and DAB-DETR's moment queries (CVPR 2023)."""

from typing import Any

from mrlib.arguments import require
from mrlib.papers.moment_detr import (
    JOINT_NAMES,
    MOMENT_QUERY_NAMES,
    UNREAD,
    moment_query_settings,
)
from mrlib.papers.release import Options, Release, Tensors
from mrlib.papers.schema import Choice, Optimiser, Paper, Stage

PAPER = Paper(
    name="qd_detr",
    title="Query-Dependent Video Representation for Moment Retrieval and Highlight Detection (CVPR 2023)",
    aligner=Choice(
        "text_to_video",
        {
            "width": 256,
            "layers": 2,
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
        },
    ),
    detector=Choice(
        "dab",
        {
            "moment_queries": 10,
            "decoder_layers": 2,
            "heads": 8,
            "hidden": 1024,
            "dropout": 0.1,
            "cost_l1": 10.0,
            "cost_giou": 1.0,
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
            batch_size=32,
            weights={"l1": 10.0, "giou": 1.0, "class": 4.0},
            optimiser=Optimiser("adamw", lr=1e-4, weight_decay=1e-4, clip=0.1),
        ),
    ),
    round_s=2.0,
)

PRESETS = {
    "small": {
        "width": 64,
        "hidden": 128,
        "heads": 4,
        "dropout": 0.0,
        "input_dropout": 0.0,
        "epochs": 16,
        "lr": 2e-3,
        "curve": "cosine",
        "warmup": 0.1,
        "activation": "relu",
    },
    "official": {"masks": "released", "length": "duration"},  # the released network, for its checkpoints
    # for a dataset with saliency scores and no windows, so that nothing trains the detector; a model for each domain
    "tvsum": {
        "epochs": 2000,
        "batch_size": 4,
        "lr": 1e-3,
        "keep": "HL-top5-mAP",
        "weights": {"l1": 0.0, "giou": 0.0, "class": 0.0},
    },
    "youtube_highlights": {  # the numbers of `line/lighthouse`
        "epochs": 1000,
        "batch_size": 4,
        "lr": 2e-4,
        "keep": "HL-mAP",
        "weights": {"l1": 0.0, "giou": 0.0, "class": 0.0},
    },
}


def dab_settings(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """The settings of QD-DETR's and TD-DETR's network; the official one has no forward pass for `pre_norm`."""
    require(not opt.read("pre_norm", bool), "pre_norm of opt", True, "False")
    return moment_query_settings(opt)


TEXT_TO_VIDEO_NAMES = (
    (r"^aligner\.layers\.(\d+)\.cross_attn\.", r"transformer.t2v_encoder.layers.\1.self_attn."),
    (r"^aligner\.layers\.", "transformer.t2v_encoder.layers."),
    (r"^aligner\.encoder\.", "transformer.encoder.layers."),
)
DAB_NAMES = (
    (r"\.self_attn\.([qk])_content\.", r".sa_\1content_proj."),
    (r"\.self_attn\.([qk])_place\.", r".sa_\1pos_proj."),
    (r"\.self_attn\.value\.", ".sa_v_proj."),
    (r"\.cross_attn\.([qk])_content\.", r".ca_\1content_proj."),
    (r"\.cross_attn\.([qk])_place\.", r".ca_\1pos_proj."),
    (r"\.cross_attn\.q_sine\.", ".ca_qpos_sine_proj."),
    (r"\.cross_attn\.value\.", ".ca_v_proj."),
    (r"^detector\.decoder\.place\.", "detector.decoder.ref_point_head."),
    (r"^detector\.decoder\.scale\.", "detector.decoder.query_scale."),
    (r"^detector\.decoder\.anchor\.", "detector.decoder.ref_anchor_head."),
    (r"^detector\.decoder\.move\.", "detector.decoder.bbox_embed."),
    (r"^detector\.decoder\.", "transformer.decoder."),
)
NAMES = (
    *MOMENT_QUERY_NAMES,
    *TEXT_TO_VIDEO_NAMES,
    (r"^aligner\.global_token$", "global_rep_token"),
    (r"^aligner\.global_position$", "global_rep_pos"),
    (r"^aligner\.clip_side\.", "saliency_proj1."),
    (r"^aligner\.global_side\.", "saliency_proj2."),
    *JOINT_NAMES,
    *DAB_NAMES,
)
RELEASE = Release(
    preset="official",
    settings=dab_settings,
    names=NAMES,
    unread=UNREAD,
    corrected={"masks": "keys"},
)
