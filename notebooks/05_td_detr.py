# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version,-language_info
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What usually stands around a moment
#
# If everybody who kicks a ball on video does so on a beach, "a man kicks a ball" can be found by looking for sand. That
# is right until somebody kicks a ball in a kitchen. *TD-DETR* (ICCV 2025) says that retrievers do this, measures it by
# taking the moments out of the videos, and does two things against it: two videos that look alike are mixed, so that a
# moment stands in another context than it was filmed in; and what *changes* from clip to clip goes into the network
# beside the clips. The rest is QD-DETR.
#
# The question of this notebook: **does a model read the moment, or what usually stands around it, and does mixing
# videos make it look?**
#
# In real videos nobody knows what a model leans on. In the simulated ones we do, for we put it there. The definition of
# the spurious scores is taken from the released code, and other such readings are named where they are used. Tags such
# as [TD-DETR Eq. 1] or [TD-DETR, synthesis] are the same in code, tests and notebook.

# %% tags=["parameters"]
dataset: str = "sim"  # "sim", or a dataset on disk: qvhighlights, charades_sta, tacos
root: str = ""  # its folder; empty: its folder in $MRLIB_DATA
size: str = "auto"  # of the simulated world and of the model: small, paper; auto: small if simulated, else paper
epochs: int = 12  # passes over the training set (paper: 200); small: TD-DETR, of three videos for one, makes a third
batch_size: int = 0  # samples a step (paper: 32; TD-DETR 16 and the 32 made of them); 0: as the size has it
seed: int = 0  # of the world, the weights and the order
device: str = "auto"  # auto, cpu, cuda
out_dir: str = ""  # checkpoints, history and predictions; empty: a fresh temporary folder
full: bool = False  # also run what is missing of the grid in figures/
save_figures: bool = False  # write the pictures to figures/
bad: str = "error"  # odd lines of annotations on disk: error, skip (leave out), clamp (mend what can be)
world: str = "context"  # where an action's home is seen: "context", around the event; "spurious", also within it
spurious: float = 1.0  # chance that an action happens in its home, 0 to 1
alpha: float = 0.7  # share of its own context that a mixed video keeps (paper: 0.7)
beta: float = 0.7  # share of the clips where their changes flow in (paper: 0.7); 1: nothing flows in
partners: str = "similar"  # who is mixed: similar, random (both in the batch), table (the most alike of all)

# %%
from mrlib.notebooks import check_parameters

check_parameters(globals())

import os
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

import mrlib
from mrlib import baselines, grid, metrics, papers, plots, widgets
from mrlib.align.dynamics import dynamic_tokens
from mrlib.align.words import Words
from mrlib.audit import cut, on_its_own, reads_labels
from mrlib.augment.similarity import pair_similarity
from mrlib.augment.synthesize import synthesize
from mrlib.data import Bank, MomentDataset, load_annotations
from mrlib.layers import endpoints, sine_positions
from mrlib.ops import spans
from mrlib.ops.draw import Draw
from mrlib.probes import dynamic_context, mask_moments, take_out
from mrlib.sim.world import World, parameters
from mrlib.train import fit, headline, predict_all, scores_of

figures = Path(mrlib.__file__).resolve().parent.parent / "figures"
plots.setup()
torch.set_num_threads(1)  # small models are no faster on two
simulated = dataset == "sim"
size = papers.usual("td_detr", dataset)["size"] if size == "auto" else size


def recipe(name, **settings):
    """A paper as it is usual for this dataset, some of its numbers changed."""
    return papers.get(name, size, papers.usual(name, dataset)["preset"], **settings)


of_td = {"alpha": alpha, "partners": partners, "beta": beta}
of_td["epochs"] = max(1, round(epochs / 3)) if size == "small" else epochs
base = recipe("qd_detr", epochs=epochs, **({"batch_size": batch_size} if batch_size else {}))
mixed = recipe("td_detr", **of_td, **({"batch_size": max(2, batch_size // 2)} if batch_size else {}))
if size == "small":  # beside QD-DETR, nothing differs but what the paper adds
    same = recipe("qd_detr", beta=beta)
    assert (mixed.aligner, mixed.detector) == (same.aligner, same.detector)


def open_split(split, **options):
    return papers.open_split(base, dataset, root or None, split, **options)


knobs = {"seed": seed, "preset": world, "spurious": spurious} if simulated else {"bad": bad}
train = open_split("train", **knobs)
val = open_split(papers.validation_split(dataset), **knobs, **({"n": 300} if simulated else {}))
moved = open_split("val_shift", **knobs, n=len(val)) if simulated else None
test = open_split("test", **knobs, n=300) if simulated else val
clip_s = train.clip_s
file = figures / "05_grid.csv"
runs = pd.read_csv(figures / "05_seeds.csv")  # what this notebook measured, a row per seed


def keep(table, name):
    """Write a table to figures/."""
    table.round(4).to_csv(figures / f"{name}.csv")


def scores(lines, data):
    row = headline(scores_of(lines, data))
    return {name: row[f"MR-full-{name}"] for name in ("R1@0.5", "R1@0.7", "mAP")} | {"mIoU": row["mIoU"]}


def features(data, i):
    """The clips of sample i's video, (T, D)."""
    return data.target.gather(data.target.index(data.video[i : i + 1]))[0]


# %% [markdown]
# ## 1. A home for every action
#
# The world is simulated unless you say otherwise: videos of 32 clips of two seconds, each a script of events in their
# places, and English questions about one of them. No question names a place. Scores here are always called
# *simulated*; they say what a mechanism does and are no QVHighlights scores.
#
# Two knobs make a shortcut. With `spurious` = 1 every action happens in one place, its *home*, in the splits `train`,
# `val` and `test`; with 0 it happens anywhere. And there is the world: in "context" a moment is a close-up that shows
# little of the event and nothing of the place, while the place is seen before it and after it; in "spurious" the place
# is seen all along. The split `val_shift` has the videos of `val` once more, the same events at the same times with the
# same people and things, but every action has moved: its home is another's.
#
# **Picture.** How often every action happens where, in `train` and in `val_shift`.

# %%
if simulated:
    concepts = World(parameters(size, "text", world, {"spurious": spurious}), seed)
    actions, places = concepts.names["action"], concepts.names["place"]
    homes = [dict(zip(actions, (places[k] for k in concepts.homes(shifted=s)), strict=True)) for s in (False, True)]
    colours = dict(zip(places, plt.get_cmap("tab20")(np.linspace(0, 1, len(places))), strict=True))

    def where(data):
        """Share of the events of every action in every place (actions, places)."""
        events = [e for s in data.samples for e in s.extra["script"]]
        counts = pd.crosstab([e["action"] for e in events], [e["place"] for e in events], normalize="index")
        return 100 * counts.reindex(index=actions, columns=places, fill_value=0)

    fig, axes = plots.figure(12, 3.4, ncols=2, sharey=True)
    for ax, data, name in ((axes[0, 0], train, "train"), (axes[0, 1], moved, "val_shift")):
        picture = ax.imshow(where(data), aspect="auto", cmap="rocket_r", vmin=0, vmax=100)
        ax.set_xticks(range(len(places)), places, rotation=30, fontsize=8)
        ax.set_yticks(range(len(actions)), actions, fontsize=8)
        ax.set(title=name)
        ax.grid(visible=False)
    fig.colorbar(picture, ax=axes[0].tolist(), label="events of the action (%)")
    if save_figures:
        plots.save(fig, figures / "05_homes", where(train).rename_axis("action").reset_index().round(1))
    for one, other in zip(val.samples, moved.samples, strict=True):
        assert one.query == other.query and one.relevant_windows == other.relevant_windows
    assert all(homes[0][action] != homes[1][action] for action in actions)
    print("val and val_shift ask the same of the same times; no action keeps its home.")
else:
    print("Files have no homes that can be moved; what needs them is left out.")

# %% [markdown]
# **Code.** QD-DETR, trained on `train`. After every epoch it is scored on `val`, which decides what is kept, and
# beside that on two *probes*, which decide nothing: `val_shift`, and `val` with the moments taken out (section 2).

# %% tags=["nbval-ignore-output"]
folder = Path(out_dir or tempfile.mkdtemp(prefix="td_detr-"))
watched = {"val_shift": moved} if simulated else {}
watched |= {"masked_mean": mask_moments(val, "mean")}
plain = papers.build(base, train, seed)
plain_history = fit(plain, train, val, base, folder / "qd_detr", seed=seed, device=device, probes=watched)
plain = plain.cpu()
blind = baselines.FixedList(train)


# %% [markdown]
# **Picture.** A video of `val` and its twin in `val_shift`, chosen among all: QD-DETR's answer is right in the first
# and furthest off in the second, if possible in a stretch that is at the home it knows. Above, the script: stretches
# coloured by their place, the asked moment in green, the best answer in orange. Below, two cosines of every clip: with
# the query, and with the action's home in `train`. In the world "context" that home is around the moment in the first
# video, and not in it; in the second it is elsewhere or nowhere, while nothing about the moment itself has changed.


# %%
def best_iou(line, sample):
    """Of the best answer with any of the windows."""
    answer = torch.tensor(line["pred_relevant_windows"][0][:2], dtype=torch.float64)
    windows = torch.tensor(sample.relevant_windows, dtype=torch.float64)
    return spans.iou(answer, windows).max().item()


def centre(line):
    """Of the best answer, seconds."""
    return sum(line["pred_relevant_windows"][0][:2]) / 2


def stretches(sample):
    """The moment; the events that are asked for, with what is around their windows; what is at the home known."""
    events, home = sample.extra["script"], homes[0][sample.extra["action"]]
    asked = [e for e in events if all(e[name] == sample.extra[name] for name in ("actor", "action", "object"))]
    return {
        "in the moment": sample.relevant_windows,
        "in the event and around it": [(e["start"], e["end"]) for e in asked],
        "at the home in train": [(e["start"], e["end"]) for e in events if e["place"] == home],
    }


def script(ax, sample, line=None):
    """Events coloured by their place, the moment in green, the answer in orange."""
    for event in sample.extra["script"]:
        a, b = event["start"], event["end"]
        ax.broken_barh([(a, b - a)], (0, 1), color=colours[event["place"]], alpha=0.6, ec="white")
        if b - a >= 4 * clip_s:
            words = f"{event['actor']} {event['action']}\n{event['object']}\n{event['place']}"
            ax.text((a + b) / 2, 0.5, words, ha="center", va="center", fontsize=6)
    ax.broken_barh([(a, b - a) for a, b in sample.relevant_windows], (-0.4, 0.3), color=plots.TRUTH)
    if line is not None:
        a, b, _ = line["pred_relevant_windows"][0]
        ax.broken_barh([(a, b - a)], (-0.8, 0.3), color=plots.PREDICTED)
    ax.set(xlim=(0, sample.duration), ylim=(-0.9, 1.05), yticks=[])
    ax.grid(visible=False)


def twins(i):
    fig, axes = plots.figure(10.5, 3.3, nrows=2, ncols=2, sharex=True, height_ratios=[1, 1.3])
    home = torch.from_numpy(concepts.places[places.index(homes[0][val.samples[i].extra["action"]])])
    for (above, below), data, name in zip(axes.T, (val, moved), ("val", "val_shift"), strict=True):
        batch = data.batch([i])
        curves = {"with the query": F.cosine_similarity(batch.target_joint[0], batch.query_joint, dim=-1).numpy()}
        curves["with the home in train"] = F.cosine_similarity(batch.target_joint[0], home[None], dim=-1).numpy()
        script(above, data.samples[i], answers[name][i])
        above.set_title(f"{name}: {data.samples[i].query}", fontsize=9)
        plots.along(below, curves, clip_s, data.samples[i].relevant_windows)
        below.set(ylabel="cosine", ylim=(-0.25, 1))
    return fig


answers = {name: predict_all(plain, data) for name, data in {"val": val, "val_shift": moved}.items() if data}
if simulated:
    overlap = {name: [best_iou(*pair) for pair in zip(answers[name], val.samples, strict=True)] for name in answers}
    drops = np.subtract(overlap["val"], overlap["val_shift"])
    lost = [
        drop + any(a <= centre(line) < b for a, b in stretches(sample)["at the home in train"])
        for drop, line, sample in zip(drops, answers["val_shift"], moved.samples, strict=True)
    ]
    clearest = np.argsort(np.negative(lost), kind="stable").tolist()
    fig = twins(clearest[0])
    if save_figures:
        plots.save(fig, figures / "05_twins")


# %% [markdown]
# **Experiment.** Over all of `val` and `val_shift`: the same questions, the same times, only the places differ. The
# blind list (ten windows chosen once on `train`, whatever the video) cannot tell the two apart. Below the fresh model
# stands the mean of three seeds of the comparison in section 8, trained with `spurious` 1 and with 0, there on `test`
# in place of `val`: where nothing had a home in training, nothing is lost when homes move (two of those three seeds are
# near the plateau; in the world "spurious" without homes, 55.1 and 56.7 in section 8, nothing is lost either).
#
# And where does the model look? Of the best answers, how many are centred in the moment, in the stretch of the event
# asked for, and in stretches at the home that the action had in `train`, of the videos that show such; beside each the
# share of time that it takes up, which is what chance would hit.


# %%
def where_to(lines, data):
    """Of the best answers, how many are centred in the stretches of each kind, and how much of the time these are."""
    hits, time_there = defaultdict(list), defaultdict(list)
    for line, sample in zip(lines, data.samples, strict=True):
        for name, there in stretches(sample).items():
            if there:
                hits[name].append(any(a <= centre(line) < b for a, b in there))
                time_there[name].append(sum(b - a for a, b in there) / sample.duration)
    table = {(name, "answers (%)"): 100 * np.mean(x) for name, x in hits.items()}
    table |= {(name, "time (%)"): 100 * np.mean(x) for name, x in time_there.items()}
    table |= {(name, "videos"): len(x) for name, x in hits.items()}
    return dict(sorted(table.items(), key=lambda item: list(hits).index(item[0][0])))


shifted = {}
if simulated:
    for name, lines in {"QD-DETR": answers, "blind list": {"val": blind(val), "val_shift": blind(moved)}}.items():
        for data, where_homes in ((val, "val"), (moved, "val_shift")):
            shifted[name] = shifted.get(name, {}) | {
                (where_homes, score): x for score, x in scores(lines[where_homes], data).items() if score != "R1@0.7"
            }
    looks = {name: where_to(answers[name], data) for name, data in (("val", val), ("val_shift", moved))}
    known = pd.read_csv(file) if file.is_file() else pd.DataFrame({"arm": []})
    for name in ("1", "0"):
        of = known[known["arm"] == f"QD-DETR, context {name}"]
        if len(of):
            mean = of.mean(numeric_only=True).rename(lambda c: c.replace("MR-full-", ""))
            shifted[f"QD-DETR, spurious {name}, mean of {len(of)} seeds"] = {
                (column, score): mean[f"{before}{score}"]
                for column, before in (("val", ""), ("val_shift", "val_shift/"))
                for score in ("R1@0.5", "mAP", "mIoU")
            }
    by_twin = pd.DataFrame(shifted).T
    if save_figures:
        keep(by_twin, "05_shifted")

# %% tags=["nbval-ignore-output"]
by_twin.round(1) if simulated else None

# %% tags=["nbval-ignore-output"]
pd.DataFrame(looks).T.round(1) if simulated else None


# %% [markdown]
# In this world the shortcut is learned, and it is large. Of ten seeds (`figures/05_seeds.csv`), ten have begun to leave
# the plateau that a training starts on, and in most of these R1@0.5 falls when homes move, on average from 36.5 ± 9.8
# to 15.5 ± 7.4. Not with seed 7, which has 21.3 and 22.3: who has hardly begun has nothing to lose yet. The model may
# still go to the right stretch, and into the moment, more often than chance, for the event can be seen there, if
# weakly. To the home that it knows it need not go more often than chance (the table has both for this run): the pair
# pictured was chosen and is not the rule. That it has learned from the places on both sides where a moment begins and
# ends is the likely reading.
#
# ## 2. Taking the moment out
#
# **Why.** On real videos there is no `val_shift`. What can be done is to destroy the moment and to ask again: who still
# finds it has guessed, from the context or from habit. So this is a score where *less* is better.
#
# **Definition** [TD-DETR, spurious]. Of a video with features $V$ and a window $[s, e]$, the clips
# $$\Big\lfloor \frac{s - 3}{2} \Big\rfloor, \dots, \Big\lfloor \frac{e + 3}{2} \Big\rfloor - 1$$
# (clips of two seconds: the moment, two clips before it and one after) are replaced by noise, uniform between the least
# and the greatest number of $V$. Duration, windows and query stay. Spurious R1 and mAP are the usual scores against the
# *old* windows; the ratio is mAP over spurious mAP, and there more is better.
#
# The rule is that of a disabled routine in the released code; the paper's own definition may differ. We add two
# quieter modes, zeros and the mean of the clips that are left, and a fourth that only a simulator has: the video once
# more, in which the event asked for does not happen though its place is there ("absent").
#
# **Code.** By hand for eight test videos.

# %%
eight = test.subset(range(min(8, len(test))))
masked = {mode: mask_moments(eight, mode, seed=seed) for mode in ("noise", "zero", "mean")}
again, other = mask_moments(eight, "noise", seed=seed), mask_moments(eight, "noise", seed=seed + 1)


def gone_by_hand(sample, clips):
    """The clips that are replaced, from windows of whole clips of two seconds."""
    gone = set()
    for start, end in sample.relevant_windows:
        gone |= set(range(int((start - 3) // 2), int((end + 3) // 2)))
    return sorted(t for t in gone if 0 <= t < clips)


whole_clips = all(x % 2 == 0 for s in eight.samples for x in np.ravel(s.relevant_windows)) and clip_s == 2
for i, sample in enumerate(eight.samples if whole_clips else ()):
    video = features(eight, i)
    gone = gone_by_hand(sample, len(video))
    left = [t for t in range(len(video)) if t not in gone]
    for mode, data in masked.items():
        now = features(data, i)
        assert torch.equal(now[left], video[left])  # to the last bit
        for columns in eight.streams.values():
            found, before = now[gone, columns], video[:, columns]
            if mode == "zero":
                assert not found.any()
            else:
                assert not torch.isclose(found.norm(dim=-1), torch.zeros(1)).any()
            if mode == "mean":
                mean = before[left if left else gone].mean(0)
                torch.testing.assert_close(F.cosine_similarity(found, mean[None], dim=-1), torch.ones(len(gone)))
    assert torch.equal(features(again, i), features(masked["noise"], i))
    assert not torch.equal(features(other, i), features(masked["noise"], i))
print("Masked by hand is mrlib's; clips outside are the same to the last bit, and a seed gives the same noise again.")

# %% [markdown]
# **Picture.** A video as it is and without its moment, four ways. Above, its features (sixteen numbers of each clip);
# below, the cosine of every clip with the query. Noise cannot be overlooked: it is like nothing else in the video.

# %%
shown = {"as it is": test} | {f"masked, {mode}": mask_moments(test, mode, seed=seed) for mode in masked}
if simulated:
    shown["absent"] = take_out(test)


def inner(sample, least=4, most=8):
    """The only window has room on both sides and a length, in clips, between these."""
    (start, end), edge = (sample.relevant_windows or [[0.0, 0.0]])[0], 4 * clip_s
    fits = len(sample.relevant_windows) == 1 and start >= edge and end <= sample.duration - edge
    return fits and least <= (end - start) / clip_s <= most


def stands_out(i):
    """How much more the clips of the moment are like the query than others are."""
    batch = test.batch([i])
    cosines, inside = F.cosine_similarity(batch.target_joint[0], batch.query_joint, dim=-1), batch.labels.relevant[0]
    return (cosines[inside].mean() - cosines[~inside].mean()).item()


inners = [i for i, s in enumerate(test.samples) if inner(s)] or [0]
pictured = max(inners, key=stands_out) if test.joint is not None else inners[0]
fig, axes = plots.figure(10.5, 2.6, nrows=2, ncols=len(shown), sharex=True, sharey="row")
for (above, below), (name, data) in zip(axes.T, shown.items(), strict=True):
    batch, windows = data.batch([pictured]), data.samples[pictured].relevant_windows
    numbers = batch.target_joint if batch.target_joint is not None else batch.target
    span = (0, len(numbers[0]) * clip_s, 0, 16)
    look = {"cmap": "vlag", "vmin": -0.3, "vmax": 0.3, "interpolation": "nearest"}
    above.imshow(numbers[0, :, :16].T, aspect="auto", extent=span, **look)
    for edge in np.ravel(windows):
        above.axvline(edge, color=plots.TRUTH)
    above.set(title=name, yticks=[])
    above.grid(visible=False)
    if test.joint is not None:
        cosines = F.cosine_similarity(batch.target_joint[0], batch.query_joint, dim=-1).numpy()
        plots.along(below, {"cosine": cosines}, clip_s, windows)
axes[1, 0].set(ylabel="cosine with the query")
if save_figures:
    plots.save(fig, figures / "05_masked")

# %% [markdown]
# **Experiment.** QD-DETR of section 1, on all of them. The blind list has the same score whatever is shown: it is the
# luck that there is in knowing where moments lie. And does a model that is shown noise look away? For every way, the
# share of best answers centred in the clips that were replaced, beside the share of time that these take up.


# %%
def centred_in_gone(lines):
    hits, share = [], []
    first, count = (x[..., i] for x in test.window_clips(torch.arange(len(test)))[:1] for i in (0, 1))
    there, mined = test.window_clips(torch.arange(len(test)))[1:]
    for i, (line, sample) in enumerate(zip(lines, test.samples, strict=True)):
        n = round(sample.duration / clip_s)
        gone = np.zeros(n, bool)
        for a, k in zip(first[i][there[i] & ~mined[i]].tolist(), count[i][there[i] & ~mined[i]].tolist(), strict=True):
            gone[max(0, a - 2) : a + k + 1] = True
        centre = sum(line["pred_relevant_windows"][0][:2]) / 2
        hits.append(gone[min(int(centre / clip_s), n - 1)])
        share.append(gone.mean())
    return {"best answers centred there (%)": 100 * np.mean(hits), "time (%)": 100 * np.mean(share)}


truth = [s.as_line() for s in test.samples]
blind_score = scores(blind(test), test)


def spurious_table(retriever):
    """What a model finds of moments that are there, and that are not."""
    rows, usual = {}, predict_all(retriever, test)
    for name, data in shown.items():
        lines = usual if data is test else predict_all(retriever, data)
        of = metrics.spurious(lines, truth, usual)
        rows[name] = {score: of[f"spurious-{score}"] for score in ("R1@0.5", "R1@0.7", "mAP")}
        rows[name] |= {"mAP, part": of.get("spurious-part-mAP"), "ratio": of["ratio"], "blind mAP": blind_score["mAP"]}
        rows[name] |= centred_in_gone(lines)
    return pd.DataFrame(rows).T.rename_axis("moment").astype(float)


by_mask = spurious_table(plain)
if save_figures:
    keep(by_mask, "05_spurious")

# %% tags=["nbval-ignore-output"]
by_mask.round(1)

# %% [markdown]
# **What it reveals, and what not.** Who scores high with the moment out has used something else than the moment. Who
# scores low need not have read it. This QD-DETR leans on places, as section 1 shows; yet with the moment out it scores
# *below the blind list* (ten seeds: 5.3 ± 1.7 mAP under noise, 4.1 ± 1.5 with zeros, 6.9 ± 1.6 with the mean, 4.0 ± 1.1
# where the event is absent; the list has 8.1 ± 1.1). A likely reason is that a shortcut of context seldom works alone:
# it needs the moment's own clips, be it only as a gap between two stretches of a place. And noise is itself something
# to be seen, to which a model may look or not. ("mAP, part" leaves out queries whose windows are the whole video.) The
# ratio of one and the same model changes with the way in which the moment is taken out; it grows when its denominator
# is near nought, by luck or by a habit of looking elsewhere.
#
# Of the four ways, only "absent" shows what the question asks, a video in which all is as ever and the event does not
# happen. So numbers have to stand side by side: standard, homes moved where that can be, masked, the blind list's.
#
# Published, read off the paper's figure 1(b) (QVHighlights, presumably `val`, ± 0.1 by eye):
#
# | | mAP | spurious mAP | ratio |
# |---|---|---|---|
# | QD-DETR | 41.3 | 10.3 | 4.0 |
# | UVCOM | 44.1 | 7.9 | 5.6 |
# | CG-DETR | 45.2 | 6.0 | 7.5 |
# | BAM-DETR | 47.7 | 6.6 | 7.2 |
# | TD-DETR | 48.6 | 2.0 | 24 |
#
# What does that mean beside a list that never looks? It can be had from the annotations alone: ten windows chosen on
# QVHighlights' `train`, scored on its `val`.

# %%
annotations = [
    Path(os.environ.get("MRLIB_DATA", ""), "qvhighlights", f"highlight_{s}_release.jsonl") for s in ("train", "val")
]
there = "MRLIB_DATA" in os.environ and all(each.is_file() for each in annotations)
real, real_val = (load_annotations(each) for each in annotations) if there else (None, None)
if there:
    lines = baselines.FixedList(real)(real_val)
    blind_real = metrics.evaluate(lines, [s.as_line() for s in real_val])["brief"]["MR-full-mAP"]
    assert blind_real > 10.3

# %% tags=["nbval-ignore-output"]
if there:
    print(f"QVHighlights val, blind list: mAP {blind_real:.1f}")
else:
    print("Left out: MRLIB_DATA names no folder with QVHighlights' annotations.")

# %% [markdown]
# More than any of the five models has with the moments masked. So those scores, if they were made so, are not what can
# be guessed from context: a model that guessed well would have the list's. They are what is left when a model is drawn
# to the noise or repelled by it.
#
# ## 3. Who is mixed with whom
#
# **Why.** A foreign context that looks like nothing in the video would be easy to tell from it. So each video is mixed
# with the one of its batch that looks most like it.
#
# **Equation** [TD-DETR Eq. 1]. With clips $v^j_p$ of video $j$, over all pairs of clips but those of equal index:
# $$s_{jl} = \frac{1}{L_j L_l} \sum_p \sum_{q \neq p} \frac{\langle v^j_p, v^l_q \rangle}{\lVert v^j_p \rVert \lVert
#   v^l_q \rVert}, \qquad k(i) = \arg\max_{k \neq i} s_{ik}.$$
# Literally that is four nested sums, over videos and clips. But the sum of all products is the product of two sums:
# with unit clips $\hat v$ and $u_j = \sum_p \hat v^j_p$,
# $$s_{jl} = \frac{1}{L_j L_l} \Big( \langle u_j, u_l \rangle - \sum_p \langle \hat v^j_p, \hat v^l_p \rangle \Big).$$
# **Code.** Both, for a few short pieces of training videos of different lengths.


# %%
def literal(videos):
    """The four sums as printed."""
    alike = torch.zeros(len(videos), len(videos), dtype=torch.float64)
    for (j, a), (k, b) in product(enumerate(videos), repeat=2):
        for p, q in product(range(len(a)), range(len(b))):
            if p != q:
                alike[j, k] += a[p] @ b[q] / (a[p].norm() * b[q].norm()) / (len(a) * len(b))
    return alike


def closed_form(videos):
    alike = torch.zeros(len(videos), len(videos), dtype=torch.float64)
    unit = [F.normalize(video, dim=-1) for video in videos]
    for (j, a), (k, b) in product(enumerate(unit), repeat=2):
        same = sum(x @ y for x, y in zip(a, b, strict=False))
        alike[j, k] = (a.sum(0) @ b.sum(0) - same) / (len(a) * len(b))
    return alike


pieces = [features(train, i)[:n].double() for i, n in zip(range(4), (6, 3, 5, 4), strict=False)]
padded = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
there = torch.arange(padded.shape[1]) < torch.tensor([len(video) for video in pieces])[:, None]
torch.testing.assert_close(closed_form(pieces), literal(pieces), atol=1e-10, rtol=0)
torch.testing.assert_close(pair_similarity(padded, there), literal(pieces), atol=1e-5, rtol=0)
print("The four sums, the closed form and mrlib agree.")

# %% [markdown]
# **Picture.** Left, 24 training videos: how alike each two are, and for each the most similar other (dot). Likenesses
# differ little, for a mean over all pairs of clips washes out most of what is in them; what is left is what lasts. On
# the right the most similar pair of these, by their places.

# %%
few = torch.arange(min(24, len(train)))
batch = train.batch(few).to("cpu")
alike = pair_similarity(batch.target, batch.target_mask)
off = alike.masked_fill(batch.video[:, None] == batch.video, -torch.inf)
best = off.argmax(1)
one = int(off.max(1).values.argmax())
fig, axes = plots.figure(10.5, 3.2, ncols=2, width_ratios=[1, 1.6])
left, right = axes[0]
picture = left.imshow(alike.masked_fill(off.isinf(), torch.nan), cmap="mako", interpolation="nearest")
fig.colorbar(picture, ax=left, fraction=0.046)
left.scatter(best, few, color=plots.PREDICTED, s=12)
left.set(xlabel="video", ylabel="video")
left.grid(visible=False)
right.axis("off")
if simulated:
    for k, i in enumerate((one, int(best[one]))):
        inset = right.inset_axes([0, 0.6 - 0.58 * k, 1, 0.32])
        script(inset, train.samples[i])
        inset.set_title(f"video {i}: {train.samples[i].query}", fontsize=8)
if save_figures:
    plots.save(fig, figures / "05_pairs")

# %% [markdown]
# **Experiment.** What does a similar partner share? A pass over the training set, in batches as TD-DETR trains: of the
# partner's places and actions how many are the video's own (shared over all that either has), and does the partner's
# question have the same home? Beside it partners drawn at random, and the most alike of all training videos.

# %%
batch_of = mixed.stages[-1].batch_size
draw = Draw(seed, "train", 0)
by_vid = {s.vid: i for i, s in enumerate(train.samples)}
by_qid = {s.qid: i for i, s in enumerate(train.samples)}


def made(data, how, size=batch_of, share=alpha):
    """All that is made of a dataset in a pass: (sample, counts) of every mixed video, and the number of originals."""
    rows = []
    for indices in torch.arange(len(data)).split(size):
        batch = synthesize(indices, data, draw, alpha=share, partners=how)
        counts = {name: x.tolist() for name, x in batch.counts.items()}
        for b, sample in enumerate(batch.samples):
            if counts["synthetic"][b]:
                rows.append((sample, {name: x[b] for name, x in counts.items()}))
    return rows


def of_all(sample, name):
    return {event[name] for event in sample.extra["script"]}


def shared(pairs, name):
    """Places, say, that both videos have, of all that either has, in percent."""
    return 100 * np.mean(
        [len(of_all(a, name) & of_all(b, name)) / len(of_all(a, name) | of_all(b, name)) for a, b in pairs]
    )


passes = {how: made(train, how) for how in (("similar", "random", "table") if simulated else (partners,))}
if simulated:
    rows = {}
    for how, pass_ in passes.items():
        pairs = [[train.samples[by_vid[vid]] for vid in (s.vid, s.extra["partner"])] for s, _ in pass_]
        rows[how] = {f"{name}s shared (%)": shared(pairs, name) for name in ("place", "action")}
        same_place = [a.extra["place"] == b.extra["place"] for a, b in pairs]
        rows[how] |= {"asked at the same place (%)": 100 * np.mean(same_place)}
    by_partner = pd.DataFrame(rows).T.rename_axis("partner")
    if save_figures:
        keep(by_partner, "05_partners")

# %% tags=["nbval-ignore-output"]
by_partner.round(1) if simulated else None

# %% [markdown]
# Similar videos share more places than any two (over ten seeds, section 11). That cuts both ways. A partner from the
# same places makes a mix that cannot be seen through; but where homes are the shortcut, it brings *the same home* more
# often than a random one would, and so breaks the link less.
#
# **Cost.** The closed form beside the products of all clips with all, for 32 videos of 75 clips of 512 numbers; the
# measurement that counts, of 128 videos with one thread and two, is `tests/benchmarks/bench_pairs.py`.


# %% tags=["nbval-ignore-output"]
def all_pairs(x, mask):
    unit = (F.normalize(x, dim=-1) * mask[..., None]).flatten(0, 1)
    pairs = (unit @ unit.T).view(*mask.shape, *mask.shape)
    count = mask.sum(1)
    return (pairs.sum((1, 3)) - pairs.diagonal(dim1=1, dim2=3).sum(-1)) / (count[:, None] * count)


def seconds(way, repeats=5):
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        way(clips, full_mask)
        taken.append(time.perf_counter() - start)
    return np.median(taken)


clips = torch.randn(32, 75, 512, generator=torch.Generator().manual_seed(seed))
full_mask = torch.ones(32, 75, dtype=torch.bool)
torch.testing.assert_close(pair_similarity(clips, full_mask), all_pairs(clips, full_mask), atol=1e-5, rtol=0)
slow, fast = seconds(all_pairs), seconds(pair_similarity)
print(f"all pairs {1e3 * slow:.0f} ms, closed form {1e3 * fast:.1f} ms: {slow / fast:.0f} times as fast")

# %% [markdown]
# ## 4. Two videos of two
#
# **Rule** [TD-DETR, synthesis]. A pair $(i, k)$ gives two videos, drawn apart:
# $$\tilde V_i = [K_i \,\Vert\, O_k], \qquad \tilde V_k = [O_i \,\Vert\, K_k].$$
# $K_i$, $i$'s own part, is all from its first window to its last, the hull $H$, and of the other clips $C$ $\lfloor
# \alpha |C| \rfloor$ drawn ones; $O_k$ is $\lfloor (1 - \alpha) L_k \rfloor$ clips of *all* that $k$ has. Two or fewer
# are none. Both numbers then vary by up to a fifth, by leaving some out or showing some twice. Clips keep their order.
# $\tilde V_i$ is asked $i$'s question; as the hull stays whole, all its windows move by one number of clips.
#
# A batch has the originals too, two mixed videos for one original. (The paper's text speaks of the mixed ones only; the
# released code has this share.)
#
# **Code.** `synthesize` does that on the device for a whole batch by one look-up. Each mixed sample's `extra` tells
# what was done; by hand, that note and the two videos must give the batch, and the note must keep to the rule.

# %%
some = torch.arange(min(32, len(train)))
synthetic = synthesize(some, train, draw, alpha=alpha, partners=partners)
rows = [b for b, made_so in enumerate(synthetic.counts["synthetic"].tolist()) if made_so]


def hull(sample, n):
    """The first clip of all windows, and the one after the last."""
    first = [min(max(int(a // clip_s), 0), n - 1) for a, _ in sample.relevant_windows]
    last = [min(-int(-b // clip_s), n) for _, b in sample.relevant_windows]
    return min(first), max(max(last), min(first) + 1)


def told(sample):
    """Whose clip stands where: [(vid, clip), ...]."""
    (own_at, own), (other_at, other) = sample.extra["own"], sample.extra["partner_clips"]
    own, other = [(sample.vid, t) for t in own], [(sample.extra["partner"], t) for t in other]
    assert (own_at, other_at) in ((0, len(own)), (len(other), 0))
    return own + other if own_at == 0 else other + own


for b in rows:
    sample = synthetic.samples[b]
    asked = train.samples[by_qid[sample.qid]]
    own, other, shift = sample.extra["own"][1], sample.extra["partner_clips"][1], sample.extra["shift"]
    x = {vid: features(train, by_vid[vid]) for vid in (sample.vid, sample.extra["partner"])}
    where_from = told(sample)
    assert torch.equal(synthetic.target[b, : len(where_from)], torch.stack([x[vid][t] for vid, t in where_from]))
    assert own == sorted(own) and other == sorted(other) and sample.vid != sample.extra["partner"]
    a, z = hull(asked, len(x[sample.vid]))
    assert where_from[a + shift : z + shift] == [(sample.vid, t) for t in range(a, z)]  # whole, and once
    assert all(own.count(t) == 1 for t in range(a, z))
    for kept, pool, share in (
        ([t for t in own if not a <= t < z], len(x[sample.vid]) - (z - a), alpha),
        (other, len(x[sample.extra["partner"]]), 1 - alpha),
    ):
        count = int(np.floor(share * pool))
        count = count if count > 2 else 0
        assert np.floor(0.8 * count) <= len(kept) <= 1.2 * count + 1e-9
    by = shift * clip_s
    assert sample.relevant_windows == [[start + by, end + by] for start, end in asked.relevant_windows]
    relevant = train.labels(torch.tensor([by_qid[sample.qid]])).relevant[0].nonzero()[:, 0]
    assert torch.equal(synthetic.labels.relevant[b].nonzero()[:, 0], relevant + shift)
print("Every clip is whose the note says; the hull is whole and once; windows move with it.")

# %% [markdown]
# **Picture.** Two pairs, before and after. Clips of the first video are blue, of the second orange, darker the later
# they are in it; the moments are green below their video. What is asked stands on the left.


# %%
def clip_row(ax, height, clips, colour_of, windows):
    bars = [(t * clip_s, clip_s) for t in range(len(clips))]
    ax.broken_barh(bars, (height - 0.2, 0.4), facecolors=[colour_of(clip) for clip in clips])
    ax.broken_barh([(a, b - a) for a, b in windows], (height - 0.34, 0.1), color=plots.TRUTH)


def synthesis_picture(ax, b):
    """The pair whose first mixed video is row b: both sources, then both mixed."""
    pair = [synthetic.samples[b], synthetic.samples[b + 1]]
    sources = [train.samples[by_qid[s.qid]] for s in pair]
    length = {s.vid: round(s.duration / clip_s) for s in sources}
    maps = dict(zip(length, (plt.get_cmap("Blues"), plt.get_cmap("Oranges")), strict=True))

    def colour_of(clip):
        return maps[clip[0]](0.25 + 0.7 * clip[1] / length[clip[0]])

    for height, sample in zip((3, 2), sources, strict=True):
        clip_row(ax, height, [(sample.vid, t) for t in range(length[sample.vid])], colour_of, sample.relevant_windows)
    for height, sample in zip((1, 0), pair, strict=True):
        clip_row(ax, height, told(sample), colour_of, sample.relevant_windows)
    names = ["first", "second", "mixed,\nthe first's question", "mixed,\nthe second's question"]
    ax.set_yticks([3, 2, 1, 0], names, fontsize=8)
    ax.set(ylim=(-0.5, 3.5), xlabel="time (s)")
    ax.set_title(f"first: {sources[0].query}\nsecond: {sources[1].query}", fontsize=8)
    ax.grid(visible=False)


clear = [
    b for b, sample in enumerate(synthetic.samples) if b in rows and inner(train.samples[by_qid[sample.qid]], 2, 12)
]
firsts = [b for b in rows[::2] if b in clear and b + 1 in clear] or rows[::2]
fig, axes = plots.figure(13, 3.2, ncols=2)
for ax, b in zip(axes[0], (firsts[0], firsts[-1]), strict=True):
    synthesis_picture(ax, b)
if save_figures:
    plots.save(fig, figures / "05_synthesis")


# %% tags=["nbval-ignore-output"]
def one_pair(b):
    _, axes = plots.figure(5.5, 2.8)
    synthesis_picture(axes[0, 0], b)


widgets.browse(one_pair, rows[:24:2], "pair")

# %% [markdown]
# **Lengths.** Of a video of $L$ clips with a hull of $|H|$, and a partner as long, the mix is expected to have
# $$\alpha (L - |H|) + |H| + (1 - \alpha) L = L + (1 - \alpha) |H|$$
# clips, were it not for rounding down and for two clips that are none. Both can be counted in: the expectation of
# $\lfloor n \min(\rho, 1) \rfloor + \lfloor n \max(\rho - 1, 0) \rfloor$ over $\rho$ from 0.8 to 1.2. A pass must have
# it, but for chance.
#
# **Places.** A moment in the first half of a pair moves to the left, to about 0.7 of where it was; in the second, to
# the right by as much. What the pass did besides is in `counts`.


# %%
def varied(n):
    """The expected number of clips when n of them, of two or fewer none, vary by up to a fifth."""
    rho = 0.8 + 0.4 * (np.arange(4000) + 0.5) / 4000
    n = n if n > 2 else 0
    return (np.floor(n * np.minimum(rho, 1)) + np.floor(n * np.maximum(rho - 1, 0))).mean()


def centres(samples):
    return np.array([(a + b) / 2 / s.duration for s in samples for a, b in s.relevant_windows])


def passed(data, pass_, share):
    """What a pass made, beside what is expected of it."""
    by_vid = {s.vid: i for i, s in enumerate(data.samples)}
    n = data.target.lengths[data.video].tolist()
    of = {s.qid: s for s in data.samples}
    expect, simple, found, twice = [], [], [], {}
    for sample, counts in pass_:
        L, around, H = n[by_vid[sample.vid]], n[by_vid[sample.extra["partner"]]], counts["moment_clips"]
        sizes = int(np.floor(share * (L - H))), int(np.floor((1 - share) * around))
        for count in sizes:
            twice.setdefault(count, varied(count))
        expect.append(H + sum(twice[count] for count in sizes))
        simple.append(share * (L - H) + H + (1 - share) * around)
        found.append(counts["moment_clips"] + counts["own_clips"] + counts["partner_clips"])
        assert found[-1] == round(sample.duration / clip_s)
    apart = np.array(found) - np.array(expect)
    if apart.std() > 0:
        assert abs(apart.mean()) < 5 * apart.std() / np.sqrt(len(apart)), (apart.mean(), apart.std())
    first = [s for s, _ in pass_ if s.extra["own"][0] == 0]
    last = [s for s, _ in pass_ if s.extra["own"][0] > 0]
    total = {name: sum(c[name] for _, c in pass_) for name in ("moment_clips", "own_clips", "partner_clips")}
    row = {"mixed videos": len(pass_), "clips before": np.mean([n[by_vid[s.vid]] for s, _ in pass_])}
    row |= {"clips after": np.mean(found), "expected": np.mean(expect), "L + (1 - α) |H|": np.mean(simple)}
    row |= {f"{name.removesuffix('_clips')} (%)": 100 * x / sum(total.values()) for name, x in total.items()}
    places = {"as annotated": centres([of[s.qid] for s, _ in pass_]), "own part first": centres(first)}
    return row, places | {"own part last": centres(last)}


sets = {"simulated" if simulated else dataset: (train, passes[partners])}
if real is not None:
    numbers = {vid: k for k, vid in enumerate(dict.fromkeys(s.vid for s in real))}
    lengths = {s.vid: int(s.duration // 2) for s in real}
    offsets = torch.tensor([0, *np.cumsum([lengths[vid] for vid in numbers])])
    no_features = MomentDataset(
        name="qvhighlights", split="train", samples=real,
        target=Bank(torch.zeros(int(offsets[-1]), 1), offsets), video=torch.tensor([numbers[s.vid] for s in real]),
        query=Bank(torch.zeros(len(real), 1), torch.arange(len(real) + 1)), query_item=torch.arange(len(real)),
        query_joint=None, streams={"none": slice(0, 1)}, joint=None, clip_s=2.0,
    )  # fmt: skip
    sets["QVHighlights, random partners"] = (no_features, made(no_features, "random", 32))
table, moments_at = {}, {}
for name, (data, pass_) in sets.items():
    table[name], moments_at[name] = passed(data, pass_, alpha)
fig, axes = plots.figure(5.5 * len(sets), 2.6, ncols=len(sets))
for ax, (name, places_of) in zip(axes[0], moments_at.items(), strict=True):
    for (how, x), colour in zip(places_of.items(), (plots.TRUTH, plots.QUERY, plots.PREDICTED), strict=True):
        if len(x):
            ax.hist(x, np.linspace(0, 1, 21), density=True, histtype="step", lw=2, color=colour, label=how)
    ax.set(xlabel="centre of a window, share of the video", ylabel="density", title=name)
axes[0, 0].legend(fontsize=8, loc="lower center")
by_set = pd.DataFrame(table).T
if save_figures:
    plots.save(fig, figures / "05_places", by_set.rename_axis("data").reset_index().round(2))
print("Mixed videos are as long as expected.")

# %% tags=["nbval-ignore-output"]
by_set.round(1)

# %% [markdown]
# **What stays whole.** The paper says that the moment stays complete; with several windows the released code keeps the
# hull, gaps and all, and so do we. On QVHighlights' training annotations (no features are needed) that can be counted.

# %%
if real is not None:
    n = np.array([lengths[s.vid] for s in real])
    ends = np.array([hull(s, k) for s, k in zip(real, n, strict=True)])
    kept = (ends[:, 1] - ends[:, 0]) / n
    union = np.array([sum(b - a for a, b in s.relevant_windows) / s.duration for s in real])
    several = np.array([len(s.relevant_windows) > 1 for s in real])
    short = np.floor(0.7 * (n - (ends[:, 1] - ends[:, 0]))) <= 2
    assert (len(real), (kept == 1).sum(), short.sum()) == (7218, 520, 671)
    assert (round(100 * kept[several].mean()), round(100 * union[several].mean())) == (51, 33)

# %% tags=["nbval-ignore-output"]
if real is not None:
    print(f"Of {len(real):,} queries the hull is the whole video for {(kept == 1).sum()}: nothing of it goes.")
    print(f"For {short.sum()} there are two clips of own context or fewer, and then none is kept (alpha 0.7).")
    print(f"Where there are several windows, the hull is {100 * kept[several].mean():.0f} % of the video,", end=" ")
    print(f"the windows {100 * union[several].mean():.0f} %.")
else:
    print("Left out: MRLIB_DATA names no folder with QVHighlights' annotations.")

# %% [markdown]
# ## 5. What changes
#
# **Why.** A place stays, an event moves. If the network sees what changes from clip to clip, it has something that the
# constant background is not in.
#
# ### Tokens
#
# **Equation** [TD-DETR Eq. 2], [TD-DETR Eq. 3]. With a learned start $st$ before the clips $\tilde v_1, \dots, \tilde
# v_L$ (projected, with their positions):
# $$T_1 = \tilde v_1 - st, \qquad T_t = \tilde v_t - \tilde v_{t-1}.$$
# Nothing is lost: summed up from $st$ on, the tokens are the clips.

# %%
model = papers.build(mixed, train, seed).eval()
batch = test.batch(range(min(4, len(test)))).to("cpu")
layer = model.aligner.layers[0]
with torch.no_grad():
    aligner = model.aligner
    target = torch.cat([batch.target, endpoints(batch.target_mask)], -1) if aligner.tef else batch.target
    X, Y = aligner.project_target(target), aligner.project_query(batch.query)
    P = sine_positions(batch.target_mask, aligner.width)
    start = next(p for name, p in model.named_parameters() if name.endswith("mix.start.weight"))[0]
    T = dynamic_tokens(X + P, start)


def tokens_by_hand(clips):
    before, tokens = start, []
    for clip in clips:
        tokens.append(clip - before)
        before = clip
    return torch.stack(tokens)


for b in range(len(batch)):
    n = int(batch.lengths[b])
    assert torch.equal(T[b, :n], tokens_by_hand((X + P)[b, :n]))
    torch.testing.assert_close(start + T[b, :n].cumsum(0), (X + P)[b, :n], rtol=1e-4, atol=1e-4)
print("Tokens by hand are mrlib's; their sums from the start on are the clips.")

# %% [markdown]
# **Picture.** Left, the length of the tokens along one video, of its features as they are (nothing is learned yet, and
# the first clip stands for the start); lines are where an event begins or ends, or one place gives way to another.
# Right, the mean over all test videos by the distance from such a border.


# %%
def borders(sample):
    """Clips before which an event begins, ends, or gives way to the next."""
    events = sample.extra.get("script", [{"start": 0.0, "windows": sample.relevant_windows}])
    times = {x for e in events for x in (e["start"], *np.ravel(e["windows"]))}
    return sorted(round(x / clip_s) for x in times if 0 < x < sample.duration)


by_distance = defaultdict(list)
for i, sample in enumerate(test.samples[:300]):
    video, edges = features(test, i), np.array(borders(sample))
    norms = dynamic_tokens(video[None], video[0])[0].norm(dim=-1)[1:].tolist()
    for t, norm in enumerate(norms, 1):
        if len(edges):
            by_distance[min(int(np.abs(edges - t).min()), 6)].append(norm)
profile = pd.Series({d: np.mean(x) for d, x in sorted(by_distance.items())})
fig, axes = plots.figure(12, 2.6, ncols=2, width_ratios=[2, 1])
left, right = axes[0]
video = features(test, pictured)
norms = dynamic_tokens(video[None], video[0])[0].norm(dim=-1).numpy()
left.plot(np.arange(1, len(norms)) * clip_s, norms[1:], marker=".", color=plots.QUERY)
for edge in borders(test.samples[pictured]):
    left.axvline(edge * clip_s, color=plots.OTHER, ls="--", lw=1)
for a, b in test.samples[pictured].relevant_windows:
    left.axvspan(a, b, color=plots.TRUTH, alpha=0.2, lw=0)
left.set(xlabel="target video (s)", ylabel="length of $T_t$", xlim=(0, len(norms) * clip_s))
left.set_title(test.samples[pictured].query, fontsize=9)
right.plot(profile.index, profile, marker="o", color=plots.QUERY)
right.set(xlabel="clips to the nearest border (6: or more)", ylabel="mean length of $T_t$")
if save_figures:
    plots.save(fig, figures / "05_tokens", profile.rename("mean length").rename_axis("clips").reset_index().round(4))

# %% [markdown]
# Tokens are longest where an event begins, ends or gives way to another (over ten seeds, section 11).
#
# ### Both meet the words
#
# **Equation** [TD-DETR Eq. 4], [TD-DETR Eq. 5]. Clips and tokens each look at the words, $\delta$ standing for either:
# $$\delta' = \mathrm{softmax}\big(Q_\delta K^\top / \sqrt d\big) V, \qquad Q_{\tilde V} = W_q (X + P), \quad
#   Q_T = W'_q\, \ell_2(\ell_1(T)), \quad \ell(x) = \mathrm{ReLU}(W\, \mathrm{LN}(x) + b),$$
# with heads, and with keys and values of their own for clips and tokens, as released. Call what they gather $A$ and
# $F$.
#
# **Equation** [TD-DETR Eq. 6]. What the tokens gather flows into the clips, in every layer from words to clips:
# $$X \leftarrow \beta X + (1 - \beta) F, \qquad Z = X + A, \qquad X \leftarrow \mathrm{LN}_2\big(Z +
#   \mathrm{FFN}(\mathrm{LN}_1 Z)\big).$$
# The last two are QD-DETR's layer. (The printed formula has the attended video on one side and the unattended one on
# the other; the code decides that it is the residual.)
#
# **Code.** One layer, clip by clip and head by head.


# %%
def attention_by_hand(attention, asking, words):
    (Wq, Wk, Wv), (bq, bk, bv) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    d, out = len(bq) // attention.heads, []
    for x in asking:
        q, gathered = Wq @ x + bq, []
        for head in range(attention.heads):
            of = slice(head * d, (head + 1) * d)
            weight = torch.stack([q[of] @ (Wk @ y + bk)[of] / d**0.5 for y in words]).softmax(0)
            gathered.append(sum(w * (Wv @ y + bv)[of] for w, y in zip(weight, words, strict=True)))
        out.append(attention.out_proj(torch.cat(gathered)))
    return torch.stack(out)


def layer_by_hand(x, p, words):
    mix, tokens = layer.mix, tokens_by_hand(x + p)
    parts = [part for part in mix.project if isinstance(part, torch.nn.LayerNorm | torch.nn.Linear)]
    for norm, linear in zip(parts[::2], parts[1::2], strict=True):
        tokens = linear(norm(tokens)).relu()
    carried = mix.beta * x + (1 - mix.beta) * attention_by_hand(mix.attend, tokens, words)
    z = carried + attention_by_hand(layer.cross_attn, x + p, words)
    return layer.norm2(z + layer.feed_forward(layer.norm1(z)))


with torch.no_grad():
    after = layer(X, P, Words(Y, Y, batch.query_mask))
    for b in range(2):
        n, m = int(batch.lengths[b]), int(batch.query_mask[b].sum())
        by_hand = layer_by_hand(X[b, :n], P[b, :n], Y[b, :m])
        torch.testing.assert_close(after[b, :n], by_hand, rtol=1e-3, atol=1e-4)
print("A layer with dynamics by hand is mrlib's.")

# %% [markdown]
# **With $\beta = 1$ nothing flows in**, and TD-DETR's network is QD-DETR's to the last bit, whatever the weights of the
# rest.

# %%
without = papers.build(recipe("td_detr", beta=None), train, seed).eval()
nothing = papers.build(recipe("td_detr", beta=1.0), train, seed).eval()
missing, unexpected = nothing.load_state_dict(without.state_dict(), strict=False)
assert missing and not unexpected and all(".mix." in name for name in missing)
with torch.no_grad():
    (one, outputs), (two, others) = without(batch), nothing(batch)
    assert torch.equal(one.target, two.target) and torch.equal(one.saliency, two.saliency)
    assert all(torch.equal(outputs[name], others[name]) for name in outputs)
    outputs = model(batch)[1]
    assert beta == 1 or not torch.equal(outputs["spans_cw"], others["spans_cw"])
extra = sum(p.numel() for p in nothing.parameters()) - sum(p.numel() for p in without.parameters())
print("A beta of 1 is QD-DETR to the last bit.")

# %% [markdown]
# ## 6. The training run
#
# **Experiment.** TD-DETR, both parts: mixed videos and dynamics, in the same world, for as many steps of as many
# samples as QD-DETR had in section 1: 11 videos and the 22 made of them are 33, and a third of the passes is as many
# steps. So it sees every *real* video a third as often. Both are watched on `val`, which decides, and on the two
# probes, which do not.

# %% tags=["nbval-ignore-output"]
retriever = papers.build(mixed, train, seed)
history = fit(retriever, train, val, mixed, folder / "td_detr", seed=seed, device=device, probes=watched)
retriever = retriever.cpu()

# %% [markdown]
# **Picture.** Left, R1@0.5 on `val` (lines) and `val_shift` (dashes): what goes up on the first and not on the second
# was learned from places. In the middle, the mAP with the moments replaced by the mean of the rest. Right, the training
# losses, which cannot be compared: mixed videos are other data. A training may begin with a plateau, where homes make
# no difference yet (TD-DETR is scored only four times). Section 8 has seeds that do not leave it.


# %% tags=["nbval-ignore-output"]
def curve(history):
    return history.frame().rename(columns=lambda name: name.replace("MR-full-", ""))


curves = {"QD-DETR": curve(plain_history), "TD-DETR": curve(history)}
colour = {"QD-DETR": plots.QUERY, "TD-DETR": plots.PREDICTED}
fig, axes = plots.figure(11, 2.6, ncols=3)
left, middle, right = axes[0]
for name, frame in curves.items():
    left.plot(frame["step"], frame["R1@0.5"], marker=".", color=colour[name], label=f"{name}, val")
    if simulated:
        shift = frame["val_shift/R1@0.5"]
        left.plot(frame["step"], shift, marker=".", ls="--", color=colour[name], label=f"{name}, val_shift")
    middle.plot(frame["step"], frame["masked_mean/mAP"], marker=".", color=colour[name], label=name)
    right.plot(frame["step"], frame["loss"], marker=".", color=colour[name], label=name)
middle.axhline(scores(blind(val), val)["mAP"], color=plots.OTHER, ls=":", label="blind list")
left.set(xlabel="step", ylabel="R1@0.5")
middle.set(xlabel="step", ylabel="mAP, moments masked", ylim=(0, None))
right.set(xlabel="step", ylabel="training loss")
left.legend(fontsize=7)
middle.legend(fontsize=7)
names = ["step", "loss", "R1@0.5", "mAP", "val_shift/R1@0.5", "val_shift/mAP", "masked_mean/mAP"]
both = pd.concat([frame.assign(model=name) for name, frame in curves.items()])
both = both[["model", "epoch", *(name for name in names if name in both)]]
if save_figures:
    plots.save(fig, figures / "05_training", both.round(4))
both.round(2)

# %% [markdown]
# **Result.** Standard is `test`; `val` and `val_shift` are the twins (the epoch was chosen on `val`). Of the masked
# videos and of those where the event is absent, *less* is better; "dynamic context" [TD-DETR, context] is `test` with
# all clips outside the windows taken from the most similar other video, and there more is better. The blind list stands
# beside each.

# %%
views = {"test": test} | ({"val": val, "val_shift": moved} if simulated else {})
views |= {name: data for name, data in shown.items() if name not in ("as it is", "masked, zero")}
views["dynamic context"] = dynamic_context(test, seed=seed)
models = {"QD-DETR": plain, "TD-DETR": retriever}
found = {(name, view): predict_all(each, data) for name, each in models.items() for view, data in views.items()}
found |= {("blind list", view): blind(data) for view, data in views.items()}
rows = {key: scores(lines, views[key[1]]) for key, lines in found.items()}
kinds_of_score = [(name, score) for name in (*models, "blind list") for score in ("R1@0.5", "mAP")]
results = pd.DataFrame({(name, score): {v: rows[name, v][score] for v in views} for name, score in kinds_of_score}).T
if save_figures:
    keep(results.rename_axis(["answer", "score"]), "05_scores")

# %% tags=["nbval-ignore-output"]
results.round(1)

# %% tags=["nbval-ignore-output"]
gone = [view for view in views if view.startswith("masked") or view == "absent"]
ratios = {
    name: {view: metrics.spurious(found[name, view], truth, found[name, "test"])["ratio"] for view in gone}
    for name in (*models, "blind list")
}
pd.DataFrame(ratios).T.rename_axis("mAP / spurious mAP")


# %% [markdown]
# **Conclusion** (few steps; ten seeds, `figures/05_seeds.csv`, and more of both in section 8). In R1@0.5 QD-DETR has
# 36.5 ± 9.8 on `val` and 15.5 ± 7.4 where homes have moved, TD-DETR 23.2 ± 14.0 and 21.9 ± 12.2: what it finds on `val`
# it finds on `val_shift`. The spread is that of plateaus, which TD-DETR leaves late. The masked scores say little: they
# are low for both, below the blind list's.
#
# Where the best answers of both lie when homes have moved, as in section 1:

# %% tags=["nbval-ignore-output"]
if simulated:
    looks = {name: where_to(found[name, "val_shift"], moved) for name in models}
    if save_figures:
        keep(pd.DataFrame(looks).T.rename_axis("model"), "05_looks")
pd.DataFrame(looks).T.round(1) if simulated else None

# %% [markdown]
# **Picture.** Four videos of `val_shift`, those of section 1 that QD-DETR lost first: places as stretches, the moment
# (green), and the best answers.

# %%
if simulated:
    fig, axes = plots.figure(13, 2.2, ncols=4)
    for ax, i in zip(axes[0], clearest, strict=False):
        script(ax, moved.samples[i])
        for height, (name, colour_of) in enumerate(colour.items()):
            a, b, _ = found[name, "val_shift"][i]["pred_relevant_windows"][0]
            ax.broken_barh([(a, b - a)], (-0.9 - 0.4 * height, 0.3), color=colour_of)
        labels = ["truth", *colour]
        ax.set_yticks([-0.25, -0.75, -1.15], labels, fontsize=7)
        ax.set(ylim=(-1.3, 1.05), xlabel="target video (s)")
        ax.set_title(moved.samples[i].query, fontsize=7)
        ax.label_outer()
    if save_figures:
        plots.save(fig, figures / "05_answers")

# %% [markdown]
# ## 7. The audit
#
# Predictions must not depend on labels, on other videos of the batch, or on how far a video is padded. Mixed videos
# have all lengths, so padding is the rule in training. (In the released code a mask is tiled wrongly, so that a sample
# loses words where others are padded; with QD-DETR's videos of one length that does nothing, with these it does.)


# %%
audit, foreign = (test.batch(range(a, a + 8)).to("cpu") for a in (0, len(test) - 8))
assert not reads_labels(retriever, audit, foreign)
audit = replace(audit, target_joint=None)
short = [max(4, int(n * s)) for n, s in zip(audit.lengths.tolist(), np.linspace(1, 0.4, 8), strict=True)]
with torch.no_grad():
    for T in (max(short), max(short) + 10):
        aligned, outputs = retriever(cut(audit, short, T))
        for b, n in enumerate(short):
            alone, of_one = retriever(on_its_own(audit, b, n))
            torch.testing.assert_close(aligned.saliency[b, :n], alone.saliency[0], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(outputs["spans_cw"][-1, b], of_one["spans_cw"][-1, 0], rtol=1e-3, atol=1e-3)
print("Predictions do not depend on labels, batch mates or padding.")

# %% [markdown]
# ## 8. The experiment
#
# **Question.** What of TD-DETR repairs what, in a world where a shortcut is known to be learned? Every arm is the small
# QD-DETR for about 380 steps of 32 or 33 samples:
#
# | arm | videos | dynamics |
# |---|---|---|
# | QD-DETR | as they are | – |
# | random pairs | mixed, with any video of the batch | – |
# | similar pairs | mixed, with the most similar of the batch | – |
# | dynamics | as they are | $\beta$ = 0.7 |
# | both | mixed, with the most similar of the batch | $\beta$ = 0.7 |
#
# in the world "context" with `spurious` 1, 0.5 and 0, and in the world "spurious" ("place": the place is seen in the
# moment too) with 1. Then the paper's sweeps of $\alpha$ and $\beta$, similar pairs among all training videos instead
# of the batch, and the five arms and two alphas once more with twice the steps, for 380 are few: a training that is
# still on its first plateau says little. Three seeds, each with a world, an order and weights of its own; the epoch is
# chosen on `val` and scored on `test`, 500 queries, and on five probes. The rows are `figures/05_grid.csv`, each with
# its command; `-p full true` runs what is missing.

# %% tags=["nbval-ignore-output"]
kinds = {
    "QD-DETR": {"epochs": 12},
    "random pairs": {"augment": "synthesize", "batch_size": 11, "epochs": 4, "partners": "random"},
    "similar pairs": {"augment": "synthesize", "batch_size": 11, "epochs": 4},
    "dynamics": {"epochs": 12, "beta": 0.7},
    "both": {"augment": "synthesize", "batch_size": 11, "epochs": 4, "beta": 0.7},
}
probes = ("val_shift", "masked_noise", "masked_mean", "absent", "dynamic_context")


def arm(kind, world, spurious, **changed):
    return grid.Arm("qd_detr", kinds[kind] | changed, {"preset": world, "spurious": spurious}, probes=probes)


arms = {f"{kind}, context {s:g}": arm(kind, "context", s) for s in (1.0, 0.0, 0.5) for kind in kinds}
arms |= {f"{kind}, place 1": arm(kind, "spurious", 1.0) for kind in kinds}
arms |= {"QD-DETR, place 0": arm("QD-DETR", "spurious", 0.0)}
arms |= {f"alpha {a:g}": arm("both", "context", 1.0, alpha=a) for a in (0.0, 0.3, 0.5, 0.9)}
arms |= {f"beta {b:g}": arm("both", "context", 1.0, beta=b) for b in (0.1, 0.3, 0.5, 0.9)}
arms |= {"pairs of all videos": arm("similar pairs", "context", 1.0, partners="table")}
arms |= {f"{kind}, twice the steps": arm(kind, "context", 1.0, epochs=2 * kinds[kind]["epochs"]) for kind in kinds}
arms |= {f"alpha {a:g}, twice the steps": arm("both", "context", 1.0, epochs=8, alpha=a) for a in (0.0, 0.3)}
seeds = list(range(3))
rows = grid.run(file, arms, seeds) if full else grid.read(file, arms, seeds)
rows = rows.rename(columns=lambda name: name.replace("MR-full-", ""))
views = {"test": "", **{name: f"{name}/" for name in probes}}


def side_by_side(score, names=arms):
    """Mean ± spread of a score, an arm a row and a view a column."""
    groups = rows.set_index("arm").groupby(level=0, sort=False)
    cells = {view: groups[before + score].agg(["mean", "std"]).loc[list(names)] for view, before in views.items()}
    texts = {view: [f"{m:.1f} ± {s:.1f}" for m, s in x.to_numpy()] for view, x in cells.items()}
    return pd.DataFrame(texts, list(names))


side_by_side("R1@0.5")

# %% tags=["nbval-ignore-output"]
side_by_side("mAP")

# %% [markdown]
# mAP over spurious mAP, arm by arm, and beside it what the same arm loses when homes move, in R1@0.5:

# %% tags=["nbval-ignore-output"]
by_arm = rows.set_index("arm")
lost = {f"mAP / {view}": by_arm["mAP"] / by_arm[f"{view}/mAP"] for view in ("masked_noise", "masked_mean", "absent")}
lost["lost when homes move"] = by_arm["R1@0.5"] - by_arm["val_shift/R1@0.5"]
grid.summary(pd.DataFrame(lost).reset_index(), lost).round(1)

# %% [markdown]
# **Picture.** Standard against shifted: a line from `test` (filled) to `val_shift` (open) for every arm, the knob in
# three strengths; dots are the seeds. A flat pair does not care where the homes are.

# %%
strengths = {"context, 760 steps": "twice the steps"}
strengths |= {f"context, spurious {s}": f"context {s}" for s in ("1", "0.5", "0")} | {"place, spurious 1": "place 1"}
fig, axes = plots.figure(12, 2.8, ncols=len(strengths), sharey=True)
for ax, (title, world_name) in zip(axes[0], strengths.items(), strict=True):
    for x, kind in enumerate(kinds):
        of = rows[rows["arm"] == f"{kind}, {world_name}"]
        pair = of["R1@0.5"], of["val_shift/R1@0.5"]
        ax.plot([x - 0.12, x + 0.12], [y.mean() for y in pair], color=plots.OTHER)
        for at, y, face in ((x - 0.12, pair[0], plots.QUERY), (x + 0.12, pair[1], "white")):
            ax.scatter([at], [y.mean()], s=60, facecolor=face, edgecolor=plots.QUERY, zorder=3)
            ax.scatter([at] * len(y), y, s=8, color="black", zorder=4)
    ax.set_xticks(range(len(kinds)), [kind.replace(" ", "\n") for kind in kinds], fontsize=7)
    ax.set(title=title)
axes[0, 0].set(ylabel="R1@0.5", ylim=(0, None))
if save_figures:
    plots.save(fig, figures / "05_grid")

# %% [markdown]
# **Sweeps.** $\alpha$ and $\beta$ of the arm "both" in the world "context" with `spurious` 1. Published beside them,
# QVHighlights `val` (Tables S1 and S2), another scale and another question: on real videos nobody can move the homes.
#
# | α | R1@0.5 | R1@0.7 | mAP | | β | R1@0.5 | R1@0.7 | mAP |
# |---|---|---|---|---|---|---|---|---|
# | 0.0 | 11.61 | 3.35 | 10.09 | | | | | |
# | 0.3 | 65.10 | 51.94 | 47.55 | | 0.1 | 65.10 | 51.94 | 48.87 |
# | 0.5 | 64.77 | 51.10 | 47.95 | | 0.3 | 64.77 | 51.48 | 48.48 |
# | | | | | | 0.5 | 65.15 | 51.26 | 47.81 |
# | 0.7 | 65.88 | 53.67 | 49.05 | | 0.7 | 65.88 | 53.67 | 49.05 |
# | 0.9 | 64.19 | 51.23 | 47.94 | | 0.9 | 62.97 | 50.19 | 47.83 |
#
# The row α = 0 most likely belongs to β = 0: without own context the videos still hold their moments. The rows α = 0.3
# and β = 0.1 share both R1 values to the digit. Neither is a target.

# %%
published = {
    "alpha": {0.3: 47.55, 0.5: 47.95, 0.7: 49.05, 0.9: 47.94},
    "beta": {0.1: 48.87, 0.3: 48.48, 0.5: 47.81, 0.7: 49.05, 0.9: 47.83},
}
sweeps = {
    "alpha": {a: f"alpha {a:g}" for a in (0.0, 0.3, 0.5, 0.9)} | {0.7: "both, context 1"},
    "beta": {b: f"beta {b:g}" for b in (0.1, 0.3, 0.5, 0.9)} | {0.7: "both, context 1"}
    | {1.0: "similar pairs, context 1"},
}  # fmt: skip
fig, axes = plots.figure(11, 2.4, ncols=4)
for (ours, theirs), (name, by_value) in zip(axes.reshape(2, 2), sweeps.items(), strict=True):
    for column, style, label in (("R1@0.5", "-", "test"), ("val_shift/R1@0.5", "--", "val_shift")):
        of = {value: rows.loc[rows["arm"] == known, column] for value, known in sorted(by_value.items())}
        y, spread = ([f(x) for x in of.values()] for f in (np.mean, np.std))
        ours.errorbar(list(of), y, spread, ls=style, marker="o", capsize=3, color=plots.QUERY, label=label)
    ours.set(xlabel=name, ylabel="R1@0.5, simulated", ylim=(0, None))
    theirs.plot(list(published[name]), list(published[name].values()), marker="o", color=plots.OTHER)
    theirs.set(xlabel=name, ylabel="mAP, published", ylim=(40, 50))
axes[0, 0].legend(fontsize=8)
if save_figures:
    plots.save(fig, figures / "05_sweeps")

# %% [markdown]
# **Partners and other contexts.** Table S4 (QVHighlights `val`) has what similar partners add to random ones, Table S5
# the paper's own split with changed contexts, of which neither file, share nor seed is public: only differences within
# a column can be compared with ours.
#
# | Table S4 | R1@0.7 | mAP@0.75 | mAP | | Table S5 | R1@0.5 | R1@0.7 | mIoU | mAP |
# |---|---|---|---|---|---|---|---|---|---|
# | QD-DETR | 46.66 | 41.82 | 41.22 | | QD-DETR | 58.29 | 39.29 | 52.76 | 34.78 |
# | random partner | 51.29 | 47.82 | 47.56 | | CG-DETR | 62.03 | 43.77 | 56.57 | 38.48 |
# | most similar partner | 53.67 | 49.86 | 49.05 | | BAM-DETR | 59.74 | 41.87 | 54.95 | 39.24 |
# | | | | | | TD-DETR | 65.77 | 46.94 | 59.43 | 42.21 |

# %%
columns = [f"{before}{score}" for before in ("", "val_shift/", "dynamic_context/") for score in ("R1@0.5", "mAP")]
by_seed = {score: rows.pivot(index="seed", columns="arm", values=score) for score in columns}


def gains(score, one, other):
    return by_seed[score][one] - by_seed[score][other]


for steps, score in product(("twice the steps", "context 1"), columns):
    for one, other in (
        ("random pairs", "QD-DETR"),
        ("similar pairs", "QD-DETR"),
        ("dynamics", "QD-DETR"),
        ("both", "QD-DETR"),
        ("similar pairs", "random pairs"),
        ("both", "similar pairs"),
    ):
        of = gains(score, f"{one}, {steps}", f"{other}, {steps}")
        print(f"{steps}, {score}: {one} over {other}", [f"{x:+.1f}" for x in of])

# %% [markdown]
# **How much of a score hangs on the homes**: R1@0.5 on `test` less that on `val_shift` (other videos, so that a few
# points are noise), seed by seed; and mAP over spurious mAP, by the way in which the moment is taken out.

# %%
gap = {name: by_seed["R1@0.5"][name] - by_seed["val_shift/R1@0.5"][name] for name in arms}
mixing = ("random pairs", "similar pairs", "both")
for steps in ("context 1", "twice the steps"):
    assert (gap[f"QD-DETR, {steps}"] > 10).all()
assert (gap["QD-DETR, context 0"].abs() < 5).all()
for kind in mixing:
    assert (gap[f"{kind}, context 1"] < gap["QD-DETR, context 1"]).all()
    assert (gains("val_shift/R1@0.5", f"{kind}, context 1", "QD-DETR, context 1") > 0).all()
    assert (gap[f"{kind}, twice the steps"] > 5).all() and (gap[f"{kind}, place 1"] > 5).all()
for less, more in product(("alpha 0.3", "alpha 0.3, twice the steps"), ("context 1", "twice the steps")):
    assert (gains("val_shift/R1@0.5", less, f"QD-DETR, {more}") > 0).all() and (gap[less] < 10).all()
for score in ("R1@0.5", "val_shift/R1@0.5"):
    assert (gains(score, "dynamics, place 1", "QD-DETR, place 1") > 0).all()
of_seeds = {f"seed {seed}": {name: x[seed] for name, x in gap.items()} for seed in seeds}
by_home = pd.DataFrame(of_seeds).assign(mean=pd.DataFrame(of_seeds).mean(axis=1))
ways = ("masked_noise", "masked_mean", "absent")
of_arm = rows.set_index("arm")
for way in ways:
    by_home[f"mAP / {way}"] = (of_arm["mAP"] / of_arm[f"{way}/mAP"]).groupby(level=0).mean()
if save_figures:
    keep(by_home.rename_axis("arm"), "05_homes_over_seeds")
print("Mixing with alpha 0.7 puts the shortcut off, with 0.3 it prevents most of it; what is in the moment stays.")

# %% tags=["nbval-ignore-output"]
by_home.round(1)

# %% [markdown]
# **Conclusion** (R1@0.5, simulated, three seeds). *The shortcut is learned.* Where every action has a home around its
# moments, QD-DETR has 37.5 ± 12.5 on `test` and 10.0 ± 6.2 where homes have moved; with twice the steps 59.7 ± 8.4 and
# 19.8 ± 20.2. Where half of the events are at home, the difference is 2.6 ± 1.2; two of those three seeds have hardly
# learned anything that could be lost (22.4 ± 10.8 on `test`), but with the dynamics, 48.2 ± 12.5, it is 1.6 ± 0.6: a
# cue that fails every other time is hardly taken up.
#
# *The paper's mixing puts it off.* With $\alpha$ = 0.7, 380 steps lead to no shortcut (the difference is 2.1 ± 4.2 with
# random pairs, -2.1 ± 1.4 with similar ones, 1.0 ± 2.6 with both parts), and with homes moved all three are ahead of
# QD-DETR for every seed. But two of three seeds have then hardly begun to learn anything. With twice the steps the
# shortcut comes all the same: 14.1 ± 7.3, 24.8 ± 0.9 and 26.1 ± 2.8, where QD-DETR has 39.9 ± 25.2; for seed 0, where
# QD-DETR has 11.4, the last two have twice that. It can: most of a moment's own context stays, in its order, next to
# the moment.
#
# *Less of the own context mends it.* With $\alpha$ = 0.3, and dynamics, 380 steps give 51.0 ± 6.0 on `test` and 47.0 ±
# 2.9 with homes moved, twice the steps 58.5 ± 4.9 and 53.3 ± 4.2: as much as QD-DETR on `test`, and with homes moved
# ahead of it for every seed, whichever of the two trainings either has. With $\alpha$ = 0, where nothing of the own
# context is left, the difference is gone (-2.4 ± 7.2), but less is learned: 38.1 ± 15.5 and 40.5 ± 13.3. With 0.9 it is
# 11.6 ± 6.6. With 0.5, between them, two of three seeds are still on the plateau after 380 steps (21.7 ± 13.7), so this
# is no trend, and why 0.3 leaves it sooner is open: a smaller $\alpha$ also means more of the partner, and 0.3 was not
# run without the dynamics. So there is a world in which the method repairs what it is meant to, though not with its own
# number (published, on videos as they are: 0.7 before 0.3 by 1.5 mAP; the row of 0.3 is in doubt, see the sweeps).
# Pairs among all training videos, more alike, are still at the very beginning after 380 steps (12.9 ± 1.9).
#
# *What is in the moment stays.* Where the place is seen in the moment too, no mixing narrows the difference: 21.4 ±
# 3.3, 22.9 ± 12.2 and 19.0 ± 6.1, QD-DETR 16.1 ± 8.2. The moment is kept whole, place included, as section 4 shows.
# There the dynamics are ahead for every seed, on `test` (66.8 ± 0.9, not 47.5 ± 2.5) and with homes moved (43.3 ± 3.1,
# not 31.3 ± 7.7), though the difference is no smaller. In the world "context" they do not narrow it reliably: 21.1 ±
# 12.3 and, with twice the steps, 39.7 ± 20.9. They help as much where there is no shortcut (`spurious` 0: 54.3 ± 14.5,
# not 20.4 ± 13.3; 0.5: 48.2 ± 12.5, not 22.4 ± 10.8; ahead for every seed): they leave the plateau sooner.
#
# *Partners.* With twice the steps similar partners are ahead of random ones on `test` for every seed (by 33.4, 7.4 and
# 11.4; 51.3 ± 25.4 and 33.9 ± 11.7), the direction that is published (+1.5 mAP, there with dynamics); with 380 steps
# they are not, and with homes moved the sign changes from seed to seed (26.5 ± 24.9 and 19.8 ± 16.3). The difference
# between `test` and moved homes is larger with them for every seed, as section 3 lets one expect. Of $\beta$, published
# nearly flat, 0.1 is the worst here (12.0 ± 5.0 on `test`); the others are within their spread.
#
# *The ratio is no measure of it.* With twice the steps the highest mAP over spurious mAP under noise belongs to QD-DETR
# (14.1 ± 6.7) and to the dynamics alone (14.3 ± 11.4), whose scores hang most on the homes; both parts together have
# 10.6 ± 1.5. With the mean in place of noise the order is another (7.9, 6.9 and 9.4), and after 380 steps $\alpha$ =
# 0.3 is first of these under noise (9.5, QD-DETR 5.6): the ratio goes up with all that is learned, shortcut or not. The
# dynamic context, which needs no simulator either, does tell them apart: QD-DETR has 24.1 ± 9.2, both parts 37.8 ± 2.4.
#
# Limits. The trainings are short, and the sweeps shorter: which seed has left the first plateau by then decides much of
# every spread. "Difference" is `test` less `val_shift`, and these are other videos (the twin of `val_shift` is `val`):
# where there are no homes at all it is between -5.4 and 4.8. For equal steps a mixed arm sees every real video a third
# as often and has a third of the epochs to choose from, on `val`, where the shortcut pays. The dynamics bring 15 % more
# parameters. A world with one shortcut, put there on purpose, says what mixing can do, not what real videos need.
#
# ## 9. What is published, and what is not
#
# QVHighlights `test` (Table 1) and Charades-STA `test` (Table 2), SlowFast and CLIP features:
#
# | | R1@0.5 | R1@0.7 | mAP@0.5 | mAP@0.75 | mAP | Charades R1@0.5 | R1@0.7 |
# |---|---|---|---|---|---|---|---|
# | Moment-DETR | 52.89 | 33.02 | 54.82 | 29.40 | 30.73 | 53.63 | 31.37 |
# | QD-DETR | 62.40 | 44.98 | 62.52 | 39.88 | 39.86 | 57.31 | 32.55 |
# | CG-DETR | 65.40 | 48.40 | 64.50 | 42.80 | 42.90 | 58.40 | 36.30 |
# | BAM-DETR | 64.53 | 48.64 | 64.57 | 46.33 | 45.36 | 59.95 | 39.38 |
# | TD-DETR, three runs | 64.53 ± 0.62 | 50.37 ± 0.53 | 66.21 ± 0.21 | 47.32 ± 0.53 | 46.69 ± 0.26 | 60.89 | 40.35 |
# | SnAG, reproduced there | 59.79 | 48.10 | 58.63 | 44.37 | 42.71 | 65.72 | 37.32 |
# | SnAG + TD | 66.48 | 52.93 | 63.71 | 49.11 | 46.75 | 70.14 | 42.35 |
#
# Of the DETRs, TD-DETR leads in R1@0.7 and mAP; in R1@0.5 it is level with BAM-DETR and below CG-DETR. It also has four
# layers of each kind where QD-DETR has two, and other weights of the losses; how much of the 6.8 mAP over QD-DETR is
# due to those is open here. SnAG + TD is `papers.get("snag", beta=0.7, augment="synthesize")`.
#
# **Not published**, or not in what we could read: the definition of the spurious scores, the dynamic-context split,
# trained checkpoints, how TD was put into SnAG, the recipe of the published tables (the released scripts' defaults are
# the best there is), a row without dynamics.
#
# **The released code** beside ours (read, and rebuilt for the tests):
#
# | released code | here |
# |---|---|
# | likeness: the 50 most alike pairs of clips, over the whole training set | Eq. 1; `synthesize_official` has the 50 |
# | random partners: half are one and the same video, some the video itself | any *other* video of the batch |
# | two queries of one video can be partners (QVHighlights: 118 videos) | another video always |
# | a batch holds each video as it is, or the two made of it | all three; the same shares |
# | windows of odd seconds lose their last clip | whole clips around the window; `official` as released |
# | the foreign query of a mixed video is its partner's | of neither video |
# | a mask from words to clips is tiled in the wrong order | key padding alone; `masks="released"` |
# | inputs of the tokens' projections drop 0.1 whatever the rest | as the rest |
# | Charades-STA and TACoS: the best epoch on `test` | so on Charades-STA, which has no `val`; TACoS on its `val` |
#
# `papers.get("td_detr", preset="official")` is the released network and how it is trained.
#
# ## 10. On real files
#
# ```
# python -m mrlib.data.check qvhighlights FOLDER
# for paper in qd_detr td_detr; do
#     python -m mrlib.train $paper --dataset qvhighlights --root FOLDER --out runs/$paper \
#         --probe masked_noise masked_mean dynamic_context
# done
# ```
#
# or this notebook, with `papermill notebooks/05_td_detr.ipynb out.ipynb -p dataset qvhighlights -p root FOLDER -p
# epochs 200`: it trains both and fills every table that does not need the simulator. Give it a GPU.
#
# ## 11. What the run showed
#
# One seed, a few hundred steps, simulated; the comparison over seeds is section 8. The closed form of the likeness is
# the four sums; a mixed video is clip by clip what its note says, and as long as expected; the tokens are the clips'
# differences, long where something begins or ends; with a beta of 1 they change nothing. Predictions do not depend on
# labels, batch mates or padding.

# %%
measured = {"R1@0.5, test": results.loc[("QD-DETR", "R1@0.5"), "test"], "mAP, test": by_mask.loc["as it is", "mAP"]}
measured |= {"R1@0.5, blind list": blind_score["R1@0.5"], "mAP, blind list": blind_score["mAP"]}
measured |= {f"mAP, {name}": by_mask.loc[name, "mAP"] for name in by_mask.index.drop("as it is")}
measured["TD-DETR R1@0.5, test"] = results.loc[("TD-DETR", "R1@0.5"), "test"]
if simulated:
    measured |= {f"R1@0.5, {view}": shifted["QD-DETR"][view, "R1@0.5"] for view in ("val", "val_shift")}
    measured |= {f"TD-DETR R1@0.5, {view}": results.loc[("TD-DETR", "R1@0.5"), view] for view in ("val", "val_shift")}
    measured |= {f"places shared (%), {how}": x for how, x in by_partner["places shared (%)"].items()}
    measured["token at a border, to the longest elsewhere"] = profile[0] / profile.drop(0).max()
    measured["token at a border, to those two clips off and more"] = profile[0] / profile[2:].mean()
for name, frame in curves.items():
    losses = frame["loss"]
    measured[f"loss of {name}, last to first epoch"] = losses.iloc[-1] / losses.iloc[0]
    assert len(losses) == 1 or losses.iloc[-1] < losses.iloc[0], name

# %%
learned = runs["R1@0.5, test"] > 2.5 * runs["R1@0.5, blind list"]  # the plateau is left, or nearly
lost = (runs["R1@0.5, val"] - runs["R1@0.5, val_shift"])[learned]
assert lost.mean() > 10 and (lost > 5).mean() > 0.5, "the shortcut is learned, with most seeds"
assert (runs["mAP, test"] > runs["mAP, blind list"])[learned].all()
for way in ("masked, noise", "masked, zero", "masked, mean", "absent"):
    assert (runs[f"mAP, {way}"] < runs["mAP, test"])[learned].all(), "however the moment is taken out, less is found"
for how in ("similar", "table"):
    assert (runs[f"places shared (%), {how}"] > runs["places shared (%), random"]).all()
assert (runs["token at a border, to the longest elsewhere"] > 1).all()
assert (runs["token at a border, to those two clips off and more"] > 1.05).all()
print("By hand is mrlib; losses fall; predictions do not depend on labels, batch mates or padding.")
