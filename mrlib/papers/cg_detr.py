"""CG-DETR's checkpoints: QD-DETR's detector on the aligner `cg_detr` (2023); those of Lighthouse, too.

What only training reads is left out: the tokens and encoders of moments and sentences, and their losses.
"""

from typing import Any

from mrlib.arguments import require
from mrlib.papers.moment_detr import JOINT_NAMES, MOMENT_QUERY_NAMES, UNREAD, moment_query_settings
from mrlib.papers.qd_detr import DAB_NAMES, TEXT_TO_VIDEO_NAMES
from mrlib.papers.release import Options, Release, Tensors

_TYPES = "token_type_embeddings"


def _settings(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """Its dummy encoder always has 8 heads, so that only a network of 8 heads is ours."""
    for name in ("pre_norm", "use_txt_pos"):
        require(not opt.read(name, bool), f"{name} of opt", True, "False")
    require(opt.size("nheads") == 8, "nheads of opt", opt["nheads"], "8, as its dummy encoder has")
    settings = moment_query_settings(opt)
    del settings["query_positions"]
    return settings | {
        "aligner": "cg_detr",
        "layers": opt.layers("t2v_layers"),
        "encoder_layers": opt.layers("enc_layers"),
        "dummies": opt.size("num_dummies"),
        "dummy_layers": opt.layers("dummy_layers"),
        "prompts": opt.size("total_prompts"),
        "best_prompts": opt.size("num_prompts"),
        "masks": "released",
        "projected": "transformer.t2v_encoder.layers.0.self_attn.in_proj_weight" in tensors,
    }


def _plain(tensors: Tensors) -> Tensors:
    """Words and clips each have their row of the token types; the position of the saliency token is a vector."""
    plain = dict(tensors)
    types, position = plain.pop(f"{_TYPES}.weight", None), plain.get("global_rep_pos")
    if types is not None:
        plain |= {f"{_TYPES}.{i}": row for i, row in enumerate(types.unbind() if types.ndim == 2 else [types])}
    if position is not None and position.ndim == 2 and len(position) == 1:
        plain["global_rep_pos"] = position[0]
    return plain


RELEASE = Release(
    paper="qd_detr",
    preset="official",
    settings=_settings,
    names=(
        *MOMENT_QUERY_NAMES,
        *TEXT_TO_VIDEO_NAMES,
        (r"^aligner\.dummy_encoder\.", "txtproj_encoder.layers."),
        (r"^aligner\.dummies$", "dummy_rep_token"),
        (r"^aligner\.dummy_positions$", "dummy_rep_pos"),
        (r"^aligner\.word_kind$", f"{_TYPES}.0"),
        (r"^aligner\.clip_kind$", f"{_TYPES}.1"),
        (r"^aligner\.global_token$", "global_rep_token"),
        (r"^aligner\.global_position$", "global_rep_pos"),
        (r"^aligner\.clip_side\.", "saliency_proj1."),
        (r"^aligner\.global_side\.", "saliency_proj2."),
        *JOINT_NAMES,
        *DAB_NAMES,
    ),
    unread=(
        *UNREAD,
        "scls_encoder.",
        "transformer.mcls_encoder.",
        "moment_rep_",
        "sent_rep_",
        "txt_proj_linear.",
    ),
    corrected={"masks": "keys"},
    plain=_plain,
)
