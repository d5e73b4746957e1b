"""`Toy`: a two-tower encoder, trained in a minute on drawn clips and their captions, as CLIP on pictures of the web.

Paper    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021
Here     a clip is four small pictures, half a second apart; the vocabulary is that of a simulated world
Beyond   it knows nothing but that world: on other videos its features mean nothing

`train_toy` trains one on a simulated dataset; it then reads rendered videos that it has not seen.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrlib.arguments import require, shown
from mrlib.data import Sample
from mrlib.data.arrays import normalized_rows
from mrlib.data.bank import Bank
from mrlib.data.dataset import MomentDataset
from mrlib.data.digests import Checksum
from mrlib.files import LONGEST_LINE, parse_json, write_whole
from mrlib.sim.drawing import Drawing
from mrlib.sim.simulator import CLIP_S, world_of
from mrlib.sim.world import COLORS, LOOKS, STATES, TAILS, World
from mrlib.tensors import check_fit, load_tensors, read_header, save_tensors
from mrlib.video.container import exact, half_up
from mrlib.video.probe import probe
from mrlib.video.read import Progress, pictures
from mrlib.video.rendered import WORDS, another_take, sample_at
from mrlib.video.towers import FRAMES, JOINT, SIDE, Towers, contrast

BATCH = 64  # clips that are encoded at a time
CALIBRATED = 256  # clips on which it is measured how alike a clip and its own sentence are
STEP_S = CLIP_S / FRAMES  # seconds between the pictures of a clip


class Toy:
    """A trained encoder, see `mrlib.video.encode.Encoder`."""

    def __init__(self, towers: Towers, words: Sequence[str], named: Sequence[str], shown: float):
        """An encoder of trained towers.

        words  the vocabulary, in the order of the embeddings
        named  those that stand for something that can be seen: actors, actions, objects
        shown  the cosine from which on a clip shows what a sentence says, see `mrlib.video.zero_shot.exists`
        """
        self.towers = towers.eval().requires_grad_(False)
        self.words, self.named = tuple(words), tuple(named)
        self._number = {word: i for i, word in enumerate(self.words)}
        digest = Checksum()
        digest.update(json.dumps(self.words).encode())
        for _, tensor in sorted(towers.state_dict().items()):
            digest.update(tensor.numpy().tobytes())
        self.recipe = {
            "encoder": "toy",
            "clip_s": CLIP_S,
            "width": JOINT,
            "joint": JOINT,
            "weights": digest.hexdigest(),
            "shown": shown,
        }

    def video(self, path: str | os.PathLike, progress: Progress | None = None) -> Tensor:
        """The features of a video, float32 (n, 128), in the joint space, not normalised."""
        stream = (picture for _, picture in pictures(path, STEP_S, SIDE, progress))
        clips = max(1, half_up(exact(probe(path).duration_s) / exact(CLIP_S)))
        whole = islice(_endless(stream), clips * FRAMES)
        chunks = iter(lambda: list(islice(whole, BATCH * FRAMES)), [])
        features = torch.cat([self.encode(np.stack(chunk)) for chunk in chunks])
        deque(stream, 0)  # to its end, where it may warn
        return features

    def drawn(self, sample: Sample, seed: int = 0) -> Tensor:
        """The features (n, 128) of a simulated sample without a video: pictures are drawn at their small size."""
        return self.encode(drawn_pictures(sample, seed))

    def encode(self, pictures: np.ndarray) -> Tensor:
        """Pictures, uint8 (n * 4, 64, 64, 3), every half second one -> (n, 128)."""
        chunks = torch.from_numpy(pictures).unflatten(0, (-1, FRAMES)).split(BATCH)
        with torch.no_grad():
            return torch.cat([self.towers.pictures(chunk) for chunk in chunks])

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        """The tokens (N, 64) of a sentence and its vector (128,) in the joint space, float32, not normalised.

        Words outside the vocabulary are left out, with a warning that lists them.

        raises  ValueError if no word names an actor, an action or an object that Toy has seen
        """
        require(isinstance(query, str), "query", query, "a sentence")
        words = re.findall(r"\w+", query.lower())
        known = [self._number[word] for word in words if word in self._number]
        if not set(words) & set(self.named):
            examples = ", ".join(self.named)
            raise ValueError(f"{shown(query)} names nothing that Toy has seen; it knows: {examples}")
        if unknown := [word for word in dict.fromkeys(words) if word not in self._number]:
            warnings.warn(f"Toy does not know {', '.join(unknown)}; the sentence is read without", stacklevel=2)
        numbers = torch.tensor([known])
        with torch.no_grad():
            tokens, vector = self.towers.words(numbers, torch.ones_like(numbers, dtype=torch.bool))
        return tokens[0], vector[0]

    def dataset(self, dataset: MomentDataset, seed: int = 0) -> MomentDataset:
        """A simulated dataset with the features of this encoder, drawn and not rendered, to train a retriever on.

        Its one stream is "toy"; clips, tokens and vectors have norm 1, as those of the official releases. Where queries
        are videos, they are other takes of their events.

        raises  ValueError for a sample that cannot be drawn, or a sentence of unknown words only
        """
        items, video = torch.unique(dataset.video, return_inverse=True)
        shown_by = {v: sample_at(dataset, i) for i, v in enumerate(video.tolist())}
        targets = [normalized_rows(self.drawn(shown_by[v], seed).numpy()) for v in range(len(items))]
        if dataset.settings.get("query") == "video":
            takes = (self.drawn(another_take(dataset, i, seed=seed), seed) for i in range(len(dataset)))
            queries = [(rows, torch.from_numpy(normalized_rows(rows.numpy())).mean(0)) for rows in takes]
        else:
            queries = [self.text(sample.query) for sample in dataset.samples]
        return replace(
            dataset,
            target=Bank.from_arrays(targets),
            video=video,
            query=Bank.from_arrays([normalized_rows(rows.numpy()) for rows, _ in queries]),
            query_item=torch.arange(len(dataset)),
            query_joint=torch.from_numpy(normalized_rows(torch.stack([vector for _, vector in queries]).numpy())),
            streams={"toy": slice(0, JOINT)},
            joint="toy",
            settings=dataset.settings | {"encoder": self.recipe},
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Write toy.safetensors and toy.json into a folder."""
        settings = {**self.recipe, "words": self.words, "named": self.named}
        checksum = save_tensors(Path(folder, "toy.safetensors"), self.towers.state_dict(), json.dumps(settings))
        write_whole(Path(folder, "toy.json"), json.dumps({**settings, "checksum": checksum}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Toy:
        """The encoder that `save` wrote into a folder.

        raises  FileNotFoundError if a file is missing; ValueError, naming the file, if one is damaged or foreign, or if
                the two do not belong together
        """
        settings, weights = _read_settings(Path(folder, "toy.json")), Path(folder, "toy.safetensors")
        header = read_header(weights)
        towers = Towers(len(settings["words"]))
        check_fit(weights, header.shapes, towers.state_dict(), f"the words of {Path(folder, 'toy.json')}")
        if header.checksum is None or header.checksum != settings.get("checksum"):
            raise ValueError(f"{Path(folder, 'toy.json')} belongs to other weights than {weights}; save both again")
        towers.load_state_dict(load_tensors(weights, header))
        toy = cls(towers, settings["words"], settings["named"], settings["shown"])
        if toy.recipe["weights"] != settings["weights"]:
            raise ValueError(f"{Path(folder, 'toy.json')}: its words are not those of {weights}; save both again")
        return toy


def _read_settings(file: Path) -> dict[str, Any]:
    """What toy.json says; ValueError, naming the file and the field, unless that is an encoder."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; Toy.save writes it, with toy.safetensors")
    wrong = f"{file} is not the JSON of an encoder that Toy.save wrote"
    if file.stat().st_size > LONGEST_LINE:
        raise ValueError(f"{wrong}: it is larger than {LONGEST_LINE} bytes")
    settings = parse_json(file.read_bytes().decode(errors="replace"), wrong)
    fields: Mapping[str, Any] = settings if isinstance(settings, dict) else {}
    if fields.get("encoder") != "toy":
        raise ValueError(f"{wrong}: its 'encoder' is not \"toy\"")
    for name in ("words", "named"):
        words = fields.get(name)
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{wrong}: {name!r} must be a list of words")
    shown = fields.get("shown")
    if type(shown) not in (int, float) or not -1 <= shown <= 1:
        raise ValueError(f"{wrong}: 'shown' must be a cosine, from -1 to 1")
    return settings


def _endless(pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Pictures, the last one again and again: a video may end before its last clip does."""
    for picture in pictures:
        yield picture
    while True:
        yield picture


def drawn_pictures(sample: Sample, seed: int = 0) -> np.ndarray:
    """What Toy sees of a simulated sample, uint8 (n * 4, 64, 64, 3): the middle of the frame in every half second."""
    drawing = Drawing(sample, seed)
    times = (np.arange(round(sample.duration / STEP_S)) + 0.5) * STEP_S
    return np.stack([drawing.frame(float(t), SIDE, SIDE) for t in times])


# ---- training


def train_toy(
    dataset: MomentDataset,
    *,
    steps: int = 240,
    batch_size: int = 64,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> Toy:
    """Train the encoder on clips that are drawn for it, and their captions; a minute on one thread with the defaults.

    dataset     simulated, as `mrlib.open_dataset("sim")`; of its samples, only their scripts are used
    batch_size  clips with a caption per step; a quarter as many idle ones, which show only a place, stand beside them
    seed        same seed, number of threads and machine: same weights
    watch       is called after every step with its number, from 1, and its loss
    raises      ValueError for a dataset that is not simulated, or cannot be drawn
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        require(type(value) is int and value >= 2, name, value, "a whole number of at least 2")
    world, clips = world_of(dataset), _Clips(dataset)
    named = [word for kind in WORDS for word in world.names[kind]]
    words = _vocabulary(world)
    draw = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = Towers(len(words))
        optimiser = torch.optim.AdamW(towers.parameters(), weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
        for step in range(1, steps + 1):
            pictures, events = clips.draw(draw, batch_size)
            captions = [world.sentence(*event, draw.random(9)) for event in events.tolist()]
            vectors = towers.words(*_numbered(captions, words))[1]
            same = torch.from_numpy((events[:, None] == events).all(-1))
            scale = towers.log_scale.exp().clamp(max=50)
            loss = contrast(vectors, towers.pictures(_altered(pictures, draw)), same, scale)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if watch is not None:
                watch(step, loss.item())
    return Toy(towers, words, named, _shown(towers.eval(), world, words, clips, draw))


@torch.no_grad()
def _shown(towers: Towers, world: World, words: Sequence[str], clips: _Clips, draw: np.random.Generator) -> float:
    """The cosine with their own sentence that nineteen of twenty clips reach."""
    pictures, events = clips.draw(draw, CALIBRATED)
    captions = [world.sentence(*event, draw.random(9)) for event in events.tolist()]
    sentences = towers.words(*_numbered(captions, words))[1]
    cosines = torch.cosine_similarity(towers.pictures(pictures[:CALIBRATED]), sentences, dim=-1)
    return round(cosines.quantile(0.05).item(), 4)


class _Clips:
    """The clips of a simulated dataset: those inside windows, by event, and the idle ones."""

    def __init__(self, dataset: MomentDataset):
        names = world_of(dataset).names
        self.drawings = [Drawing(sample_at(dataset, i)) for i in range(len(dataset))]
        self.shown, self.idle = [], []  # (drawing, the event's numbers, starts of its clips); (drawing, start)
        for drawing in self.drawings:
            for event in drawing.events:
                inside = [t for a, b in event["windows"] for t in np.arange(a, b, CLIP_S)]
                if inside:
                    numbers = [names[kind].index(event[kind]) for kind in WORDS]
                    self.shown.append((drawing, numbers, inside))
                clips = np.arange(event["start"], event["end"], CLIP_S)
                self.idle += [(drawing, t) for t in clips if t not in inside]

    def draw(self, draw: np.random.Generator, count: int) -> tuple[Tensor, np.ndarray]:
        """Pictures uint8 (count + count // 4, 4, 64, 64, 3), the last quarter idle; events of the others (count, 3)."""
        shown = [self.shown[i] for i in draw.integers(len(self.shown), size=count)]
        chosen = [(drawing, draw.choice(starts)) for drawing, _, starts in shown]
        idle = draw.integers(len(self.idle), size=count // 4) if self.idle else []
        chosen += [self.idle[i] for i in idle]
        steps = (np.arange(FRAMES) + 0.5) * STEP_S
        pictures = [[drawing.frame(start + t, SIDE, SIDE) for t in steps] for drawing, start in chosen]
        return torch.from_numpy(np.array(pictures)), np.array([numbers for _, numbers, _ in shown])


def _altered(pictures: Tensor, draw: np.random.Generator) -> Tensor:
    """Pictures shifted by up to two pixels, with other brightness, contrast and tint per clip, and noise, float32."""
    n, single = len(pictures), pictures[0].shape  # (FRAMES, SIDE, SIDE, 3)
    down, right = draw.integers(-2, 3, size=2).tolist()
    x = pictures.roll((down, right), (2, 3)) * (1 + 0.15 * torch.randn(n, 1, 1, 1, 1))
    return x.add_(8 * torch.randn(n, 1, 1, 1, 3)).add_(6 * torch.randn(single))


def _vocabulary(world: World) -> list[str]:
    """The words of a world's sentences; no concept that it does not have."""
    lists = ["a the in shirt", *(word for kind in WORDS for word in world.names[kind]), COLORS, LOOKS, STATES, *TAILS]
    return list(dict.fromkeys(" ".join(lists).split()))


def _numbered(sentences: Sequence[str], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The numbers of the words of sentences, int64 (B, N), and bool (B, N), False on padding."""
    number = {word: i for i, word in enumerate(words)}
    rows = [torch.tensor([number[word] for word in s.rstrip(".").lower().split()]) for s in sentences]
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return x.clamp(min=0), x >= 0
