"""A²FA + F²SGD: anchor-aware alignment and 2-D detection on the similarity map (CVPR 2025)."""

from mrlib.papers.schema import Choice, Optimiser, Paper, Schedule, Stage

PAPER = Paper(
    name="f2sgd",
    title="Anchor-Aware Similarity Cohesion in Target Frames Enables Predicting Temporal Moment Boundaries in 2D "
    "(CVPR 2025)",
    aligner=Choice("anchor", {"reweight": True, "align": True, "right": "literal", "scale": False}),
    detector=Choice(
        "similarity_map",
        {
            "kernel": 21,
            "channels": 32,
            "candidates": 10,
            "head": "linear",
            "standardise": False,
            "loss_cells": "triangle",
            "reduction": "sum",
            "zero_init": True,
        },
    ),
    stages=(
        Stage(
            "train",
            epochs=10,
            batch_size=128,
            optimiser=Optimiser("adam", lr=1e-4),
            schedule=Schedule("cosine", warmup=0.1),
        ),
    ),
    streams="joint",
)

PRESETS = {
    "small": {"kernel": 9, "channels": 8, "standardise": True, "batch_size": 32, "lr": 1e-3},
    "charades_sta": {"kernel": 27, "candidates": 1},
    "activitynet_captions": {"kernel": 27, "candidates": 1},
}
