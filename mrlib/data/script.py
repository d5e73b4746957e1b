"""What happens when in a simulated video: events one after the other, of which one is asked for.

The script is exchangeable: all events are drawn alike, and the one asked for is chosen uniformly among those in the
video. So nothing in a video tells which of its events is meant, and a model that does not read the query can at best
find borders of events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrlib.data.world import Dice, Parameters, World

EVENTS = 24  # drawn for every video, enough to fill it whatever the lengths
LOG_MEAN = 2.75, 2.1, 1.75, 1.6, 1.4, 1.1  # of the length of a window by the windows of its event; the last: more
LOG_SD_EVENT = 0.4, 0.5  # for one window, for several
LOG_SD_WINDOW = 0.6  # within an event of several windows
LOG_GAP = np.log(3), 1.0  # mean and sd
SHARED_SHOT = 0.5  # chance that a piece of an event shows the event's shot
SHOWN = 0.97  # visibility of an event where it shows best


@dataclass(frozen=True)
class Timeline:
    """Videos clip by clip, (B, T) arrays."""

    actor: np.ndarray
    action: np.ndarray
    object: np.ndarray
    place: np.ndarray
    inside: np.ndarray  # bool: the event is on, not only its place
    event: np.ndarray  # number of the event
    piece: np.ndarray  # first clip of the piece: a window, a gap or a margin
    progress: np.ndarray  # how far the window has got, in (0, 1)
    length: np.ndarray  # clips of the window, those beyond the video's ends included

    def __len__(self) -> int:
        return len(self.event)


@dataclass(frozen=True)
class Script:
    """What the videos show and which of their events is asked for."""

    timeline: Timeline
    relevant: np.ndarray  # bool (B, T) inside a window of the event asked for
    asked: dict[str, np.ndarray]  # "actor", "action", "object", "place" of that event, (B,)


def write(world: World, dice: Dice, actions: np.ndarray, shifted: bool, videos: int) -> Script:
    """Scripts of some videos.

    actions  the actions that occur, whole families in a row
    shifted  homes are those of `val_shift`
    """
    p = world.p
    event, inside, piece, progress, length = _layout(p, dice, videos)
    rows = np.arange(videos)

    present = np.zeros((videos, EVENTS), bool)
    present[np.nonzero(inside)[0], event[inside]] = True
    asked = np.where(present, dice.uniform("asked", videos, EVENTS), -1).argmax(1)

    shape = videos, EVENTS
    actor = dice.pick("actor", p.actors, *shape)
    action = dice.pick("action", len(actions), *shape)
    thing = dice.pick("object", p.objects, *shape)
    _resemble(p, dice, asked, actor, action, thing)
    at_home = dice.uniform("home", *shape) < p.spurious
    action = actions[action]
    place = np.where(at_home, world.homes(shifted=shifted)[action], dice.pick("place", p.places, *shape))

    facts = {"actor": actor, "action": action, "object": thing, "place": place}
    clipwise = {k: np.take_along_axis(x, event, 1) for k, x in facts.items()}
    timeline = Timeline(**clipwise, inside=inside, event=event, piece=piece, progress=progress, length=length)
    return Script(timeline, inside & (event == asked[:, None]), {k: x[rows, asked] for k, x in facts.items()})


def _layout(p: Parameters, dice: Dice, videos: int) -> tuple[np.ndarray, ...]:
    """Blocks, each an event's windows and gaps between two margins, in a row; the video is cut out at random."""
    most = len(p.windows)
    shape = videos, EVENTS
    count = 1 + np.searchsorted(np.cumsum(p.windows)[:-1], dice.uniform("windows", *shape), side="right")
    log_mean = np.array(LOG_MEAN)[np.minimum(count, len(LOG_MEAN)) - 1]
    several = count > 1
    per_event = dice.normal("length/event", *shape) * np.where(several, LOG_SD_EVENT[1], LOG_SD_EVENT[0])
    per_window = dice.normal("length/window", *shape, most) * np.where(several, LOG_SD_WINDOW, 0)[..., None]
    window = np.exp((log_mean + per_event)[..., None] + per_window) * p.scale * p.length
    gap = np.exp(LOG_GAP[0] + LOG_GAP[1] * dice.normal("gap", *shape, most)) * p.scale
    more = p.context - p.context_least
    margin = p.context_least + np.floor(np.log(1 - dice.uniform("margin", *shape, 2)) / np.log(more / (1 + more)))

    # pieces of a block: margin, window, gap, window, ..., window, margin; idle pieces are cut so that every stretch
    # of T clips has a window in it
    pieces = np.zeros((*shape, 2 * most + 1), np.int64)
    nth = np.arange(most)
    pieces[..., 1::2] = np.where(nth < count[..., None], np.maximum(1, np.rint(window)), 0)
    pieces[..., 2::2] = np.where(nth < count[..., None] - 1, np.clip(np.rint(gap), 1, p.clips // 4), 0)
    pieces[..., [0, -1]] = np.minimum(margin, p.clips // 4)

    block = pieces.sum(-1)
    pieces[block.cumsum(1) - block >= 1.1 * p.clips] = 0  # filled before
    order = dice.uniform("order", *shape).argsort(1)
    pieces = np.take_along_axis(pieces, order[..., None], 1).reshape(videos, -1)
    ends = pieces.cumsum(1)
    total = ends[:, -1]
    start = (dice.uniform("start", videos) * np.maximum(1, total - p.clips + 1)).astype(np.int64)

    # which piece each clip is in, one search for all videos
    beyond = int(total.max()) + p.clips
    base = np.arange(videos)[:, None] * beyond
    now = start[:, None] + np.arange(p.clips)
    at = np.searchsorted((ends + base).ravel(), (np.minimum(now, total[:, None] - 1) + base).ravel(), side="right")
    length = pieces.ravel()[at].reshape(now.shape)
    first = (ends.ravel()[at] - pieces.ravel()[at]).reshape(now.shape)
    at = at.reshape(now.shape) - np.arange(videos)[:, None] * pieces.shape[1]
    event, part = np.take_along_axis(order, at // (2 * most + 1), 1), at % (2 * most + 1)
    inside = part % 2 == 1
    piece = np.maximum(first - start[:, None], 0)
    progress = (now - first + 0.5) / length

    full = (dice.uniform("full", videos) < p.full)[:, None]
    at = np.arange(p.clips)
    return (
        np.where(full, 0, event),
        inside | full,
        np.where(full, 0, piece),
        np.where(full, (at + 0.5) / p.clips, progress),
        np.where(full, p.clips, length),
    )


def _resemble(
    p: Parameters, dice: Dice, asked: np.ndarray, actor: np.ndarray, action: np.ndarray, thing: np.ndarray
) -> None:
    """Turn some events into near misses of the one asked for, and none into another of the same; in place.

    A near miss is a sibling (same actor and object, another action of the family) or has two concepts of three.
    """
    shape = actor.shape
    rows = np.arange(len(asked))
    other = np.arange(EVENTS) != asked[:, None]
    near = other & (dice.uniform("near", *shape) < p.irrelevant)
    sibling = dice.uniform("sibling", *shape) < p.siblings
    step = 1 + dice.pick("sibling/step", p.members - 1, *shape)
    kept = dice.pick("kept", 3, *shape)
    a, c, o = (x[rows, asked][:, None] for x in (actor, action, thing))
    np.copyto(actor, a, where=near & (sibling | (kept != 0)))
    np.copyto(action, c - c % p.members + (c + step) % p.members, where=near & sibling)
    np.copyto(action, c, where=near & ~sibling & (kept != 1))
    np.copyto(thing, o, where=near & (sibling | (kept != 2)))
    same = other & (actor == a) & (action == c) & (thing == o)
    np.copyto(thing, (thing + 1) % p.objects, where=same)


def rendition(world: World, dice: Dice, script: Script) -> tuple[Timeline, np.ndarray]:
    """The event asked for once more: elsewhere, at another speed, from start to end.

    returns  Timeline (B, T // 2), int64 (B,) clips of it that belong to the query
    """
    p, videos = world.p, len(script.timeline)
    most = p.clips // 2
    target = np.where(script.relevant, script.timeline.length, 0).max(1)
    rate, bend = p.speed ** (2 * dice.uniform("speed", 2, videos) - 1)
    clips = np.clip(np.rint(target / rate), 3, most).astype(np.int64)
    t = np.arange(most)
    full = np.zeros((videos, most), np.int64)
    actor, action, thing = (full + script.asked[k][:, None] for k in ("actor", "action", "object"))
    place = full + dice.pick("place", p.places, videos)[:, None]
    progress = np.minimum((t + 0.5) / clips[:, None], 1) ** bend[:, None]
    inside = t < clips[:, None]
    piece = np.where(inside, 0, clips[:, None])
    return Timeline(actor, action, thing, place, inside, full, piece, progress, full + clips[:, None]), clips


def visibility(p: Parameters, dice: Dice, timeline: Timeline, mean: float) -> np.ndarray:
    """How well each clip shows what is going on (B, T), in (0, 1); every window does so once."""
    z = dice.normal("visibility", *timeline.event.shape)
    remember(z, p.visible_memory)
    s = 1 / (1 + np.exp(-(mean + p.visible_sd * z)))
    clips = s.shape[1]
    new = (timeline.piece == np.arange(clips)) | (np.arange(clips) == 0)
    starts = np.flatnonzero(new)
    best = np.repeat(np.maximum.reduceat(s.ravel(), starts), np.diff([*starts, s.size])).reshape(s.shape)
    return np.where(timeline.inside & (s == best), np.maximum(s, SHOWN), s)


def shots(p: Parameters, dice: Dice, timeline: Timeline) -> np.ndarray:
    """The clip in which each clip's shot began (B, T); pieces of an event may come back to one shot."""
    videos, clips = timeline.event.shape
    t = np.arange(clips)
    rows = np.arange(videos)[:, None]
    first = np.full((videos, EVENTS), clips)
    np.minimum.at(
        first, (np.broadcast_to(rows, timeline.event.shape), timeline.event), np.broadcast_to(t, timeline.event.shape)
    )
    shared = dice.uniform("shot/shared", videos, clips)[rows, timeline.piece] < SHARED_SHOT
    base = np.where(shared, first[rows, timeline.event], timeline.piece)
    cut = dice.uniform("shot/cut", videos, clips) < p.cut
    last = np.maximum.accumulate(np.where(cut, t, -1), 1)
    return np.where(timeline.inside & (last > timeline.piece), last, base)


def saliency(dice: Dice, visible: np.ndarray) -> np.ndarray:
    """Scores 0..4 of three annotators (B, T, 3)."""
    videos, clips = visible.shape
    shown = (visible - visible.mean()) / visible.std()
    query, clip = dice.normal("saliency/query", videos, 1, 1), dice.normal("saliency/clip", videos, clips, 3)
    latent = 0.35 * shown[..., None] + 0.35 * query + 0.87 * clip
    return np.searchsorted((-1.88, -1.28, -0.55, 0.25), latent)


def remember(x: np.ndarray, memory: float) -> None:
    """Give white noise (B, T, ...) the lag-1 correlation `memory` in time, and keep its variance; in place."""
    fresh = np.float32(np.sqrt(1 - memory**2))
    for t in range(1, x.shape[1]):
        x[:, t] *= fresh
        x[:, t] += np.float32(memory) * x[:, t - 1]
