"""Features of simulated videos and queries: close-ups, query videos, and the effect of the knobs."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from mrlib.baselines import anchor_inside
from mrlib.sim import open_sim
from tests.support.simulated import val


def test_in_the_context_preset_the_place_is_seen_only_outside_of_events():
    world = {"preset": "context", "spurious": 1.0, "streams": "joint"}
    before, after = val(**world), open_sim("val_shift", **world)
    moved = (before.target.rows - after.target.rows).norm(dim=-1).unflatten(0, (len(before), -1))
    inside = torch.zeros_like(moved, dtype=torch.bool)
    for b, s in enumerate(before.samples):
        for e in s.extra["script"]:
            for start, end in e["windows"]:
                inside[b, int(start) // 2 : int(end) // 2] = True
    near = F.max_pool1d(inside[:, None].float(), 7, 1, 3)[:, 0] > 0  # three clips away, where the blur has no effect
    far = F.max_pool1d((~inside)[:, None].float(), 7, 1, 3)[:, 0] > 0
    assert inside[~far].all() and (~far).sum() > 100 and moved[~far].max() < 1e-3
    assert moved[~near].min() > 0.2


def test_the_joint_vector_of_a_query_video_is_the_normalised_mean_of_its_clips():
    batch = val(query="video").batch(range(50))
    rows = F.normalize(batch.query, dim=-1) * batch.query_mask[..., None]
    torch.testing.assert_close(batch.query_joint, F.normalize(rows.sum(1), dim=-1))
    assert batch.query.shape[2] == batch.target_joint.shape[2]


def test_a_query_video_shows_the_event_in_the_order_of_the_target():
    """Each half of the query resembles the same half of the moment more than the other half."""
    dataset = val(query="video", noise=0.0)
    first, second = [], []
    for i, s in enumerate(dataset.samples):
        (a, b), batch = s.relevant_windows[0], dataset.batch([i])
        if a == 0 or b == s.duration:
            continue  # the moment may begin before the video, or end after it
        moment, query = batch.target_joint[0, int(a / 2) : int(b / 2)], batch.query[0]
        if min(len(moment), len(query)) >= 4:
            cosines = (query @ moment.mT).view(len(query), -1)
            early, late = cosines[: len(query) // 2].mean(0), cosines[-(len(query) // 2) :].mean(0)
            half = len(moment) // 2
            first.append((early - late)[:half].mean())
            second.append((early - late)[-half:].mean())
    assert len(first) > 100 and np.mean(first) - np.mean(second) > 0.02


def anchor_share(**options) -> float:
    """The share of queries whose anchor is inside a window."""
    return anchor_inside(val(streams="joint", **options))


def test_more_similar_events_move_the_anchor_out_of_the_moment():
    assert anchor_share(irrelevant=0.0) > anchor_share(irrelevant=0.3) + 0.04 > anchor_share(irrelevant=0.6) + 0.08


def test_more_similar_actions_of_a_family_move_the_anchor_out_of_the_moment():
    assert anchor_share(preset="family", family=0.0) > anchor_share(preset="family", family=0.9) + 0.15


def test_more_noise_moves_the_anchor_out_of_the_moment():
    assert anchor_share(noise=0.0) > anchor_share() + 0.02 > anchor_share(noise=1.2) + 0.1


def test_more_blur_makes_the_borders_of_moments_less_sharp():
    """Sharpness: the cosine of neighbouring clips inside a moment, minus that of the clips at a border."""

    def sharpness(blur: float) -> float:
        dataset = val(streams="joint", blur=blur)
        batch = dataset.batch(range(300))
        cosines = (batch.target_joint[:, 1:] * batch.target_joint[:, :-1]).sum(-1)
        relevant = batch.labels.relevant
        border = relevant[:, 1:] != relevant[:, :-1]
        return (cosines[relevant[:, 1:] & ~border].mean() - cosines[border].mean()).item()

    assert sharpness(0.0) > sharpness(0.5) > sharpness(1.5) + 0.02 > sharpness(3.0) + 0.02
