"""MATR: video queries aligned twice by soft-DTW, and dense boundary regression (ICCV 2025)."""

from typing import Any

from mrlib.arguments import require
from mrlib.papers.moment_detr import JOINT_NAMES
from mrlib.papers.release import Options, Release, Tensors
from mrlib.papers.schema import Choice, Optimiser, Paper, Stage
from mrlib.papers.univtg import joint_settings

_ADAMW = Optimiser("adamw", lr=1e-4, weight_decay=1e-4, clip=0.1)
_KEEP = "mIoU + MR-full-R1@0.5"

PAPER = Paper(
    name="matr",
    title="Aligning Moments in Time using Video Queries (ICCV 2025)",
    aligner=Choice(
        "dual_stage",
        {
            "width": 1024,
            "layers": 4,
            "heads": 8,
            "hidden": 1024,
            "projections": 2,
            "activation": "relu",
            "dropout": 0.1,
            "input_dropout": 0.5,
            "tef": False,
            "query_positions": "sine",
            "places": 75,
            "pre_norm": False,
            "moment_queries": 10,
            "decoder_layers": 4,
            "gamma": 0.1,
            "align": "subsequence",
            "pre": True,
            "post": True,
            "cost": "cosine",
            "typed": False,
            "memory": "part",
        },
    ),
    detector=Choice(
        "boundary",
        {
            "heads": 8,
            "offsets": "bounded",
            "timestamps": "centre",
            "length": "clips",
            "background": 1.0,
            "padding": "hidden",
            "nms": 0.7,
            "answer": "heads",
            "fusion": "sequence",
        },
    ),
    stages=(
        Stage(
            "pretrain",
            epochs=50,
            batch_size=600,
            augment="clip_query",
            data="videos",
            optimiser=_ADAMW,
            keep=_KEEP,
        ),
        Stage(
            "finetune",
            epochs=200,
            batch_size=1200,
            start=("pretrain", "last"),
            optimiser=_ADAMW,
            keep=_KEEP,
        ),
    ),
    query="video",
    streams="joint",
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
        "decoder_layers": 1,
        "moment_queries": 4,
        "projections": 1,
        "pretrain.batch_size": 32,
        "finetune.batch_size": 32,
        # with the printed weight of 1 the features collapse onto one direction, whose alignment costs nothing
        "weights": {"align_pre": 0.01, "align_post": 0.01},
    },
    "sportsmoments": {"finetune.epochs": 40, "finetune.batch_size": 40, "pretrain.batch_size": 20},
    "paper": {},  # `PAPER` as it is
    # the released network, for its checkpoints; no head reads its decoder, so ours has none
    "official_code": {
        "tef": True,
        "query_positions": "none",
        "typed": True,
        "cost": "contrastive",
        "align": "mean",
        "memory": "whole",
        "moment_queries": 0,
        "fusion": "none",
        "offsets": "raw",
        "timestamps": "edge",
        "background": 0.1,
        "dropout": 0.0,
        "length": "duration",
        "padding": "seen",
    },
}


def _settings(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """As UniVTG's. The released heads read the encoder only; heads of twice its width also read the decoder."""
    settings = joint_settings(opt, tensors)
    first, embedding = (tensors.get(name) for name in ("class_embed_c.layers.0.weight", "query_embed.weight"))
    if first is None or first.ndim != 3 or first.shape[1] != 2 * settings["width"]:
        return settings
    require(not settings["pre_norm"], "pre_norm of opt", True, "False where heads read the decoder")
    # the released builder ignores `num_queries` and makes one moment query
    count = 1 if embedding is not None and embedding.ndim and len(embedding) == 1 else opt.size("num_queries")
    return settings | {"fusion": "channel", "moment_queries": count, "decoder_layers": opt.layers("dec_layers")}


RELEASE = Release(
    preset="official_code",
    settings=_settings,
    names=(
        *JOINT_NAMES,
        (r"^aligner\.moment_queries\.", "query_embed."),
        (r"^aligner\.decoder\.", "transformer.decoder.layers."),
        (r"^aligner\.norm\.", "transformer.decoder.norm."),
        (r"\.cross_attn\.", ".multihead_attn."),
        (r"^detector\.foreground\.", "class_embed_c."),
        (r"^detector\.boundary\.", "span_embed_c."),
    ),
    unread=(
        "txt_position_embed.",
        "transformer.decoder.",
        "query_embed.",
        "transformer.vid_proj.",
        "span_embed.",
        "class_embed.",
        "weightedpool.",
    ),
    corrected={"padding": "hidden"},
)
