"""Features of simulated videos and queries: of every clip, of words, and of query videos.

With e the unit vector of an event, s the visibility of a clip, K a Gaussian over clips and n white noise,

    appearance_t = v g_v + S scene + sum_i K_ti (p place_i + h shot_i) + s_t sum_i K_ti c e_i + noise n_t
    query        = u g_t + k e + kappa n
    motion_t     = (1 + s_t) / 2 sum_i K_ti a action_i + b (scene' + g_m) + noise' n'_t

each divided by its norm. The letters are the comments of `mrlib.sim.world.Parameters`.
"""

from __future__ import annotations

import numpy as np

from mrlib.sim.script import Script, Timeline, correlate, rendition, shots, visibility
from mrlib.sim.world import Dice, World, unit

LONGEST_SENTENCE = 24  # words for which noise is drawn


def render(
    world: World,
    dice: Dice,
    timeline: Timeline,
    streams: tuple[str, ...],
    mean: float,
    absent: np.ndarray | bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The features of simulated videos, and how well each clip shows its event.

    streams  "appearance", "motion" or both
    mean     m of the visibility
    absent   bool (B, T)  clips whose event does not happen
    returns  for each stream float32 (B, T, its width), of norm 1; visibility (B, T)
    """
    visible = visibility(world.p, dice, timeline, mean)
    seen = visible[..., None].astype(np.float32)  # (B, T, 1)
    happens = (timeline.inside & np.logical_not(absent))[..., None]  # (B, T, 1)
    stream_features = {"appearance": _appearance, "motion": _motion}
    return {name: stream_features[name](world, dice, timeline, seen, happens) for name in streams}, visible


def _appearance(world: World, dice: Dice, timeline: Timeline, seen: np.ndarray, happens: np.ndarray) -> np.ndarray:
    """The appearance stream, (B, T, J); `seen` and `happens` (B, T, 1)."""
    p = world.p
    videos, clips = timeline.event.shape
    scene = unit(dice.normal("scene", videos, 1, p.joint))
    shot = unit(dice.normal("shot", videos, clips, p.joint))
    around = np.float32(p.place) * np.where(happens, np.float32(p.place_inside), 1) * world.places[timeline.place]
    around += np.float32(p.shot) * shot[np.arange(videos)[:, None], shots(p, dice, timeline)]
    kernel = _kernel(clips, p.blur)
    x = kernel @ around  # (B, T, J)
    event = world.event(timeline.actor, timeline.action, timeline.object)
    if p.phase:
        event += _phase(world, timeline)
    x += seen * (kernel @ (np.float32(p.content) * event * happens))
    x += np.float32(p.gap_video) * world.gaps[0] + np.float32(p.scene) * scene
    noise = dice.normal("noise", videos, clips, p.joint)
    correlate(noise, p.memory)
    x += np.float32(p.noise / np.sqrt(p.joint)) * noise
    return unit(x)


def _motion(world: World, dice: Dice, timeline: Timeline, seen: np.ndarray, happens: np.ndarray) -> np.ndarray:
    """The motion stream, (B, T, its width); `seen` and `happens` (B, T, 1)."""
    p = world.p
    videos, clips = timeline.event.shape
    scene = unit(dice.normal("scene/motion", videos, 1, p.motion))
    action = np.float32(p.action_motion) * world.motions[timeline.action] * happens
    x = (0.5 + 0.5 * seen) * (_kernel(clips, p.blur) @ action)  # (B, T, motion)
    x += np.float32(p.scene_motion) * (scene + world.gap_motion)
    noise = dice.normal("noise/motion", videos, clips, p.motion)
    correlate(noise, p.memory)
    x += np.float32(p.noise_motion / np.sqrt(p.motion)) * noise
    return unit(x)


def _kernel(clips: int, blur: float) -> np.ndarray:
    """K: a Gaussian of standard deviation `blur` around every clip, float32 (T, T); each row sums to 1."""
    t = np.arange(clips)
    kernel = np.exp(-0.5 * ((t[:, None] - t) / blur) ** 2) if blur else np.eye(clips)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def _phase(world: World, timeline: Timeline) -> np.ndarray:
    """The look of each clip's phase of the action, (B, T, J), interpolated between the points of its course."""
    intervals = world.phases.shape[1] - 1
    position = timeline.progress * intervals
    before = np.minimum(position.astype(np.int64), intervals - 1)
    share = (position - before)[..., None].astype(np.float32)
    phases = np.float32(world.p.phase) * world.phases
    return phases[timeline.action, before] * (1 - share) + phases[timeline.action, before + 1] * share


def sentence_queries(
    world: World, dice: Dice, script: Script, sentences: list[str]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Word vectors (N, J) of every sentence, and the vectors of the whole queries in the joint space (B, J)."""
    p, videos, event = world.p, len(script.timeline), script.queried
    noise = dice.normal("query", videos, p.joint)
    query_joint = np.float32(p.gap_text) * world.gaps[1]  # (J,)
    events = world.event(event["actor"], event["action"], event["object"])  # (B, J)
    query_joint = query_joint + np.float32(p.query_event) * events  # (B, J)
    query_joint += np.float32(p.query_noise / np.sqrt(p.joint)) * noise
    spread = np.float32(0.3 / np.sqrt(p.joint)) * dice.normal("words", videos, LONGEST_SENTENCE, p.joint)
    words = [[world.vocabulary[w] for w in s.rstrip(".").lower().split()] for s in sentences]
    return [unit(world.words[w] + spread[i, : len(w)]) for i, w in enumerate(words)], unit(query_joint)


def video_queries(world: World, dice: Dice, script: Script) -> tuple[list[np.ndarray], np.ndarray]:
    """Appearance features (N, J) of a video of every queried event, and their normalised means (B, J)."""
    timeline, clips = rendition(world, dice, script)
    features = render(world, dice, timeline, ("appearance",), world.p.visible_query)[0]["appearance"]  # (B, T // 2, J)
    videos = [x[:n] for x, n in zip(features, clips, strict=True)]
    return videos, unit(np.stack([x.mean(0) for x in videos]))
