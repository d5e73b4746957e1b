"""From a video to a moment: decode, encode, index, find, show.

`read` decodes, `write` encodes, `encode` turns pictures into features, `index` keeps them, `search` finds moments in
one video and `corpus` in many, `scene` draws and `show` plays them. `rendered` makes videos of simulated samples, and
`toy` an encoder that reads them. Names load on first use [PEP 562].
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
