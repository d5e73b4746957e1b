"""Probes: masked moments and moments in another context, compared with loops over clips."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from mrlib import baselines
from mrlib.data import Sample, open_dataset
from mrlib.data.layouts import open_files
from mrlib.probes import PROBES, contexts, dynamic_context, mask_moments, read, show, write
from mrlib.sim import export
from mrlib.sim.world import World, parameters
from tests.support.files import (
    labelled,
    line,
    moment_detr,
    random,
    save_npy,
    save_npz,
    tvsum,
    windows_only,
    write_lines,
)

FOR_ANY_DATASET = [name for name in PROBES if name != "absent"]
WINDOWS = {  # qid: windows and, with a margin of two clips before and one after, the replaced ones of ten clips
    1: ([[4, 8]], range(0, 5)),
    2: ([[12.6, 15.5]], range(4, 9)),  # the middles of clips 6 and 7 are inside
    3: ([[0, 2], [17.2, 20]], [0, 1, 7, 8, 9]),  # the middle of clip 9 is inside, that of clip 8 is not
    4: ([[0, 20]], range(10)),
    5: ([[9.2, 9.6]], range(3, 6)),  # no middle is inside; it lies in clip 4, and 4.6 and 4.8 are nearest to border 5
}
MASKED = torch.tensor([[t in clips for t in range(10)] for _, clips in WINDOWS.values()])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five queries on three videos: 1 and 4 share one, 2 and 5 another."""
    lines = [
        windows_only(qid, vid=f"video_{'abc'[(qid - 1) % 3]}", relevant_windows=windows)
        for qid, (windows, _) in WINDOWS.items()
    ]
    return moment_detr(tmp_path_factory.mktemp("probes"), lines)


@pytest.fixture(scope="module", params=[True, False], ids=["normalised", "raw"])
def dataset(root, request):
    return open_files("qvhighlights", root, "val", normalize=request.param)


def clips(dataset):
    """The features of every sample, without padding."""
    batch = dataset.batch(range(len(dataset)))
    return [x[mask] for x, mask in zip(batch.target, batch.target_mask, strict=True)]


def same_clips(one, other):
    return all(torch.equal(a, b) for a, b in zip(clips(one), clips(other), strict=True))


@pytest.mark.parametrize("mode", ["noise", "zero", "mean"])
def test_nothing_is_masked_for_a_null_query(mode, root):
    """Its video stays as it is; a context replaces any of its clips."""
    opened = open_files("qvhighlights", root, "val", normalize=True)
    samples = [replace(s, relevant_windows=[]) if s.qid == 2 else s for s in opened.samples]
    nulls = replace(opened, samples=samples, _annotations=None)
    masked, plain = clips(mask_moments(nulls, mode)), clips(opened)
    assert torch.equal(masked[1], plain[1])
    assert all(torch.equal(a, b) for a, b in zip(masked[2:], clips(mask_moments(opened, mode))[2:], strict=True))
    assert min(contexts(nulls)[1].clips) >= 0


@pytest.mark.parametrize("mode", ["noise", "zero", "mean"])
def test_only_the_clips_of_windows_and_margins_are_replaced(dataset, mode):
    """[TD-DETR, spurious] All others are equal to the last bit."""
    for original, masked, gone in zip(clips(dataset), clips(mask_moments(dataset, mode)), MASKED, strict=True):
        assert torch.equal((original != masked).any(1), gone)


@pytest.mark.parametrize("step_s", [None, 1.0, 0.5])
def test_the_default_margin_masks_the_clips_of_the_authors(step_s):
    """For random windows in seconds of any number, in whole seconds, odd ones too, and in halves."""
    start, length = np.random.default_rng(0).uniform((0, 0.1), (60, 24), (300, 2)).T
    windows = np.stack([start, start + length], 1)
    if step_s is not None:
        windows = np.stack([np.floor(start / step_s), np.ceil((start + length) / step_s)], 1) * step_s
    windows = windows.clip(max=64).tolist()
    sim = open_dataset("sim", split="val", n=300)
    samples = [replace(s, relevant_windows=[w]) for s, w in zip(sim.samples, windows, strict=True)]
    zeros = torch.stack(clips(mask_moments(replace(sim, samples=samples, _annotations=None), "zero"))).eq(0).all(2)
    for (s, e), gone in zip(windows, zeros, strict=True):
        assert gone.nonzero().flatten().tolist() == list(range(int(max(0, s - 3) // 2), min(32, int((e + 3) // 2))))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_null_query_keeps_its_clips_when_moments_are_masked(share):
    """Also where all queries are null."""
    sim = open_dataset("sim", split="val", n=8)
    null = [i < 8 * share for i in range(8)]
    samples = [replace(s, relevant_windows=[]) if n else s for s, n in zip(sim.samples, null, strict=True)]
    data = replace(sim, samples=samples, _annotations=None)
    for mode in ("noise", "zero", "mean"):
        unchanged = [torch.equal(a, b) for a, b in zip(clips(data), clips(mask_moments(data, mode)), strict=True)]
        assert unchanged == null


def test_a_margin_counts_clips_before_and_after_the_window():
    sim = open_dataset("sim", split="val", n=20)
    no_margin, margin = (torch.stack(clips(mask_moments(sim, "zero", margin=m))).eq(0).all(2) for m in ((0, 0), (1, 3)))
    relevant = sim.batch(range(20)).labels.relevant
    assert torch.equal(no_margin, relevant), "a margin of 0 leaves the clips of the windows alone"
    wider = [(relevant[:, max(0, t - 3) : t + 2]).any(1) for t in range(32)]
    assert torch.equal(margin, torch.stack(wider, 1))


def test_masked_clips_are_zero_or_the_mean_of_the_remaining_clips(dataset):
    normalised = dataset.settings["normalize"] != []
    zero, mean = clips(mask_moments(dataset, "zero")), clips(mask_moments(dataset, "mean"))
    for original, zeros, means, gone in zip(clips(dataset), zero, mean, MASKED, strict=True):
        assert not zeros[gone].any()
        remaining = original if gone.all() else original[~gone]
        for columns in dataset.streams.values():
            expected = remaining[:, columns].mean(0)
            expected = expected / expected.norm() if normalised else expected
            torch.testing.assert_close(means[gone][:, columns], expected.expand(int(gone.sum()), -1), rtol=1e-4, atol=0)


def test_noise_is_uniform_between_the_smallest_and_largest_value_of_the_stream_in_the_video(root):
    raw = open_files("qvhighlights", root, "val", normalize=False)
    drawn = {name: [] for name in raw.streams}
    for original, noise, gone in zip(clips(raw), clips(mask_moments(raw)), MASKED, strict=True):
        for name, columns in raw.streams.items():
            low, high = original[:, columns].min(), original[:, columns].max()
            drawn[name].append(((noise[gone][:, columns] - low) / (high - low)).flatten())
    for shares in map(torch.cat, drawn.values()):
        assert 0 <= shares.min() < 0.05 and 0.95 < shares.max() <= 1 and len(shares.unique()) > 0.99 * len(shares)
        assert shares.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / len(shares)) ** 0.5)


def test_noise_is_normalised_in_the_streams_that_are(root):
    for normalised in (["slowfast"], ["clip", "slowfast"]):
        dataset = open_files("qvhighlights", root, "val", normalize=normalised)
        for noise, gone in zip(clips(mask_moments(dataset)), MASKED, strict=True):
            for name, columns in dataset.streams.items():
                norms = noise[gone][:, columns].norm(dim=1)
                assert torch.allclose(norms, torch.ones_like(norms), atol=1e-4) == (name in normalised)


def test_the_parts_of_a_row_are_normalised_by_themselves(tmp_path):
    """A row of AMR's features has four parts; none of its streams is joint."""
    write_lines(tmp_path / "highlight_val_release.jsonl", [line()])
    save_npz(tmp_path / "slowfast_features" / "video_a.npz", features=random(0, 10, 6))
    save_npy(tmp_path / "clip_b32_vid_k4" / "video_a.npy", random(1, 10, 4, 3))
    save_npy(tmp_path / "clip_b32_txt_k4" / "1.npy", random(2, 5, 4, 3))
    dataset = open_files("qvhighlights", tmp_path, "val")
    for mode in ("noise", "mean"):
        noise = clips(mask_moments(dataset, mode))[0][MASKED[0]][:, dataset.streams["clip_k4"]]
        norms = noise.unflatten(1, (4, -1)).norm(dim=2)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-3)


def test_noise_does_not_depend_on_the_other_streams(root):
    both, joint = (mask_moments(open_files("qvhighlights", root, "val", streams=s)) for s in (None, "joint"))
    for one, other in zip(clips(both), clips(joint), strict=True):
        assert torch.equal(one[:, both.streams["clip"]], other)


@pytest.mark.parametrize("name", FOR_ANY_DATASET)
def test_a_probe_changes_nothing_but_the_clips(dataset, name):
    probe = PROBES[name](dataset)
    original, probed = dataset.batch(range(5)), probe.batch(range(5))
    for field in ("target_mask", "query", "query_mask", "query_joint", "duration_s", "clip_s"):
        assert torch.equal(getattr(original, field), getattr(probed, field))
    for a, b in zip(asdict(original.labels).values(), asdict(probed.labels).values(), strict=True):
        assert a is b is None or torch.equal(a, b)
    assert probe.samples == dataset.samples and probe.streams == dataset.streams and probe.joint == dataset.joint
    assert torch.equal(probed.target_joint, probed.target[..., dataset.streams["clip"]])
    assert probed.video.unique().numel() == 5 and probe.to("cpu").digest() == probe.digest() != dataset.digest()
    assert probe.settings != dataset.settings


@pytest.mark.parametrize("name", [name for name in PROBES if "30" in name or "noise" in name])
def test_the_same_seed_gives_the_same_clips_and_another_seed_does_not(name):
    sim = open_dataset("sim", split="val", n=12)
    assert same_clips(PROBES[name](sim), PROBES[name](sim)) and same_clips(PROBES[name](sim), PROBES[name](sim, seed=0))
    for one, other in zip(clips(PROBES[name](sim)), clips(PROBES[name](sim, seed=1)), strict=True):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_does_not_depend_on_the_order_and_number_of_samples(name):
    """Except that a context is chosen among the videos of the samples."""
    sim = open_dataset("sim", split="val", n=12)
    order = [7, 3, 11, 0, 8, 2, 10, 5, 1, 9, 4, 6]
    assert same_clips(PROBES[name](sim.subset(order)), PROBES[name](sim).subset(order))
    if "context" not in name:
        assert same_clips(PROBES[name](sim.subset([5, 2])), PROBES[name](sim).subset([5, 2]))
    chosen = contexts(sim)
    assert same_clips(show(sim, chosen), show(sim, chosen[::-1]))


def test_two_queries_of_one_video_have_different_masks(dataset):
    """Queries 1 and 4 share a video; rows that both keep are stored once."""
    probe = mask_moments(dataset, "zero")
    masked = clips(probe)
    assert torch.equal(masked[0][5:], clips(dataset)[0][5:]) and not masked[3].any()
    assert len(probe.target.rows) < sum(map(len, masked))


def test_margins_are_in_clips_of_the_dataset_and_end_with_its_features(tmp_path):
    """Charades-STA has clips of 1 s; a window after the last row becomes the last clip."""
    lines = [
        windows_only(1, vid="a", duration=9.4, relevant_windows=[[3.4, 5.8]]),
        windows_only(2, vid="a", duration=9.4, relevant_windows=[[9.1, 9.4]]),
    ]
    moment_detr(tmp_path, lines, clips=9)
    write_lines(tmp_path / "charades_test_release.jsonl", lines)
    dataset = open_files("charades_sta", tmp_path, "test", dtype=torch.float16)
    probe = mask_moments(dataset, "mean")
    gone = [(a != b).any(1).nonzero().flatten().tolist() for a, b in zip(clips(dataset), clips(probe), strict=True)]
    assert gone == [[1, 2, 3, 4, 5, 6], [7, 8]] and probe.target.rows.dtype == torch.float16


def test_the_anchor_is_rarely_inside_a_masked_moment():
    sim = open_dataset("sim", split="val", n=100, streams="joint")
    assert baselines.anchor_inside(sim) > 0.75 and baselines.anchor_inside(mask_moments(sim, "zero")) < 0.15


def test_taking_an_event_out_keeps_its_place_and_all_other_clips():
    """Without blur, clips outside of it are equal to the last bit."""
    sim = open_dataset("sim", split="val", n=64, blur=0.0)
    absent = PROBES["absent"](sim)
    original, probed = (x.batch(range(64)) for x in (sim, absent))
    relevant = original.labels.relevant
    assert torch.equal((original.target != probed.target).any(2), relevant)
    assert absent.samples == sim.samples and torch.equal(original.labels.saliency, probed.labels.saliency)
    assert baselines.anchor_inside(sim) > 0.75 and baselines.anchor_inside(absent) < 0.3
    world = World(parameters("small", "text", None, {"blur": 0.0}), 0)
    numbers = [world.names["place"].index(s.extra["place"]) for s in sim.samples]
    place = torch.from_numpy(world.places[numbers]).float()

    def cosines(concept):
        return [(x.target_joint @ concept[..., None])[..., 0][relevant].mean() for x in (original, probed)]

    before, after = cosines(place)
    assert after > before
    before, after = cosines(original.query_joint)
    assert after < before - 0.1


def test_only_simulated_events_can_be_taken_out(root):
    with pytest.raises(
        ValueError, match="only simulated videos can be made without an event; mask the moments of qvhighlights"
    ):
        PROBES["absent"](open_files("qvhighlights", root, "val"))


# ---- another context


def most_similar(videos):
    """For each video, the other one of the greatest mean cosine over all pairs of clips."""
    best = []
    for i, a in enumerate(videos):
        mean = [torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2).mean().item() for b in videos]
        best.append(max((j for j in range(len(videos)) if j != i), key=mean.__getitem__))
    return best


def test_clips_outside_the_windows_come_from_the_most_similar_other_video():
    """[TD-DETR, context] Clip by clip; clips inside the windows stay."""
    sim = open_dataset("sim", split="val", n=12)
    videos, relevant = clips(sim), sim.batch(range(12)).labels.relevant
    partner = most_similar(videos)
    for s, probed in enumerate(clips(dynamic_context(sim))):
        for t in range(32):
            assert torch.equal(probed[t], videos[s if relevant[s, t] else partner[s]][t])


def ragged(tmp_path):
    """Videos of 5, 8 and 8 clips with two queries for the first; the second and the third are equal."""
    lines = [
        windows_only(1, vid="a", duration=10, relevant_windows=[[2, 4]]),
        windows_only(2, vid="b", duration=16, relevant_windows=[[0, 4], [12, 16]]),
        windows_only(3, vid="c", duration=16, relevant_windows=[[0, 16]]),
        windows_only(4, vid="a", duration=10, relevant_windows=[[0, 5]]),
    ]
    moment_detr(tmp_path, lines)
    for folder, width in (("slowfast_features", 6), ("clip_features", 4)):
        save_npz(tmp_path / folder / "a.npz", features=random(width, 5, width))
        for vid in "bc":
            save_npz(tmp_path / folder / f"{vid}.npz", features=random(width + 1, 8, width))
    return open_files("qvhighlights", tmp_path, "val")


def test_the_clips_of_a_longer_or_shorter_partner_are_spread_evenly(tmp_path):
    """By hand: clip t of 5 becomes clip floor((t + 1/2) 8 / 5) of the partner, the first of equally similar videos."""
    dataset = ragged(tmp_path)
    assert [asdict(c) for c in contexts(dataset)] == [
        {"qid": 1, "vid": "a", "partner": "b", "clips": [0, -1, 4, 5, 7]},
        {"qid": 2, "vid": "b", "partner": "c", "clips": [-1, -1, 2, 3, 4, 5, -1, -1]},
        {"qid": 3, "vid": "c", "partner": "b", "clips": [-1] * 8},
        {"qid": 4, "vid": "a", "partner": "b", "clips": [-1, -1, 4, 5, 7]},
    ]


def test_a_smaller_share_replaces_some_of_the_clips_of_a_greater_share():
    sim = open_dataset("sim", split="val", n=200)
    all_clips, some_clips = (torch.tensor([c.clips for c in contexts(sim, share)]) >= 0 for share in (1.0, 0.3))
    relevant = sim.batch(range(200)).labels.relevant
    assert torch.equal(all_clips, ~relevant) and not (some_clips & ~all_clips).any()
    n = int(all_clips.sum())
    assert some_clips.sum().item() / n == pytest.approx(0.3, abs=4 * (0.21 / n) ** 0.5)
    assert same_clips(dynamic_context(sim, share=0), sim)


def test_saved_contexts_are_read_back_and_apply_to_other_streams(root, tmp_path):
    """They were chosen by all streams; the dataset has one."""
    both, joint = (open_files("qvhighlights", root, "val", streams=s) for s in (None, "joint"))
    chosen = contexts(both, share=0.5, seed=3)
    write(tmp_path / "split.jsonl", chosen)
    assert read(tmp_path / "split.jsonl") == chosen
    probe = show(joint, read(tmp_path / "split.jsonl"))
    for one, other in zip(clips(dynamic_context(both, 0.5, 3)), clips(probe), strict=True):
        assert torch.equal(one[:, both.streams["clip"]], other)
    assert probe.settings["probes"] == dynamic_context(both, 0.5, 3).settings["probes"]


def test_contexts_of_other_data_are_refused(tmp_path):
    dataset = ragged(tmp_path)
    chosen = contexts(dataset)
    with pytest.raises(ValueError, match="qid 2 on 'b' has no context"):
        show(dataset, chosen[:1])
    with pytest.raises(ValueError, match="qid 1 on 'a': no video 'z'"):
        show(dataset, [replace(chosen[0], partner="z"), *chosen[1:]])
    for wrong in ([-1] * 4, [-1, -1, -1, -1, 8]):
        with pytest.raises(ValueError, match="the context does not fit the videos, which have 5 and 8 clips"):
            show(dataset, [replace(chosen[0], clips=wrong), *chosen[1:]])
    (tmp_path / "bad.jsonl").write_text('{"qid": 1, "vid": "a"}\n')
    with pytest.raises(ValueError, match="bad.jsonl: a line does not have the fields qid, vid, partner and clips"):
        read(tmp_path / "bad.jsonl")


# ---- all


def test_samples_without_windows_and_wrong_arguments_are_refused(tmp_path):
    sim = open_dataset("sim", split="val", n=4)
    unlabelled = replace(
        sim, samples=[Sample(s.qid, s.query, s.duration, s.vid) for s in sim.samples], _annotations=None
    )
    for probe in map(PROBES.get, FOR_ANY_DATASET):
        with pytest.raises(ValueError, match=r"sim val: 4 of 4 samples have no windows, \[1000000, "):
            probe(unlabelled)
    videos = open_files("tvsum", tvsum(tmp_path, [labelled(1)]), "val")
    with pytest.raises(ValueError, match="tvsum val: 1 of 1 samples have no windows"):
        mask_moments(videos)
    with pytest.raises(ValueError, match="mode must be one of noise, zero, mean, not 'black'"):
        mask_moments(sim, "black")
    with pytest.raises(ValueError, match="margin must be 0 or more clips before and after a window"):
        mask_moments(sim, margin=(-1, 0))
    with pytest.raises(ValueError, match=r"share must be from 0 to 1, not 1.5"):
        dynamic_context(sim, 1.5)
    with pytest.raises(ValueError, match="one video only"):
        dynamic_context(sim.subset([0]))


def test_a_query_video_has_different_draws_in_each_video():
    sim = open_dataset("sim", split="val", n=4, query="video")
    one_query = replace(sim, samples=[replace(s, qid=1) for s in sim.samples], _annotations=None)
    noise = clips(mask_moments(one_query, margin=(32, 32)))
    assert not any(torch.equal(noise[0], other) for other in noise[1:])
    assert len({tuple(c.clips) for c in contexts(one_query, 0.5)}) == 4


def test_a_probe_is_exported_with_its_clips(tmp_path):
    sim = open_dataset("sim", split="val", n=4)
    probe = mask_moments(sim, "zero")
    export(probe, tmp_path)
    for s, masked in zip(sim.samples, clips(probe), strict=True):
        written = np.load(tmp_path / "clip_features" / f"{s.vid}.npz")["features"]
        assert torch.equal(torch.from_numpy(written), masked[:, probe.streams["appearance"]])
