"""Moment-DETR: a joint encoder and moment queries (NeurIPS 2021).

QD-DETR, TD-DETR and AMR share its readers of options and its names of tensors; UniVTG and MATR those of the encoder.
"""

import re
from typing import Any

from mrlib.arguments import require
from mrlib.papers.release import Options, Release, Tensors
from mrlib.papers.schema import Choice, Optimiser, Paper, Stage

_WEIGHTS = {"l1": 10.0, "giou": 1.0, "class": 4.0}

PAPER = Paper(
    name="moment_detr",
    title="QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries (NeurIPS 2021)",
    aligner=Choice(
        "joint_memory",
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
            "pre_norm": False,
        },
    ),
    detector=Choice(
        "detr",
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
            "pre_norm": False,
        },
    ),
    stages=(
        Stage(
            "train",
            epochs=200,
            batch_size=32,
            weights=_WEIGHTS,
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
        "epochs": 40,  # moment queries that do not start as spans take longer to specialise
        "lr": 2e-3,
        "curve": "cosine",
        "warmup": 0.1,
    },
    "official": {"length": "duration"},  # the released network, for its checkpoints
    # the loss that the release has, with its numbers, and leaves off
    "contrastive": {"contrast_width": 64, "weights": {**_WEIGHTS, "contrastive_align": 0.02}},
}


def encoder_settings(opt: Options) -> dict[str, Any]:
    """Our settings of the encoder from the options of an official checkpoint of Moment-DETR or a descendant."""
    context, learned = opt.read("ctx_mode", str), opt.read("use_txt_pos", bool)
    for name, known in (("span_loss_type", ("l1",)), ("position_embedding", ("sine", "v2"))):
        require(opt.read(name, str) in known, f"{name} of opt", opt[name], " or ".join(known))
    require("video" in context, "ctx_mode of opt", context, "with video, the only features of the target")
    return {
        "width": opt.size("hidden_dim"),
        "layers": opt.layers("enc_layers", least=0),
        "heads": opt.size("nheads"),
        "hidden": opt.size("dim_feedforward"),
        "projections": opt.layers("n_input_proj"),
        "dropout": opt.share("dropout"),
        "input_dropout": opt.share("input_dropout"),
        "tef": "tef" in context,
        "query_positions": "learned" if learned else "none",
    } | ({"places": opt.size("max_q_l")} if learned else {})


def moment_query_settings(opt: Options) -> dict[str, Any]:
    """The settings of the encoder and of the moment queries, for Moment-DETR, QD-DETR, TD-DETR and AMR."""
    opt.refuse("a_feat_dim", "sound is not read")
    return encoder_settings(opt) | {
        "moment_queries": opt.size("num_queries"),
        "decoder_layers": opt.layers("dec_layers"),
    }


def _settings(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """With those of the contrast of moment queries and words, if the network was trained with it."""
    settings = moment_query_settings(opt) | {"pre_norm": opt.read("pre_norm", bool)}
    if "contrastive_align_loss" not in opt or not opt.read("contrastive_align_loss", bool):
        return settings
    return settings | {
        "contrast_width": opt.size("contrastive_hdim"),
        "contrast_temperature": opt.read("temperature", float),
        "contrast_padding": "seen",
        "weights": _WEIGHTS | {"contrastive_align": opt.read("contrastive_align_loss_coef", float)},
    }


def projection_name(match: re.Match) -> str:
    """The official name of a layer of a projection: of the target, of the query, or in the dynamics of TD-DETR.

    Our layer is four modules, LayerNorm, dropout, Linear and ReLU; theirs is two, LayerNorm and `net`.
    """
    layer, part = divmod(int(match[2]), 4)
    side = {"target": "input_vid_proj", "query": "input_txt_proj"}.get(match[1], f"{match[1]}.flow_proj")
    return f"{side}.{layer}.{'net.1' if part else 'LayerNorm'}."


JOINT_NAMES = (
    (r"^aligner\.(encoder|fuse)\.", ""),
    (r"^project_(target|query)\.(\d+)\.", projection_name),
    (r"^token_type\.", "token_type_embeddings."),
    (r"^places\.norm\.", "txt_position_embed.LayerNorm."),
    (r"^places\.", "txt_position_embed."),
    (r"^(layers|norm)\.", r"transformer.encoder.\1."),
    (r"\.feed_forward\.", "."),
)
MOMENT_QUERY_NAMES = (
    (r"^aligner\.(project_|places)", r"\1"),
    (r"^detector\.decoder\.moment_queries\.", "query_embed."),
    (r"^detector\.heads\.0\.mlp\.", "span_embed."),
    (r"^detector\.heads\.1\.linear\.", "class_embed."),
)
# positions of words, if `use_txt_pos` is off, and the projections of a contrastive loss, if it is off or of the clips
UNREAD = ("txt_position_embed.", *(f"contrastive_align_projection_{side}." for side in ("query", "txt", "vid")))
RELEASE = Release(
    preset="official",
    settings=_settings,
    names=(
        *MOMENT_QUERY_NAMES,
        (r"^detector\.contrast\.queries\.", "contrastive_align_projection_query."),
        (r"^detector\.contrast\.words\.", "contrastive_align_projection_txt."),
        (r"^aligner\.saliency\.", "saliency_proj."),
        (r"^aligner\.", ""),
        *JOINT_NAMES,
        (r"^detector\.decoder\.(layers|norm)\.", r"transformer.decoder.\1."),
        (r"\.cross_attn\.", ".multihead_attn."),
    ),
    unread=UNREAD,
    corrected={"contrast_padding": "hidden"},
)
