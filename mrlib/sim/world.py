"""The concepts of a simulated world: their vectors and words, the world's sizes and its knobs.

Concepts (actors, actions, objects, places) are unit vectors of a joint language-vision space; actions have a second
vector in the motion space. Images and sentences lie apart in the joint space, as CLIP's do: `gap_video`, `gap_text`.
A world is a function of its seed: every split of one seed shows the same concepts.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real

import numpy as np

from mrlib.arguments import require

ACTORS = "man woman boy girl chef dancer farmer nurse coach singer"
ACTIONS = (  # a row is a family: actions that look alike
    "kicks throws bounces rolls",
    "lifts carries holds drags",
    "washes wipes scrubs polishes",
    "paints draws colors decorates",
    "builds repairs dismantles tests",
    "shows reviews films describes",
    "packs unpacks wraps hides",
    "cuts peels squeezes shakes",
)
OBJECTS = (
    "ball box lamp bag bottle chair pumpkin guitar bicycle basket kettle drum phone camera toy "
    "mirror blanket bucket cake ladder melon pillow radio suitcase table puppet vase wagon clock kite"
)
PLACES = "kitchen garden garage beach street gym park market studio forest classroom harbor"
COLORS = "red blue green white black yellow"
LOOKS = "young tall cheerful quiet blond bearded"
STATES = "big small new broken wooden heavy"
TAILS = (
    "in front of the camera",
    "while talking to the viewers",
    "and then takes a break",
    "before the others come back",
    "for the first time today",
    "as the music keeps on playing",
    "with both hands",
    "again and again",
    "very slowly",
)

KNOBS = ("blur", "family", "n_train", "spurious", "speed", "irrelevant", "noise", "null")


@dataclass(frozen=True)
class Parameters:
    """Everything that shapes the world except its seed; lengths are in clips, weights relative to unit vectors."""

    # sizes
    clips: int  # T
    joint: int  # J, width of the appearance stream, of words and of query vectors
    motion: int  # width of the motion stream
    n_train: int  # knob: training samples
    n_val: int
    n_test: int
    actors: int
    families: int
    members: int  # actions of a family
    objects: int
    places: int

    # layout of events in time
    windows: tuple[float, ...]  # chances of 1, 2, ... windows per event
    scale: float  # factor of the lengths of windows and of the gaps between them
    full: float  # chance of an event that covers the whole video
    context: float  # mean number of idle clips on each side of an event; they show its place, not the event
    irrelevant: float  # knob: chance that another event resembles the queried one
    blur: float  # knob: standard deviation of the transition between events, clips
    cut: float  # chance of a new shot at a clip inside a window

    # appearance
    noise: float  # knob: norm of the noise of a clip
    family: float  # knob: share of an action's vector that is its family's
    gap_text: float  # u
    scene: float  # S
    place: float  # p
    shot: float  # h
    content: float  # c
    memory: float  # rho, lag-1 correlation of the noise
    query_event: float  # k, the event in the query's vector
    query_noise: float  # kappa
    visible: float  # m; the visibility of a clip is sigmoid(m + d z)
    visible_sd: float  # d
    wordy: float  # chance of each optional part of a sentence

    # the same at every size
    gap_video: float = 1.0  # v
    gap_cosine: float = 0.3  # cosine of the two gaps
    visible_memory: float = 0.25
    weights: tuple[float, float, float] = (0.5, 0.5, 0.7)  # of actor, action, object in an event
    visible_query: float = 2.0  # m in a query video, which is cut to show the event
    phase: float = 0.0  # weight of the phase of an action; 0: an action looks the same from start to end
    action_motion: float = 0.8  # a
    scene_motion: float = 0.4  # b
    noise_motion: float = 0.5
    family_motion: float | None = 0.2  # share of the motion vector that is the family's; None: as `family`
    spurious: float = 0.0  # knob: chance that an action happens in its home place
    speed: float = 2.0  # knob: a query video runs up to this many times faster or slower
    context_least: int = 0  # fewest idle clips on each side of an event
    place_inside: float = 1.0  # share of p inside a window; 0: the place is not seen during the event
    length: float = 1.0  # factor of the lengths of windows
    siblings: float = 0.5  # share of resembling events that differ by an action of the same family
    null: float = 0.0  # knob: chance that a query is about an event that does not happen


SIZES = {
    "small": Parameters(
        clips=32, joint=128, motion=32, n_train=1024, n_val=500, n_test=500,
        actors=6, families=4, members=3, objects=12, places=8,
        windows=(0.75, 0.18, 0.07), scale=0.5, full=0.03, context=1.0, irrelevant=0.10, blur=0.5, cut=0.05,
        noise=0.6, family=0.5, gap_text=1.0, scene=0.5, place=0.35, shot=0.4, content=0.7, memory=0.2,
        query_event=0.6, query_noise=0.2, visible=-0.2, visible_sd=1.9, wordy=0.1,
    ),
    "paper": Parameters(
        clips=75, joint=512, motion=256, n_train=7218, n_val=1550, n_test=1542,
        actors=10, families=8, members=4, objects=30, places=12,
        windows=(0.695, 0.155, 0.065, 0.03, 0.014, 0.012, 0.01, 0.008, 0.006, 0.005), scale=1.0, full=0.05,
        context=1.5, irrelevant=0.03, blur=0.8, cut=0.15,
        noise=0.65, family=0.6, gap_text=1.5, scene=0.45, place=0.2, shot=0.48, content=0.62, memory=0.15,
        query_event=0.4, query_noise=0.35, visible=-0.5, visible_sd=1.9, wordy=0.53,
    ),
}  # fmt: skip

# Parameters under which a knob shows its effect where the defaults do not. "context" is for `spurious` too: inside a
# window, close-ups show little of the event and nothing of its place, which is seen before and after it.
PRESETS: dict[str, dict] = {knob: {} for knob in KNOBS} | {
    "family": {"irrelevant": 0.4, "siblings": 1.0, "weights": (0.5, 0.8, 0.7), "family_motion": None},
    "spurious": {
        "place": 0.8, "weights": (0.25, 0.25, 0.5), "content": 0.6, "context": 5.0, "context_least": 4, "length": 0.4,
    },
    "context": {
        "place": 1.0, "weights": (0.25, 0.25, 0.5), "content": 0.5, "context": 5.0, "context_least": 4, "length": 0.4,
        "place_inside": 0.0, "action_motion": 0.4,
    },
}  # fmt: skip

# One window per pair [MATR §3], and actions that go through phases; without phases there is no order to align.
QUERIES = {"text": {}, "video": {"windows": (1.0,), "phase": 0.6, "content": 0.9, "families": 8}}


def parameters(size: str, query: str, preset: str | None, knobs: dict) -> Parameters:
    """The parameters of a size, changed by the kind of query, by a preset and by knobs.

    raises  ValueError for an unknown name, or a knob out of its range
    """
    for name, value, known in (("size", size, SIZES), ("query", query, QUERIES), ("preset", preset, [None, *PRESETS])):
        if value not in list(known):  # a list: what has no hash is unknown too
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")
    if unknown := set(knobs) - set(KNOBS):
        raise ValueError(f"unknown knob {sorted(unknown)}; known: {', '.join(KNOBS)}")
    for name, value in knobs.items():
        fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        require(fits, name, value, "a number")
    p = replace(SIZES[size], **QUERIES[query] | PRESETS[preset or "noise"] | knobs)
    shares = {name: getattr(p, name) for name in ("family", "spurious", "irrelevant")}
    for name, value, fits, range_ in (
        *((name, value, 0 <= value <= 1, "from 0 to 1") for name, value in shares.items()),
        ("null", p.null, 0 <= p.null < 1, "at least 0 and below 1"),
        ("blur", p.blur, p.blur >= 0, "at least 0"),
        ("noise", p.noise, p.noise >= 0, "at least 0"),
        ("speed", p.speed, p.speed >= 1, "at least 1"),
        ("n_train", p.n_train, p.n_train >= 1 and p.n_train % 1 == 0, "a whole number of at least 1"),
    ):
        require(fits, name, value, range_)
    return p


@dataclass(frozen=True)
class Dice:
    """Random generators by name; the numbers of one name do not depend on those of any other.

    A name seeds its generator, so renaming one changes the data.
    """

    key: tuple

    def __call__(self, name: str) -> np.random.Generator:
        digest = hashlib.blake2b(repr((*self.key, name)).encode(), digest_size=16).digest()
        return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))

    def normal(self, name: str, *shape: int) -> np.ndarray:
        return self(name).standard_normal(shape, dtype=np.float32)

    def uniform(self, name: str, *shape: int) -> np.ndarray:
        return self(name).random(shape)

    def pick(self, name: str, n: int, *shape: int) -> np.ndarray:
        """Integers in [0, n), int64 of the given shape; the same uniform numbers are drawn whatever n is."""
        return (self.uniform(name, *shape) * n).astype(np.int64)


def unit(x: np.ndarray) -> np.ndarray:
    """Divide vectors by their norms along the last axis, in place."""
    x /= np.sqrt(np.einsum("...d,...d->...", x, x))[..., None]
    return x


@dataclass(frozen=True)
class World:
    """The vectors of the concepts and words of one seed."""

    p: Parameters
    seed: int

    @property
    def dice(self) -> Dice:
        return Dice((self.seed, "world"))

    def _units(self, name: str, *shape: int) -> np.ndarray:
        return unit(self.dice.normal(name, *shape))

    @cached_property
    def actors(self) -> np.ndarray:
        """Vectors of the actors, (actors, J)."""
        return self._units("actors", self.p.actors, self.p.joint)

    @cached_property
    def objects(self) -> np.ndarray:
        """Vectors of the objects, (objects, J)."""
        return self._units("objects", self.p.objects, self.p.joint)

    @cached_property
    def places(self) -> np.ndarray:
        """Vectors of the places, (places, J)."""
        return self._units("places", self.p.places, self.p.joint)

    @cached_property
    def actions(self) -> np.ndarray:
        """Vectors of the actions in the joint space, (families * members, J)."""
        return self._actions("actions", self.p.joint, self.p.family)

    @cached_property
    def motions(self) -> np.ndarray:
        """Vectors of the actions in the motion space, (families * members, motion)."""
        p = self.p
        return self._actions("motions", p.motion, p.family if p.family_motion is None else p.family_motion)

    @cached_property
    def phases(self) -> np.ndarray:
        """The look of every action at four points from its start to its end, (families * members, 4, J)."""
        return self._units("phases", self.p.families * self.p.members, 4, self.p.joint)

    @cached_property
    def gaps(self) -> np.ndarray:
        """The vector that all clips share, and the one that all sentences share, (2, J)."""
        video, other = self._units("gaps", 2, self.p.joint)
        other = unit(other - (other @ video) * video)
        cosine = self.p.gap_cosine
        return np.stack([video, cosine * video + np.sqrt(1 - cosine**2) * other]).astype(np.float32)

    @cached_property
    def gap_motion(self) -> np.ndarray:
        """The vector that all clips share in the motion space, (motion,)."""
        return self._units("gap_motion", self.p.motion)

    def _actions(self, name: str, width: int, family: float) -> np.ndarray:
        """Vectors of actions; `family` is the share of the vector that an action has in common with its family."""
        common = self._units(f"{name}/family", self.p.families, 1, width)
        single = self._units(f"{name}/own", self.p.families, self.p.members, width)
        actions = unit(np.sqrt(family) * common + np.sqrt(1 - family) * single)  # (families, members, width)
        return actions.reshape(-1, width).astype(np.float32)  # (families * members, width)

    def homes(self, *, shifted: bool) -> np.ndarray:
        """The home place of each action, (families * members,); `shifted`: each has another home than in `train`."""
        order = self.dice("homes").permutation(self.p.places)
        homes = order[np.arange(self.p.families * self.p.members) % self.p.places]
        shift = 1 + self.dice.pick("shift", self.p.places - 1, 1)
        return (homes + shift) % self.p.places if shifted else homes

    def event(self, actor: np.ndarray, action: np.ndarray, thing: np.ndarray) -> np.ndarray:
        """The vectors of events, (..., J), from the numbers of their actors, actions and objects, (...)."""
        a, c, o = np.float32(np.array(self.p.weights) / np.linalg.norm(self.p.weights))
        return (a * self.actors)[actor] + (c * self.actions)[action] + (o * self.objects)[thing]

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """The word for every concept, by kind."""
        actions = [verb for row in ACTIONS[: self.p.families] for verb in row.split()[: self.p.members]]
        return {
            "actor": ACTORS.split()[: self.p.actors],
            "action": actions,
            "object": OBJECTS.split()[: self.p.objects],
            "place": PLACES.split()[: self.p.places],
        }

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The number of every word that a sentence may have."""
        lists = ["a the in shirt", ACTORS, *ACTIONS, OBJECTS, COLORS, LOOKS, STATES, *TAILS]
        return {word: i for i, word in enumerate(dict.fromkeys(" ".join(lists).split()))}

    @cached_property
    def words(self) -> np.ndarray:
        """Word vectors, (vocabulary, J); they are not in the joint space."""
        return self._units("words", len(self.vocabulary), self.p.joint)

    def sentence(self, actor: int, action: int, thing: int, u: np.ndarray) -> str:
        """An English sentence about an event. It never names the place, which can only be learned by association.

        u  (9,) uniform numbers that choose the optional words
        """

        def optional(i: int, options: str, before: str = "", after: str = "") -> list[str]:
            """With chance `wordy`, one of the options between the words before and after it."""
            if u[i] >= self.p.wordy:
                return []
            words = options.split()
            return [*before.split(), words[int(u[i + 1] * len(words))], *after.split()]

        names = self.names
        words = [
            "a",
            *optional(0, LOOKS),
            names["actor"][actor],
            *optional(2, COLORS, "in a", "shirt"),
            names["action"][action],
        ]
        words += ["the" if u[4] < 0.5 else "a", *optional(5, STATES), names["object"][thing]]
        if u[7] < self.p.wordy:
            words += TAILS[int(u[8] * len(TAILS))].split()
        return " ".join(words).capitalize() + "."
