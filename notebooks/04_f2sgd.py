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
# # F²SGD: a moment is one point of a map
#
# Most detectors regress two numbers, a start and an end. *Anchor-Aware Similarity Cohesion in Target Frames Enables
# Predicting Temporal Moment Boundaries in 2D* (CVPR 2025) draws a picture instead: how alike every two frames of the
# video are. Frames of one event are alike, so an event is a bright block on the diagonal, and its corner is the
# answer. A small convolutional network looks for the corner. Notebook 03 builds the first half of the paper, the
# alignment that makes the queried event stand out (A²FA); here is the second half, the detector (F²SGD), and the
# whole system trained.
#
# The paper gives no code, channels, activation, padding or loss reduction. What it leaves open is a setting here,
# with a table at the end that shows what each of them does.

# %% tags=["parameters"]
dataset: str = "sim"  # "sim", or a dataset on disk: qvhighlights, charades_sta, activitynet_captions, tacos
root: str = ""  # its folder; empty: its folder in $MRLIB_DATA
size: str = "auto"  # of the simulated world and of the model: small, paper; auto: small if simulated, else paper
epochs: int = 10  # passes over the training set (paper: 10)
batch_size: int = 0  # samples a step (paper: 128; small: 32); 0: as the size has it
seed: int = 0  # of the world, the weights and the order
device: str = "auto"  # auto, cpu, cuda
out_dir: str = ""  # checkpoints, history and predictions; empty: a fresh temporary folder
full: bool = False  # also run what is missing of the grid in figures/
save_figures: bool = False  # write the pictures to figures/
bad: str = "error"  # odd lines of annotations on disk: error, skip (leave out), clamp (mend what can be)
n_train: int = 2048  # simulated training samples; files have what they have
kernel: int = 0  # side C of the large kernels, odd (paper: 21; small: 9); 0: as the size has it
channels: int = 0  # of the hidden maps (paper: unknown, 32 here; small: 8); 0: as the size has it
lr: float = 0.0  # highest learning rate (paper: 1e-4; small: 1e-3); 0: as the size has it
threads: int = 0  # CPU threads; 0: one for small models, which are no faster on more, else all

# %%
from mrlib.notebooks import check_parameters

check_parameters(globals())

import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

import mrlib
from mrlib import baselines, grid, metrics, papers, plots
from mrlib.audit import reads_labels
from mrlib.detect.similarity_map import similarity, target_map
from mrlib.grid import Arm
from mrlib.train import fit, predict_all

figures = Path(mrlib.__file__).resolve().parent.parent / "figures"
plots.setup()
simulated = dataset == "sim"
usual = papers.usual("f2sgd", dataset)
size = usual["size"] if size == "auto" else size
torch.set_num_threads(threads or (1 if size == "small" else torch.get_num_threads()))

own = {"batch_size": batch_size, "kernel": kernel, "channels": channels, "lr": lr}
own = {name: value for name, value in own.items() if value}
paper = papers.get("f2sgd", size, usual["preset"], epochs=epochs, **own)

options = {"seed": seed, "n_train": n_train} if simulated else {"bad": bad}
train = papers.open_split(paper, dataset, root or None, "train", **options)
val = papers.open_split(paper, dataset, root or None, papers.validation_split(dataset), **options)
test = papers.open_split(paper, dataset, root or None, "test", **options) if simulated else val
runs = pd.read_csv(figures / "04_seeds.csv")  # what this notebook measured, a row per seed

# %% [markdown]
# The world is simulated unless you say otherwise: videos of 32 clips of two seconds, each a script of events with
# English queries about them, and features that live in one joint space with the queries. Scores on it are always
# called *simulated*; they test the mechanism and are no QVHighlights scores. For real files, `papermill
# notebooks/04_f2sgd.ipynb out.ipynb -p dataset qvhighlights -p root FOLDER` runs the same cells.

# %% tags=["nbval-ignore-output"]
sizes = pd.DataFrame(
    {d.split: {"queries": len(d), "videos": len(d.target), "width": d.target.width} for d in (train, val, test)}
)
print(f"{train.name}: {train.samples[0].query!r}")
sizes

# %% [markdown]
# ## 1. The map
#
# **Why.** An interval is a pair (first clip, last clip), so all intervals of a video fill the upper half of a square.
# If we can paint on that square how much each interval looks like *one thing*, finding a moment is finding a point.
#
# **Equation.** With $v^a_i$ the clips that A²FA has aligned to the query,
# $$S^a_{ij} = \frac{\langle v^a_i, v^a_j\rangle}{\lVert v^a_i\rVert\,\lVert v^a_j\rVert}$$
# **Code.** Two loops by hand; `mrlib` computes it for the batch, with padding filled in *after* the product, for a
# zero vector has a gradient of size $1/\epsilon$ through its norm, and large kernels would carry it into the valid
# cells.

# %%
retriever = papers.build(paper, train, seed)
batch = test.batch(range(8))
aligned = retriever.aligner(batch)


def similarity_by_hand(v):
    s = torch.empty(len(v), len(v))
    for i in range(len(v)):
        for j in range(len(v)):
            s[i, j] = v[i] @ v[j] / (v[i].norm() * v[j].norm())
    return s


S = similarity(aligned.target, aligned.mask)
n = int(batch.lengths[0])
torch.testing.assert_close(S[0, :n, :n], similarity_by_hand(aligned.target[0, :n]), rtol=1e-4, atol=1e-5)

# %% [markdown]
# **Picture.** Left, the raw features of one video: the query has had no say, and every event is a block. Right, the
# same after the (still untrained) alignment: clips around the anchor have been pulled towards the query and towards
# each other. Green rings are the true windows, each around the cell of its first and last clip.

# %%
raw = papers.ALIGNERS["raw"](train.widths)(batch)
story = batch.samples[0]
fig, axes = plots.figure(10, 4, ncols=2)
for ax, name, v in zip(axes[0], ("raw clips", "after A²FA, untrained"), (raw, aligned), strict=True):
    picture = similarity(v.target, v.mask)[0, :n, :n].detach().numpy()
    plots.time_map(ax, picture, test.clip_s, windows_s=story.relevant_windows)
    ax.set(title=name)
fig.suptitle(story.query)
if save_figures:
    plots.save(fig, figures / "04_similarity")

# %% [markdown]
# ## 2. The network
#
# **Equation** [F2SGD Eq. 13]. Two convolutions with large kernels $C\times C$, then a pointwise MLP:
# $$P = \mathrm{MLP}\big(\mathrm{Conv}_{C\times C}(\mathrm{Conv}_{C\times C}(S^a))\big) \in \mathbb R^{N\times N}$$
# The corner of a block is a local pattern, but a block is as large as the moment, so the network must look far: two
# layers see $2C-1$ clips, $C-1$ in each direction. A direct convolution with $C=21$ is almost all of the cost;
# `mrlib.ops.conv` computes the same sums through the Fourier transform where that is faster.
#
# **Code.** One output cell of one layer by hand, as printed in any textbook.

# %%
layer, cell = retriever.detector.convolve[0], (n // 3, n // 2)
half = layer.weight.shape[-1] // 2
x = F.pad(S[:1], (half,) * 4)
window = x[0, cell[0] : cell[0] + 2 * half + 1, cell[1] : cell[1] + 2 * half + 1]
by_hand = (layer.weight[:, 0] * window).sum((1, 2)) + layer.bias
torch.testing.assert_close(layer(S[:1, None])[0, :, cell[0], cell[1]], by_hand, rtol=1e-4, atol=1e-4)

# %% [markdown]
# ## 3. The target
#
# **Equation** [F2SGD Eq. 14]. The map should be 1 at the true windows and 0 elsewhere:
# $$\mathcal L = \lVert P - G\rVert_2^2, \qquad G_{ij} = 1 \text{ where clips } i..j \text{ are a window}$$
# Cell $(i, j)$ means the clips $i$ to $j$, both included: it starts at $i\Delta$ and ends at $(j+1)\Delta$. The other
# reading, $j$ excluded, would push windows that end with the video off the map.
#
# The paper does not say how the sum is reduced, nor whether $P$ is a probability. It matters: a map has hundreds of
# zeros for each one, so *all zeros* already has a loss of one per window, and that is where training starts and what
# it has to leave. A plain sigmoid would start at ½ everywhere (the one compared in section 8 starts at 0.01) and be
# pushed down by every zero; the default here is a linear output that starts at 0, with the loss summed over the cells
# $i \le j$ of a sample and averaged over the samples.

# %%
G = target_map(batch)
by_hand = torch.zeros_like(G)
for b, sample in enumerate(batch.samples):
    for start, end in sample.relevant_windows:
        first = min(int(np.floor(start / test.clip_s + 0.5)), int(batch.lengths[b]) - 1)
        last = min(int(np.floor(end / test.clip_s + 0.5)) - 1, int(batch.lengths[b]) - 1)
        by_hand[b, min(first, max(last, 0)), max(last, 0)] = 1
assert torch.equal(G, by_hand)

with torch.no_grad():
    untrained = retriever.losses(*retriever(batch), batch)["map"]
torch.testing.assert_close(untrained, G.sum() / len(batch))  # P = 0: one for each window

# %% [markdown]
# ## 4. Reading the answer off
#
# **Equation** [F2SGD Eq. 15]. The best $k$ cells with $i \le j$ are the answers, their heights the confidences.
# Nothing is suppressed; ties go to the smaller start, then the smaller end, so that the same map always gives the
# same list.

# %%
P = torch.randn(G.shape, generator=torch.Generator().manual_seed(0))
moments = retriever.detector.decode({"map": P}, batch)
for b in range(len(batch)):
    upper = [(i, j) for i in range(int(batch.lengths[b])) for j in range(i, int(batch.lengths[b]))]
    best = sorted(upper, key=lambda c: (-P[b, c[0], c[1]].item(), c))[: paper.detector.options["candidates"]]
    spans = torch.tensor([[i, j + 1] for i, j in best]) / batch.lengths[b]
    torch.testing.assert_close(moments.spans[b][moments.mask[b]], spans)

# %% [markdown]
# ## 5. The training run
#
# **Recipe** (paper): Adam, batches of 128, ten epochs, the learning rate warmed up to 1e-4 and down along a cosine.
# On the full QVHighlights that is 570 steps in all. The small world has its own numbers, in `mrlib/papers/f2sgd.py`.
# The epoch with the best mAP on `val` is kept; simulated scores below are those of `test`, on which nothing was chosen
# (`out_dir` keeps the predictions for `val`). Files have no such luxury: there, as in the paper, the two are the same
# split.

# %% tags=["nbval-ignore-output"]
folder = out_dir or tempfile.mkdtemp()
history = fit(retriever, train, val, paper, folder, seed=seed, device=device)

# %% tags=["nbval-ignore-output"]
fig, axes = plots.figure(10, 3, ncols=2)
curves = history.frame().rename(columns=lambda name: name.removeprefix("MR-full-"))
plots.learning_curves(axes[0], curves, ["mAP", "R1@0.5", "R1@0.7"])
if save_figures:
    plots.save(fig, figures / "04_training", curves.drop(columns=["train_s", "val_s"]))

# %% [markdown]
# **Result**, beside what can be had without learning: the whole video; one fixed list of ten windows, chosen on the
# training set and given to every query; runs of clips that are like the query; and the interval around the anchor,
# [A2FA Eq. 5], which is what the network starts from.

# %% tags=["nbval-ignore-output"]
retriever.cpu()
truth = [s.as_line() for s in test.samples]
predictions = predict_all(retriever, test)
answers = {
    "whole video": baselines.whole_video(test),
    "fixed list (blind)": baselines.FixedList(train)(test),
    "query similarity": baselines.query_similarity(test),
    "anchor interval": baselines.anchor_interval(test),
    "A²FA + F²SGD": predictions,
}
columns = ["R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75"]
scores = pd.DataFrame({name: metrics.evaluate(lines, truth)["brief"] for name, lines in answers.items()}).T
scores = scores[[f"MR-full-{c}" for c in columns]].set_axis(columns, axis=1)
if save_figures:
    scores.round(2).rename_axis("model").reset_index().to_csv(figures / "04_scores.csv", index=False)
scores.round(1)

# %% [markdown]
# ## 6. What the network paints
#
# **Picture.** For four test videos, on top the similarity map that the network was given, crosses on its three best
# answers; below, the map that it painted. Rings are true windows. Each painted map has its own scale. A dark point in
# a ring is the method at its best; where the darkest point lies outside the rings, the network took the corner of
# another event for the one asked for.

# %%
shown = test.batch(range(4))
with torch.no_grad():
    _, outputs = retriever(shown)


fig, axes = plots.figure(13, 6.4, nrows=2, ncols=4)
for b, sample in enumerate(shown.samples):
    n, windows = int(shown.lengths[b]), sample.relevant_windows
    first = [w[:2] for w in predictions[b]["pred_relevant_windows"][:3]]
    given, painted = (outputs[name][b, :n, :n].numpy() for name in ("similarity", "map"))
    plots.time_map(axes[0, b], given, test.clip_s, windows_s=windows, predicted_s=first)
    plots.time_map(axes[1, b], painted, test.clip_s, windows_s=windows, peaks=True)
    axes[0, b].set_title("\n".join(textwrap.wrap(sample.query, 26)), fontsize=9)
    axes[1, b].set_title("painted", fontsize=9)
if save_figures:
    plots.save(fig, figures / "04_map")

# %% [markdown]
# ## 7. The leak audit
#
# A score is worth something only if the prediction cannot know the answer. Four questions, each answered on the
# trained model: do predictions change when the annotations are taken away, or swapped with another sample's? With the
# other samples of the batch? And does the model read the query at all: how much is left when each video is asked
# another sample's query, and what does the same detector reach on raw clips, where no query has a say?

# %%
few = min(16, len(test) // 2)
audit, foreign = test.batch(range(few)), test.batch(range(few, 2 * few))
assert not reads_labels(retriever, audit, foreign)

together, alone = retriever(audit)[1]["map"], [retriever(test.batch([i]))[1]["map"][0] for i in range(few)]
for one, many in zip(alone, together, strict=True):
    torch.testing.assert_close(one, many[: len(one), : len(one)], rtol=1e-3, atol=1e-4)

order = torch.arange(len(test)).roll(1)
rolled = replace(test, query_item=test.query_item[order])
blind = metrics.evaluate(predict_all(retriever, rolled), truth)["brief"]

one_video, other_query = test.batch([0]), replace(test.batch([0]), query_joint=test.batch([1]).query_joint)
detector = retriever.detector
blind_maps = [detector(papers.ALIGNERS["raw"](train.widths)(b), b)["map"] for b in (one_video, other_query)]
assert torch.equal(*blind_maps)  # raw clips: the map is the same whatever is asked

# %% tags=["nbval-ignore-output"]
pd.DataFrame(
    {"own query": scores.loc["A²FA + F²SGD"], "another's query": {c: blind[f"MR-full-{c}"] for c in columns}}
).T.round(1)

# %% [markdown]
# ## 8. The comparison: components, kernel, and what the paper leaves open
#
# One training says little: seeds differ by one to three points, and by more where training is fragile. The table
# below is a grid of trainings in the small simulated world, three seeds each, every seed a world of its own; within a
# seed all arms see the same videos. It is in `figures/04_grid.csv`, each row with the command that makes it again;
# `-p full true` runs what is missing.

# %%
world = {"n_train": 2048}
arms = {
    # Table 6: what each part of A²FA adds
    "no A²FA (raw clips)": Arm("f2sgd", {"aligner": "raw"}, world),
    "align only": Arm("f2sgd", {"reweight": False}, world),
    "re-weight and align": Arm("f2sgd", {}, world),
    # Table 9: the kernel (of 32 clips; the paper's 17 to 29 are of 75)
    "C = 5": Arm("f2sgd", {"kernel": 5}, world),
    "C = 13": Arm("f2sgd", {"kernel": 13}, world),
    "C = 17": Arm("f2sgd", {"kernel": 17}, world),
    # what the paper does not say
    "mirrored right edge": Arm("f2sgd", {"right": "mirror"}, world),
    "4 channels": Arm("f2sgd", {"channels": 4}, world),
    "16 channels": Arm("f2sgd", {"channels": 16}, world),
    "sigmoid": Arm("f2sgd", {"head": "sigmoid"}, world),
    "loss on all cells": Arm("f2sgd", {"loss_cells": "full"}, world),
    "mean loss": Arm("f2sgd", {"reduction": "mean"}, world),
    "Xavier last layer": Arm("f2sgd", {"zero_init": False}, world),
    "raw similarities": Arm("f2sgd", {"standardise": False}, world),
}
seeds = [0, 1, 2]
file = figures / "04_grid.csv"
rows = grid.run(file, arms, seeds) if full else grid.read(file, arms, seeds)
rows = rows.rename(columns=lambda name: name.removeprefix("MR-full-"))
table = grid.summary(rows, ["R1@0.5", "R1@0.7", "mAP"]).round(1)
assert len(rows) == len(arms) * len(seeds)

# %% tags=["nbval-ignore-output"]
table

# %% [markdown]
# **Picture.** Bars are means, dots the three seeds.

# %%
fig, axes = plots.figure(11, 4.5, ncols=2, sharey=True)
for ax, score in zip(axes[0], ["R1@0.7", "mAP"], strict=True):
    plots.arms(ax, rows, score)
if save_figures:
    plots.save(fig, figures / "04_grid")

# %% [markdown]
# What holds in all three worlds, and is asserted. Without A²FA both scores are far lower: the map of raw clips is the
# same whatever is asked, and can only guess among the events it sees. The mirrored right edge (notebook 03) is ahead
# of the printed one; notebook 03, with half the training queries, finds the same sign in mAP and leaves R1@0.7 open.
# And three choices that the paper does not mention matter more in this budget than its kernel size: a linear output
# rather than a sigmoid, a last layer that starts at zero rather than with random (Xavier) weights, and similarities
# standardised per map (a departure from the paper, in the small world only). Each is worth 4 to 18 points of mAP in
# single seeds. Raw similarities have the best R1@0.5 of the table all the same. Whether the loss is summed or
# averaged over a map, and whether cells below the diagonal count, hardly matters to Adam. Sixteen channels have the
# best mean mAP; small stays at eight for time.
#
# What does not reproduce here: the paper's Table 6 has re-weighting add 7.2 points of R1@0.7 (57.6 to 64.8). Here the
# two arms are within their spread. Its Table 9 has $C=21$ ahead of 17, 25 and 29 by 0.7 to 1.2 points; here the
# kernels 9, 13 and 17 differ by less than seeds do, and three seeds cannot order them.

# %%
paired = {name: rows.pivot(index="seed", columns="arm", values=name) for name in ("mAP", "R1@0.7")}
default = {name: scored["re-weight and align"] for name, scored in paired.items()}
for name in paired:
    assert (default[name] - paired[name]["no A²FA (raw clips)"] > 5).all()
    assert (paired[name]["mirrored right edge"] > default[name]).all()
    for arm in ("sigmoid", "Xavier last layer", "raw similarities"):
        assert (default[name] > paired[name][arm]).all()
    assert abs((default[name] - paired[name]["align only"]).mean()) < 2

# %% [markdown]
# **The published tables** are of another world, QVHighlights val with CLIP features, and of another size, so only the
# direction of an effect can be compared. R1@0.7 / mAP: query similarity alone 5.2 / 7.7, with F²SGD on raw clips 39.6
# / 43.3, with alignment 57.6 / 56.4, all of it 64.8 / 63.0 (Table 6); the interval around the anchor 23.8 / 31.4
# (Table 5); $C$ = 17, 21, 25, 29: 63.9, 64.8, 64.1, 63.6 R1@0.7 (Table 9). Two of these cannot be taken as they
# stand. An mAP of 31.4 does not go with an R1@0.7 of 23.8 when each query has one answer; notebook 03 works out what
# it would take. And F²SGD on raw clips has no query in it: whatever it scores is a blind score.

# %% [markdown]
# ## 9. What the run showed
#
# In the small simulated world, trained on 2,048 queries for ten epochs (ten seeds, `figures/04_seeds.csv`), the system
# has R1@0.7 35.1 ± 2.3 and mAP 42.4 ± 1.7 on 500 test queries. The interval around the anchor, which needs no training,
# has 29.3 ± 2.1 and 24.8 ± 1.3; the blind list of ten windows 10.3 ± 1.2 and 18.6 ± 0.7. So most of the first answer is
# in the anchor already, and the network adds exact borders and the second and third answers. It pays for them in
# R1@0.5, where the untrained interval is ahead, 50.6 ± 2.3 to 43.9 ± 2.3: the map is trained to hit one cell, and a
# near miss counts as a miss. The learning curve shows it: R1@0.5 on `val` is 43.2 ± 3.8 after the first epoch and 42.5
# ± 2.6 after the last, while mAP rises from 36.9 ± 1.5 to 41.7 ± 2.0.
#
# Asked another sample's query, the same model keeps 20.7 ± 1.5 and 30.4 ± 1.3. Much of a score in ten guesses is
# knowing where
# *some* event begins and ends; that is why a blind list, and a blind model, should stand beside every table of this
# field.
#
# Limits: one size of model, 32 clips, three seeds, worlds of 12 actions. The paper's own setting (75 clips, $C=21$,
# QVHighlights with CLIP features) needs the features: `-p dataset qvhighlights -p root FOLDER`.

# %%
losses = [row["loss"] for row in history.rows]
measured = {"loss, last to first epoch": losses[-1] / losses[0]}
measured |= {f"{score}, {name}": x for score in ("R1@0.5", "R1@0.7", "mAP") for name, x in scores[score].items()}
measured |= {f"{score}, another's query": blind[f"MR-full-{score}"] for score in ("R1@0.5", "R1@0.7", "mAP")}
measured |= {f"R1@0.5 on val, epoch {epoch}": x for epoch, x in enumerate(curves["R1@0.5"], 1)}
measured |= {f"mAP on val, epoch {epoch}": x for epoch, x in enumerate(curves["mAP"], 1)}

# %%
others = runs[[f"mAP, {name}" for name in scores.index.drop("A²FA + F²SGD")]].max(axis=1)
assert (runs["mAP, A²FA + F²SGD"] > others).all(), "a label-free baseline has a better mAP"
assert (runs["mAP, A²FA + F²SGD"] > runs["mAP, another's query"]).all(), "the query does not matter"
assert epochs == 1 or losses[-1] < losses[0]
print("The loss falls, the map beats every label-free baseline in mAP, and it reads the query and not the labels.")
