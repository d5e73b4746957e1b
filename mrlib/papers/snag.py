"""SnAG: late fusion on a feature pyramid (CVPR 2024).

The released numbers for Charades-STA, in as many steps of its batches of 8 videos with up to 4 sentences: it has none
for QVHighlights. With beta=0.7 and augment="synthesize" this is TD-DETR's SnAG + TD.
"""

from mrlib.papers.schema import Choice, Optimiser, Paper, Schedule, Stage

PAPER = Paper(
    name="snag",
    title="SnAG: Scalable and Accurate Video Grounding (CVPR 2024)",
    aligner=Choice("separate", {"width": 256, "layers": 5, "heads": 4, "hidden": 1024, "dropout": 0.1}),
    detector=Choice("pyramid", {"levels": 6, "heads": 4, "hidden": 1024, "dropout": 0.1}),
    stages=(
        Stage(
            "train",
            48,
            32,
            optimiser=Optimiser("adamw", 5e-4, weight_decay=5e-4, clip=1.0),
            schedule=Schedule(warmup=0.3125),  # 5 epochs of 16
        ),
    ),
)

PRESETS = {
    "small": {
        "width": 64,
        "layers": 2,
        "hidden": 128,
        "dropout": 0.0,
        "heads": 4,
        "levels": 4,
        "epochs": 16,
        "lr": 1e-3,
        "curve": "cosine",
        "warmup": 0.1,
    },
}
