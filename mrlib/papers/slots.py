"""The tables of parts that papers choose from: augmenters, aligners, detectors, training sets, preparations.

A model is one of `ALIGNERS` and one of `DETECTORS`; any pair works, with any of `AUGMENTERS`. To add a part, add a
line: `papers.DETECTORS["mine"] = build_mine`. `papers.get` sets the options that a paper gives its parts, and any other
keyword-only parameter of their builders that has a default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mrlib.align.anchor import build_anchor, build_concat, build_raw
from mrlib.align.cg_detr import build_cg_detr
from mrlib.align.dual_stage import build_dual_stage
from mrlib.align.joint import build_joint
from mrlib.align.joint_memory import build_joint_memory
from mrlib.align.snag import SnagAligner
from mrlib.align.taskweave import build_taskweave
from mrlib.align.text_to_video import build_text_to_video
from mrlib.align.trilinear import build_trilinear
from mrlib.align.uvcom import build_uvcom
from mrlib.augment import identity
from mrlib.augment.clip_query import clip_alone, clip_query, each_video
from mrlib.augment.splice import splice, splice_official
from mrlib.augment.synthesize import synthesize, synthesize_official
from mrlib.data import Batch
from mrlib.data.dataset import MomentDataset
from mrlib.detect.active_queries import active_queries, released_queries
from mrlib.detect.amr_heads import build_dab_quality
from mrlib.detect.boundary import build_boundary
from mrlib.detect.dab import build_dab
from mrlib.detect.pyramid import PyramidDetector
from mrlib.detect.similarity_map import build_similarity_map
from mrlib.detect.tan import TanDetector
from mrlib.detect.word_contrast import build_detr


def one_pass(dataset: MomentDataset) -> MomentDataset:
    """Every (video, query) pair once."""
    return dataset


def ten_passes(dataset: MomentDataset) -> MomentDataset:
    """Every (video, query) pair ten times."""
    return dataset.subset(list(range(len(dataset))) * 10)


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
# name -> dataset -> the samples that a stage trains on
TRAINING_SETS: dict[str, Callable[[MomentDataset], MomentDataset]] = {
    "pairs": one_pass,
    "videos": each_video,
    "ten_passes": ten_passes,
}
# name -> (retriever, *, teacher) -> None: changes a trained retriever, or its teacher, before a stage
PREPARATIONS: dict[str, Callable[..., None]] = {
    "active_queries": active_queries,
    "released_queries": released_queries,
}
# name -> (widths of the dataset, options) -> aligner
ALIGNERS: dict[str, Callable[..., nn.Module]] = {
    "anchor": build_anchor,
    "raw": build_raw,
    "concat": build_concat,
    "separate": SnagAligner,
    "joint": build_joint,
    "joint_memory": build_joint_memory,
    "text_to_video": build_text_to_video,
    "trilinear": build_trilinear,
    "dual_stage": build_dual_stage,
    "taskweave": build_taskweave,
    "uvcom": build_uvcom,
    "cg_detr": build_cg_detr,
}
# name -> (width of the aligner, options) -> detector
DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "similarity_map": build_similarity_map,
    "boundary": build_boundary,
    "pyramid": PyramidDetector,
    "detr": build_detr,
    "dab": build_dab,
    "dab_quality": build_dab_quality,
    "tan": TanDetector,
}
# Defaults at `size="small"` for parts that no entry of `PAPERS` uses; at the other size the builders' defaults hold.
SMALL: dict[str, dict[str, Any]] = {
    "uvcom": {"width": 64, "layers": 2, "hidden": 128, "heads": 4, "dropout": 0.0, "input_dropout": 0.0},
    "cg_detr": {"width": 64, "layers": 2, "encoder_layers": 2, "hidden": 128, "heads": 4, "dropout": 0.0}
    | {"input_dropout": 0.0, "dummies": 8, "dummy_layers": 1},
    "taskweave": {"width": 64, "hidden": 128, "heads": 4, "dropout": 0.0, "input_dropout": 0.0},
    "tan": {"channels": 16, "kernel": 5},
}
