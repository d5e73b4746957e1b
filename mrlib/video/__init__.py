"""From a video to a moment: decode, encode, index, find, show.

    files     `container` opens a file, `probe` measures it, `frames` and `filters` decode it; `read` gives pictures,
              `cut` a part of it, `write` writes videos
    features  `encode` has the protocol and thumbnails; `clip` is CLIP, which `pretrained` loads; `toy`, whose networks
              are in `towers`, is trained on videos that `rendered` makes of simulated samples; `index` keeps features
    find      `search` in one video: `zero_shot` without training, `retrievers` opens trained models, which `windows`
              applies to any length
    corpus    `corpus` searches many videos: the file is in `corpus_file`, the query in `asked`, the first step in
              `coarse`; `corpus_trial` measures it
    show      `scene` checks and draws moments, `show` plays them
    extract   `extract` writes the features of a folder that `annotated` reads, as `feature_files`, in parts by `shards`

Names load on first use [PEP 562].
"""

from importlib import import_module

_MEMBERS = {
    "Clip": "clip",
    "Corpus": "corpus",
    "Encoder": "encode",
    "Index": "index",
    "Pixels": "encode",
    "Player": "show",
    "Toy": "toy",
    "find": "search",
    "moments": "rendered",
    "render": "rendered",
    "storyboard": "scene",
    "train_toy": "toy",
}


def __getattr__(name: str):
    if name in _MEMBERS:
        return getattr(import_module(f"mrlib.video.{_MEMBERS[name]}"), name)
    raise AttributeError(f"module 'mrlib.video' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MEMBERS])
