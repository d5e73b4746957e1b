"""What simulated videos and queries look like: close-ups, query videos, and what every knob does to the anchor."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from mrlib.baselines import anchor_inside
from mrlib.sim import open_sim
from tests.support.simulated import val


def test_in_close_ups_a_place_is_seen_around_a_moment_and_not_in_it():
    world = {"preset": "context", "spurious": 1.0, "streams": "joint"}
    before, after = val(**world), open_sim("val_shift", **world)
    moved = (before.target.rows - after.target.rows).norm(dim=-1).unflatten(0, (len(before), -1))
    inside = torch.zeros_like(moved, dtype=torch.bool)
    for b, s in enumerate(before.samples):
        for e in s.extra["script"]:
            for start, end in e["windows"]:
                inside[b, int(start) // 2 : int(end) // 2] = True
    near = F.max_pool1d(inside[:, None].float(), 7, 1, 3)[:, 0] > 0  # three clips on, a blurred edge is not seen
    far = F.max_pool1d((~inside)[:, None].float(), 7, 1, 3)[:, 0] > 0
    assert inside[~far].all() and (~far).sum() > 100 and moved[~far].max() < 1e-3
    assert moved[~near].min() > 0.2


def test_a_query_video_in_the_joint_space_is_the_mean_of_its_clips():
    batch = val(query="video").batch(range(50))
    rows = F.normalize(batch.query, dim=-1) * batch.query_mask[..., None]
    torch.testing.assert_close(batch.query_joint, F.normalize(rows.sum(1), dim=-1))
    assert batch.query.shape[2] == batch.target_joint.shape[2]


def test_a_query_video_shows_the_event_in_the_order_of_the_target():
    """Its first half resembles the first half of the moment more than the second, and the other way round."""
    dataset = val(query="video", noise=0.0)
    first, second = [], []
    for i, s in enumerate(dataset.samples):
        (a, b), batch = s.relevant_windows[0], dataset.batch([i])
        if a == 0 or b == s.duration:
            continue  # the moment is cut
        moment, query = batch.target_joint[0, int(a / 2) : int(b / 2)], batch.query[0]
        if min(len(moment), len(query)) >= 4:
            similar = (query @ moment.mT).view(len(query), -1)
            early, late = similar[: len(query) // 2].mean(0), similar[-(len(query) // 2) :].mean(0)
            half = len(moment) // 2
            first.append((early - late)[:half].mean())
            second.append((early - late)[-half:].mean())
    assert len(first) > 100 and np.mean(first) - np.mean(second) > 0.02


def inside(**options) -> float:
    return anchor_inside(val(streams="joint", **options))


def test_more_look_alikes_draw_the_anchor_away():
    assert inside(irrelevant=0.0) > inside(irrelevant=0.3) + 0.04 > inside(irrelevant=0.6) + 0.08


def test_actions_of_a_family_are_confused_the_more_they_look_alike():
    assert inside(preset="family", family=0.0) > inside(preset="family", family=0.9) + 0.15


def test_noise_draws_the_anchor_away():
    assert inside(noise=0.0) > inside() + 0.02 > inside(noise=1.2) + 0.1


def test_blur_smooths_the_borders_of_moments():
    """How much less alike the two clips at a border are than two neighbours within."""

    def contrast(blur: float) -> float:
        dataset = val(streams="joint", blur=blur)
        batch = dataset.batch(range(300))
        alike = (batch.target_joint[:, 1:] * batch.target_joint[:, :-1]).sum(-1)
        relevant = batch.labels.relevant
        border = relevant[:, 1:] != relevant[:, :-1]
        return (alike[relevant[:, 1:] & ~border].mean() - alike[border].mean()).item()

    assert contrast(0.0) > contrast(0.5) > contrast(1.5) + 0.02 > contrast(3.0) + 0.02
