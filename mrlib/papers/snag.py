"""SnAG: late fusion on a feature pyramid (CVPR 2024).

The numbers are those that the release has for Charades-STA, as it has none for QVHighlights; there, a batch is 8 videos
with up to 4 sentences each, and our epochs make as many steps. With beta=0.7 and augment="synthesize" this is TD-DETR's
"SnAG + TD".
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
            epochs=48,
            batch_size=32,
            optimiser=Optimiser("adamw", lr=5e-4, weight_decay=5e-4, clip=1.0),
            schedule=Schedule(warmup=0.3125),  # 5 of the 16 epochs of Charades-STA
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
