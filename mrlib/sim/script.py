"""The script of a simulated video: a sequence of events, one of which is the queried one.

The script is exchangeable: all events are drawn alike, and the queried one is chosen uniformly among the events of the
video. So nothing in a video shows which of its events is queried, and a model that does not read the query can at best
find the borders of events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mrlib.sim.world import Dice, Parameters, World

EVENTS = 24  # events drawn for every video, enough to fill it whatever their lengths
LOG_MEAN = 2.75, 2.1, 1.75, 1.6, 1.4, 1.1  # mean log length of a window if its event has 1, 2, ..., 6 or more windows
LOG_SD_EVENT = 0.4, 0.5  # sd of the log length between events of one window, and of several
LOG_SD_WINDOW = 0.6  # sd of the log length within an event of several windows
LOG_GAP = np.log(3), 1.0  # mean and sd of the log length of a gap
SHARED_SHOT = 0.5  # chance that a piece of an event shows the shot that its event has in common
SHOWN = 0.97  # least visibility of the most visible clip of a window


@dataclass(frozen=True)
class Timeline:
    """The event of every clip of a block of videos, (B, T) arrays."""

    actor: np.ndarray
    action: np.ndarray
    object: np.ndarray
    place: np.ndarray
    inside: np.ndarray  # bool: inside a window of the event; False: only its place is seen
    event: np.ndarray  # number of the event
    piece: np.ndarray  # first clip of the piece: a window, a gap or a margin
    progress: np.ndarray  # position in the piece, in (0, 1)
    length: np.ndarray  # clips of the piece, those beyond the video's ends included

    def __len__(self) -> int:
        return len(self.event)


@dataclass(frozen=True)
class Script:
    """Event timelines of a block of videos, and the queried event of each."""

    timeline: Timeline
    relevant: np.ndarray  # bool (B, T) inside a window of the queried event
    queried: dict[str, np.ndarray]  # "actor", "action", "object", "place" of the queried event, (B,)


def draw_script(world: World, dice: Dice, actions: np.ndarray, shifted: bool, videos: int) -> Script:
    """Draw the scripts of a block of videos: their event timelines, and the queried event of each.

    actions  the actions that occur, whole families in a row
    shifted  homes are those of `val_shift`
    videos   how many
    """
    p = world.p
    event, inside, piece, progress, length = _layout(p, dice, videos)  # (B, T) each
    rows = np.arange(videos)

    present = np.zeros((videos, EVENTS), bool)
    present[np.nonzero(inside)[0], event[inside]] = True
    queried = np.where(present, dice.uniform("asked", videos, EVENTS), -1).argmax(1)  # (B,)

    actor, action, thing = _concepts(p, dice, len(actions), videos, EVENTS)
    _make_near_misses(p, dice, queried, actor, action, thing)
    action = actions[action]
    place = _places(world, dice, action, shifted)

    facts = {"actor": actor, "action": action, "object": thing, "place": place}
    clipwise = {k: np.take_along_axis(x, event, 1) for k, x in facts.items()}  # (B, EVENTS) -> (B, T)
    timeline = Timeline(**clipwise, inside=inside, event=event, piece=piece, progress=progress, length=length)
    relevant = inside & (event == queried[:, None])
    return Script(timeline, relevant, {k: x[rows, queried] for k, x in facts.items()})


def _concepts(p: Parameters, dice: Dice, actions: int, *shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the numbers of the actors, actions and objects of events, each of this shape."""
    return (
        dice.pick("actor", p.actors, *shape),
        dice.pick("action", actions, *shape),
        dice.pick("object", p.objects, *shape),
    )


def _places(world: World, dice: Dice, action: np.ndarray, shifted: bool) -> np.ndarray:
    """Draw the places of events with these actions, (...)."""
    at_home = dice.uniform("home", *action.shape) < world.p.spurious
    place = dice.pick("place", world.p.places, *action.shape)
    return np.where(at_home, world.homes(shifted=shifted)[action], place)


def ask_for_nothing(
    world: World, dice: Dice, script: Script, actions: np.ndarray, shifted: bool
) -> tuple[Script, np.ndarray]:
    """Let a share `null` of the queries be about events that do not happen; the videos stay the same.

    Such an event is drawn as all events are, so that neither a video nor a query shows which queries have nothing to
    find. If it happens to be in the video, whole or only with its place, the next object that makes it another event
    takes the place of its own.

    actions, shifted  as in `draw_script`
    returns           the script with these events as the queried ones, the other fields unchanged; bool (B,), True for
                      a query about an event that does not happen
    """
    p, timeline, videos = world.p, script.timeline, len(script.timeline)
    dice = Dice((*dice.key, "null"))
    null = dice.uniform("share", videos) < p.null
    actor, action, thing = _concepts(p, dice, len(actions), videos)
    action = actions[action]
    rows, clips = np.nonzero((timeline.actor == actor[:, None]) & (timeline.action == action[:, None]))
    taken = np.zeros((videos, p.objects), bool)
    taken[rows, timeline.object[rows, clips]] = True
    options = (thing[:, None] + np.arange(p.objects)) % p.objects  # (B, objects), the one that was drawn first
    thing = options[np.arange(videos), np.take_along_axis(taken, options, 1).argmin(1)]
    place = _places(world, dice, action, shifted)
    drawn = {"actor": actor, "action": action, "object": thing, "place": place}
    return replace(script, queried={k: np.where(null, drawn[k], x) for k, x in script.queried.items()}), null


def _layout(p: Parameters, dice: Dice, videos: int) -> tuple[np.ndarray, ...]:
    """The fields event, inside, piece, progress and length of a `Timeline`.

    Every event is a row of pieces: its windows with gaps between them, and a margin at either end. Events follow one
    another in a random order, and a random stretch of T clips is the video.
    """
    pieces, order = _pieces(p, dice, videos)
    event, part, first, length, start = _cut_out(p, dice, pieces, order)
    clip = np.arange(p.clips)
    full = (dice.uniform("full", videos) < p.full)[:, None]  # (B, 1): one event covers the whole video
    return (
        np.where(full, 0, event),
        (part % 2 == 1) | full,
        np.where(full, 0, np.maximum(first - start, 0)),
        np.where(full, (clip + 0.5) / p.clips, (start + clip - first + 0.5) / length),
        np.where(full, p.clips, length),
    )


def _pieces(p: Parameters, dice: Dice, videos: int) -> tuple[np.ndarray, np.ndarray]:
    """The lengths of all pieces in clips, and the order of the events.

    returns  int64 (B, EVENTS, 2 M + 1), M the greatest number of windows: margin, window, gap, window, ..., margin, the
             events in their order; int64 (B, EVENTS), the number of the event at each position
    """
    most = len(p.windows)
    shape = videos, EVENTS
    count = 1 + np.searchsorted(np.cumsum(p.windows)[:-1], dice.uniform("windows", *shape), side="right")
    log_mean = np.array(LOG_MEAN)[np.minimum(count, len(LOG_MEAN)) - 1]
    several = count > 1
    event_deviation = dice.normal("length/event", *shape) * np.where(several, LOG_SD_EVENT[1], LOG_SD_EVENT[0])
    window_deviation = dice.normal("length/window", *shape, most) * np.where(several, LOG_SD_WINDOW, 0)[..., None]
    window = np.exp((log_mean + event_deviation)[..., None] + window_deviation) * p.scale * p.length  # (B, EVENTS, M)
    gap = np.exp(LOG_GAP[0] + LOG_GAP[1] * dice.normal("gap", *shape, most)) * p.scale
    further = p.context - p.context_least  # mean number of idle clips above the fewest
    margin = p.context_least + np.floor(np.log(1 - dice.uniform("margin", *shape, 2)) / np.log(further / (1 + further)))

    # gaps and margins are cut so that every stretch of T clips has a window in it
    pieces = np.zeros((*shape, 2 * most + 1), np.int64)
    nth = np.arange(most)
    pieces[..., 1::2] = np.where(nth < count[..., None], np.maximum(1, np.rint(window)), 0)
    pieces[..., 2::2] = np.where(nth < count[..., None] - 1, np.clip(np.rint(gap), 1, p.clips // 4), 0)
    pieces[..., [0, -1]] = np.minimum(margin, p.clips // 4)

    block = pieces.sum(-1)  # (B, EVENTS)
    pieces[block.cumsum(1) - block >= 1.1 * p.clips] = 0  # the events before fill the video
    order = dice.uniform("order", *shape).argsort(1)
    return np.take_along_axis(pieces, order[..., None], 1), order


def _cut_out(p: Parameters, dice: Dice, pieces: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, ...]:
    """A random stretch of T clips of every video, and the piece that each of its clips is in.

    pieces, order  of `_pieces`
    returns        int64 (B, T): number of the event, number of the piece in its event, first clip of the piece and its
                   length; int64 (B, 1), first clip of the stretch. Clips are counted from the start of all pieces
    """
    videos, _, parts = pieces.shape
    pieces = pieces.reshape(videos, -1)  # (B, EVENTS * parts)
    ends = pieces.cumsum(1)
    total = ends[:, -1]
    start = (dice.uniform("start", videos) * np.maximum(1, total - p.clips + 1)).astype(np.int64)[:, None]  # (B, 1)
    clip = np.minimum(start + np.arange(p.clips), total[:, None] - 1)  # (B, T)

    # one search for all videos: each is shifted beyond the ends of the one before
    shift = np.arange(videos)[:, None] * (int(total.max()) + p.clips)
    index = np.searchsorted((ends + shift).ravel(), (clip + shift).ravel(), side="right")  # (B * T,)
    length = pieces.ravel()[index].reshape(clip.shape)
    first = (ends.ravel()[index] - pieces.ravel()[index]).reshape(clip.shape)
    index = index.reshape(clip.shape) - np.arange(videos)[:, None] * pieces.shape[1]
    return np.take_along_axis(order, index // parts, 1), index % parts, first, length, start


def _make_near_misses(
    p: Parameters, dice: Dice, queried: np.ndarray, actor: np.ndarray, action: np.ndarray, thing: np.ndarray
) -> None:
    """Turn some events into near misses of the queried one, and change the object of events that equal it; in place.

    A near miss is a sibling (same actor and object, another action of the family), or shares two concepts of three.
    """
    shape = actor.shape
    rows = np.arange(len(queried))
    other = np.arange(EVENTS) != queried[:, None]
    near = other & (dice.uniform("near", *shape) < p.irrelevant)
    sibling = dice.uniform("sibling", *shape) < p.siblings
    step = 1 + dice.pick("sibling/step", p.members - 1, *shape)
    kept = dice.pick("kept", 3, *shape)
    a, c, o = (x[rows, queried][:, None] for x in (actor, action, thing))
    np.copyto(actor, a, where=near & (sibling | (kept != 0)))
    np.copyto(action, c - c % p.members + (c + step) % p.members, where=near & sibling)
    np.copyto(action, c, where=near & ~sibling & (kept != 1))
    np.copyto(thing, o, where=near & (sibling | (kept != 2)))
    same = other & (actor == a) & (action == c) & (thing == o)
    np.copyto(thing, (thing + 1) % p.objects, where=same)


def rendition(world: World, dice: Dice, script: Script) -> tuple[Timeline, np.ndarray]:
    """A query video: the queried event once more, in another place, at another speed, from start to end.

    returns  Timeline (B, T // 2); int64 (B,), how many of its clips belong to the query
    """
    p, videos = world.p, len(script.timeline)
    most = p.clips // 2
    target = np.where(script.relevant, script.timeline.length, 0).max(1)
    rate, bend = p.speed ** (2 * dice.uniform("speed", 2, videos) - 1)
    clips = np.clip(np.rint(target / rate), 3, most).astype(np.int64)
    t = np.arange(most)
    full = np.zeros((videos, most), np.int64)
    actor, action, thing = (full + script.queried[k][:, None] for k in ("actor", "action", "object"))
    place = full + dice.pick("place", p.places, videos)[:, None]
    progress = np.minimum((t + 0.5) / clips[:, None], 1) ** bend[:, None]
    inside = t < clips[:, None]
    piece = np.where(inside, 0, clips[:, None])
    return Timeline(actor, action, thing, place, inside, full, piece, progress, full + clips[:, None]), clips


def visibility(p: Parameters, dice: Dice, timeline: Timeline, mean: float) -> np.ndarray:
    """How well each clip shows its event, (B, T) in (0, 1); the best clip of every window has at least `SHOWN`."""
    z = dice.normal("visibility", *timeline.event.shape)
    correlate(z, p.visible_memory)
    s = 1 / (1 + np.exp(-(mean + p.visible_sd * z)))
    clips = s.shape[1]
    new = (timeline.piece == np.arange(clips)) | (np.arange(clips) == 0)
    starts = np.flatnonzero(new)
    best = np.repeat(np.maximum.reduceat(s.ravel(), starts), np.diff([*starts, s.size])).reshape(s.shape)
    return np.where(timeline.inside & (s == best), np.maximum(s, SHOWN), s)


def shots(p: Parameters, dice: Dice, timeline: Timeline) -> np.ndarray:
    """The first clip of each clip's shot, (B, T); several pieces of an event may show the same shot."""
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
    """Scores 0..4 of three annotators, (B, T, 3); they agree on the visibility (B, T) and on the query."""
    videos, clips = visible.shape
    standard = (visible - visible.mean()) / visible.std()
    query, clip = dice.normal("saliency/query", videos, 1, 1), dice.normal("saliency/clip", videos, clips, 3)
    latent = 0.35 * standard[..., None] + 0.35 * query + 0.87 * clip  # (B, T, 3)
    return np.searchsorted((-1.88, -1.28, -0.55, 0.25), latent)


def correlate(x: np.ndarray, memory: float) -> None:
    """Give white noise (B, T, ...) the lag-1 correlation `memory` in time and keep its variance, in place."""
    fresh = np.float32(np.sqrt(1 - memory**2))
    for t in range(1, x.shape[1]):
        x[:, t] *= fresh
        x[:, t] += np.float32(memory) * x[:, t - 1]
