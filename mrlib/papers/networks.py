"""Which network a published checkpoint holds, told by its names: ours under another paper, or one that is not here.

Lighthouse (line/lighthouse) trains seven networks and says which in `model_name`. Its Moment-DETR, QD-DETR and CG-DETR
are the released ones, under the same names; the others are refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mrlib.papers.registry import RELEASES

# network -> the beginnings of names that only its release has; the first that is found counts
_MARKS: dict[str, tuple[str, ...]] = {
    "eatr": ("event_span_embed.", "moment_span_embed."),
    "tr_detr": ("gru_extractor.",),
    "uvcom": ("CIM.",),
    "taskweave": ("output_saliency.", "saliency_proj_local."),
    "cg_detr": ("dummy_rep_token", "txtproj_encoder."),
    "amr": ("fuser.", "iou_head."),
    "td_detr": ("video_embed.",),
    "matr": ("class_embed_c.", "span_embed_c."),
    "univtg": ("weightedpool.",),
    "qd_detr": ("global_rep_token",),
    "moment_detr": ("saliency_proj.",),
}
# network -> why its checkpoints are not read
_ABSENT = {
    "eatr": "EaTR: its event reasoning has no counterpart here",
    "tr_detr": "TR-DETR: its refinement of saliency by predicted moments has no counterpart here",
    "uvcom": "UVCOM: its detector, which starts from the words, has no counterpart here, only its aligner has",
    "taskweave": "TaskWeave: its decoder and its masks have no counterpart here, only its aligner has",
}


def network_of(names: Collection[str], options: Mapping[str, Any]) -> str | None:
    """The network of a checkpoint, a key of `_MARKS`; None if nothing tells.

    names    of its tensors
    options  of its training; `model_name` is Lighthouse's
    """
    named = options.get("model_name")
    if isinstance(named, str):
        known = next((network for network in _MARKS if named == network or named.startswith(f"{network}_")), None)
        if known is not None:
            return known
    marks = ((network, begins) for network, begins in _MARKS.items())
    return next((network for network, begins in marks if any(name.startswith(begins) for name in names)), None)


def refusal(paper: str, names: Collection[str], options: Mapping[str, Any]) -> str | None:
    """Why a checkpoint cannot be loaded as this paper's, as the end of a sentence about it; None: nothing speaks so."""
    network = network_of(names, options)
    if network is None or network == paper or paper not in _MARKS:  # a paper from elsewhere may have any names
        return None
    if network in _ABSENT and network not in RELEASES:
        return f"holds a network of {_ABSENT[network]}; known: {', '.join(RELEASES)}"
    return f"holds a network of {network}, not of {paper}; load it with paper={network!r}"
