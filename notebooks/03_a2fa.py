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
# # Anchor-aware feature alignment
#
# A sentence and a video frame meet in CLIP's joint space, but a moment does not light up there: many of its frames
# look nothing like the sentence. A²FA [CVPR 2025, "Anchor-Aware Similarity Cohesion in Target Frames Enables
# Predicting Temporal Moment Boundaries in 2D"] trusts a single frame, the most query-like one, the *anchor*; walks
# from it to both sides until the video stops resembling it; and draws what lies between towards the query ([A2FA Eq.
# 1] to [A2FA Eq. 12]). What then finds the moment, F²SGD, is the next notebook, `04_f2sgd`. Here the question is:
# **how much of the answer is in the anchor, how much in the walk, and how much is learned?**
#
# Everything below runs on a simulated dataset, because no CLIP features ship with this repository. Simulated scores
# say what a mechanism does; they are not scores on QVHighlights. Published numbers are named as such.

# %% tags=["parameters"]
dataset: str = "sim"  # "sim", or a dataset on disk: qvhighlights, charades_sta, activitynet_captions, tacos
root: str = ""  # its folder; empty: its folder in $MRLIB_DATA
size: str = "auto"  # of the simulated world and of the model: small, paper; auto: small if simulated, else paper
epochs: int = 10  # passes over the training set (paper: 10)
batch_size: int = 0  # samples a step (paper: 128; small: 32); 0: as the size has it
seed: int = 0  # of the world, the weights and the order
device: str = "auto"  # auto, cpu, cuda
out_dir: str = ""  # checkpoints, history and predictions; empty: a fresh temporary folder
full: bool = False  # also run what is missing of the tables in figures/
save_figures: bool = False  # write the pictures to figures/
bad: str = "error"  # odd lines of annotations on disk: error, skip (leave out), clamp (mend what can be)
paper_queries: int = 512  # simulated queries at the paper's size (75 clips, 512-d), for sections 1 and 5
example: int = 0  # which of the clear examples the pictures show

# %%
from mrlib.notebooks import check_parameters

check_parameters(globals())

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu

import mrlib
from mrlib import baselines, grid, metrics, papers, plots
from mrlib.align.anchor import RawAligner
from mrlib.detect.similarity_map import similarity
from mrlib.ops.boundary_search import anchor, boundaries, query_embedded, transitions
from mrlib.train import predict_all

figures = Path(mrlib.__file__).resolve().parent.parent / "figures"
plots.setup()
torch.set_num_threads(1)  # small models are no faster on two

usual = papers.usual("f2sgd", dataset) | ({} if size == "auto" else {"size": size})
paper = papers.get("f2sgd", **usual, epochs=epochs, **({"batch_size": batch_size} if batch_size else {}))
simulated, size = dataset == "sim", usual["size"]
splits = {"train": "train", "val": "val", "test": "test"}
if not simulated:  # the paper's ablations are on the split that epochs are chosen on
    splits["val"] = splits["test"] = papers.validation_split(dataset)
world = {"seed": seed} if simulated else {"bad": bad}
train, val, test = (papers.open_split(paper, dataset, root or None, split, **world) for split in splits.values())
runs = pd.read_csv(figures / "03_seeds.csv")  # what this notebook measured, a row per seed
if not 0 <= example < len(test):
    raise ValueError(f"example must be from 0 to {len(test) - 1}, the queries that there are, not {example}")


def batches(data):
    """A dataset on the CPU, part by part."""
    for indices in torch.arange(len(data)).split(128):
        yield data.batch(indices).to("cpu")


def cosines(data):
    """cos(q, v_i) of a batch, (B, T)."""
    return F.cosine_similarity(data.target_joint, data.query_joint[:, None], dim=-1)


# %% [markdown]
# ## 1. One frame is nearly always right
#
# **Why** [A2FA Fig. 1]. The paper opens with two observations about CLIP similarities. Not all frames of a moment are
# similar to the query; but the most similar frame of the video nearly always lies in the moment. The paper shows
# examples. We count: the share of queries whose anchor falls in an annotated window, beside the share that a frame
# drawn at random would reach, and the share of true frames that some frame *outside* the moment outdoes.


# %%
def counted(data):
    """What [A2FA Fig. 1] shows by example."""
    chance, outdone, frames = [], 0, 0
    for batch in batches(data):
        c, relevant = cosines(batch), batch.labels.relevant
        outside = batch.target_mask & ~relevant
        chance.append(relevant.sum(1) / batch.lengths)
        best_outside = c.masked_fill(~outside, -2).amax(1, keepdim=True)
        outdone += int((relevant & (c < best_outside)).sum())
        frames += int(relevant.sum())
    return {
        "queries": len(data),
        "anchor inside (%)": 100 * baselines.anchor_inside(data),
        "random frame inside (%)": 100 * torch.cat(chance).mean().item(),
        "true frames outdone from outside (%)": 100 * outdone / frames,
    }


counts = {f"{dataset}, {size if simulated else splits['test']}": counted(test)}
if simulated:
    wide = mrlib.open_dataset("sim", split="test", size="paper", seed=seed, n=paper_queries, streams="joint")
    counts[f"sim, paper size, first {paper_queries}"] = counted(wide)
anchor_table = pd.DataFrame(counts).T

# %% tags=["nbval-ignore-output"]
anchor_table.round(1)

# %% [markdown]
# In the simulated worlds the anchor is inside for about nine in ten queries, a random frame for three in ten; yet
# about half of the true frames are outdone by some frame outside (ten seeds, section 11). Both halves of the paper's
# Figure 1 hold here. They hold because the simulated world was calibrated so that they do; with CLIP features on disk,
# `-p dataset qvhighlights` counts the same on real ones.
#
# **Picture.** One query, chosen because it is clear: one window of middle length, a quarter to three fifths of whose
# frames are less like the query than the video's mean, and a segment (section 3) that overlaps it well. The green
# band is the truth, the dashed line marks the anchor.


# %%
def clear(data):
    """Queries with one inner window of middle length, the anchor in it, part of it unlike the query, a fair segment."""
    fits = []
    for batch in batches(data):
        c, relevant = cosines(batch), batch.labels.relevant
        at, left, right = boundaries(batch.target_joint, batch.target_mask, batch.query_joint)
        index = torch.arange(relevant.shape[1])
        segment = (left[:, None] <= index) & (index <= right[:, None])
        share = relevant.sum(1) / batch.lengths
        typical = (c * batch.target_mask).sum(1, keepdim=True) / batch.lengths[:, None]
        unlike = (relevant & (c < typical)).sum(1) / relevant.sum(1)
        overlap = (segment & relevant).sum(1) / (segment | relevant).sum(1)
        single = batch.labels.span_mask.sum(1) == 1
        ends = relevant[:, 0] | relevant.gather(1, batch.lengths[:, None] - 1)[:, 0]
        anchored = relevant.gather(1, at[:, None])[:, 0]
        fits.append(
            single
            & ~ends
            & anchored
            & (share > 0.2)
            & (share < 0.45)
            & (unlike > 0.25)
            & (unlike < 0.6)
            & (overlap > 0.6)
        )
    return torch.cat(fits).int().argsort(descending=True, stable=True).tolist()


shown = clear(test)[example]
one = test.batch([shown]).to("cpu")
story = one.samples[0]
n, clip_s = int(one.lengths[0]), float(one.clip_s[0])
v = F.normalize(one.target_joint[0, :n].double(), dim=-1)  # (n, J)
q = F.normalize(one.query_joint[0].double(), dim=-1)  # (J,)
a = int(anchor(one.target_joint, one.target_mask, one.query_joint))

fig, axes = plots.figure(8, 2.6)
ax = axes[0, 0]
plots.along(ax, {"cos": (v @ q).numpy()}, clip_s, story.relevant_windows)
ax.axvline((a + 0.5) * clip_s, color=plots.PREDICTED, ls="--")
ax.annotate(
    "anchor", ((a + 0.5) * clip_s, float(v[a] @ q)), xytext=(6, -2), textcoords="offset points", color=plots.PREDICTED
)
ax.set(ylabel="cos(query, clip)", title=f"“{story.query}”")
if save_figures:
    plots.save(fig, figures / "03_anchor", anchor_table.round(2).reset_index(names="data"))

# %% [markdown]
# ## 2. The anchor needs no equation
#
# **Equations** [A2FA Eq. 1] and [A2FA Eq. 2]. Each clip is mixed with the query, the more the more alike the two are,
# and the anchor is the mixture that is most like the query:
# $$c_i = \cos(q, v_i), \qquad v^e_i = c_i\,q + (1 - c_i)\,v_i, \qquad \mathcal A = \arg\max_i \cos(v^e_i, q)$$
# With unit vectors the last cosine has a closed form,
# $$\cos(v^e_i, q) = \frac{2c_i - c_i^2}{\sqrt{1 - 2c_i + 4c_i^2 - 2c_i^3}},$$
# which grows with $c_i$ everywhere on $[-1, 1]$. So the order of the clips does not change, and $\mathcal A$ is
# simply the clip of the largest cosine with the query. (That vectors are made unit vectors first is our reading: raw
# CLIP norms would weigh in [A2FA Eq. 1].)
#
# **Code.** By hand as printed, for some queries; `mrlib.ops.boundary_search.anchor` never forms $v^e$ and must agree.


# %%
def embedded_by_hand(v, q):
    """[A2FA Eq. 1], a clip at a time; v (n, J), q (J,) unit vectors."""
    mixed = []
    for v_i in v:
        c_i = q @ v_i
        mixed.append(c_i * q + (1 - c_i) * v_i)
    return torch.stack(mixed)


def anchor_by_hand(v, q):
    """[A2FA Eq. 2]"""
    return max(range(len(v)), key=lambda i: float(F.cosine_similarity(embedded_by_hand(v, q)[i], q, dim=0)))


def closed_form(c):
    return (2 * c - c**2) / (1 - 2 * c + 4 * c**2 - 2 * c**3).sqrt()


some = test.batch(range(min(24, len(test)))).to("cpu")
by_hand = []
for row in range(len(some)):
    v_row = F.normalize(some.target_joint[row, : some.lengths[row]].double(), dim=-1)
    q_row = F.normalize(some.query_joint[row].double(), dim=-1)
    by_hand.append((v_row, q_row))
found = anchor(some.target_joint, some.target_mask, some.query_joint)
for (v_row, q_row), a_row in zip(by_hand, found.tolist(), strict=True):
    v_e = embedded_by_hand(v_row, q_row)
    cosine = F.cosine_similarity(v_e, q_row[None], dim=-1)
    torch.testing.assert_close(query_embedded(v_row[None], q_row[None])[0], v_e)
    torch.testing.assert_close(closed_form(v_row @ q_row), cosine)
    assert anchor_by_hand(v_row[: a_row + 1], q_row) == a_row and cosine[a_row] >= cosine.max() - 1e-9
grid_c = torch.linspace(-1, 1, 2001, dtype=torch.float64)
assert (closed_form(grid_c).diff() > 0).all()
print("[A2FA Eq. 1] and [A2FA Eq. 2] by hand, their closed form and the largest cosine name the same anchor.")

# %%
v_e = embedded_by_hand(v, q)
embedded = F.cosine_similarity(v_e, q[None], dim=-1)
fig, axes = plots.figure(8, 2.8, ncols=2)
plots.along(axes[0, 1], {"$v$": (v @ q).numpy(), "$v^e$": embedded.numpy()}, clip_s, story.relevant_windows)
axes[0, 1].set(ylabel="cosine with the query")
ax = axes[0, 0]
ax.plot(grid_c, closed_form(grid_c), color=plots.QUERY)
ax.scatter((v @ q).numpy(), embedded.numpy(), s=14, color=plots.PREDICTED, zorder=3)
ax.set(xlabel="cos(q, $v$)", ylabel="cos(q, $v^e$)")
if save_figures:
    plots.save(fig, figures / "03_order", pd.DataFrame({"clip": range(n), "v": v @ q, "v^e": embedded}).round(4))

# %% [markdown]
# Left: [A2FA Eq. 1] keeps the order; the dots are the example's clips. Right: the same clips in time.
#
# What it does change are the cosines *between* clips: two query-like clips become more alike, two others stay as
# they were. That is what the next step feeds on.
#
# ## 3. Walking away from the anchor
#
# **Equations** [A2FA Eq. 3], [A2FA Eq. 4] and [A2FA Eq. 5]. To the left of the anchor, clips are shared out between
# two templates, the first frame and the anchor. The split $b$ is one index: up to $b$ a clip goes with the first
# frame, after it with the anchor. With indices from 0, $n$ clips and $u_i, w_i, z_i$ the cosines of $v^e_i$ with
# $v^e_0$, $v^e_{\mathcal A}$, $v^e_{n-1}$,
# $$f_L(b) = \sum_{i=1}^{b} u_i + \sum_{j=b+1}^{\mathcal A} w_j, \qquad
#   f_R(b) = \sum_{i=\mathcal A}^{b} w_i + \sum_{j=b+1}^{n-1} z_j,$$
# $$b^L = \arg\max_{0 \le b \le \mathcal A} f_L(b), \qquad b^R = \arg\max_{\mathcal A \le b \le n-1} f_R(b).$$
# The paper calls this dynamic time warping. With two templates a side, a warping path is no more than the place of its
# one step, so nothing has to be programmed dynamically. Written with prefix sums,
# $$f_L(b) = D_b + \text{const}, \quad D_b = \sum_{i=0}^{b} (u_i - w_i), \qquad
#   f_R(b) = E_b + \text{const}, \quad E_b = \sum_{i=\mathcal A}^{b} (w_i - z_i),$$
# every $b$ of a whole batch costs two cumulative sums.
#
# **Code.** By hand as a loop over $b$, for the queries of the last section.


# %%
def objectives_by_hand(v_e, a):
    """f_L(b) for b = 0..A and f_R(b) for b = A..n-1, each sum as printed.  [A2FA Eq. 3], [A2FA Eq. 4]"""

    def cos(i, j):
        return F.cosine_similarity(v_e[i], v_e[j], dim=0)

    n = len(v_e)
    # [A2FA Eq. 3]
    left = [sum(cos(0, i) for i in range(1, b + 1)) + sum(cos(a, j) for j in range(b + 1, a + 1)) for b in range(a + 1)]
    # [A2FA Eq. 4]
    right = [sum(cos(a, i) for i in range(a, b + 1)) + sum(cos(n - 1, j) for j in range(b + 1, n)) for b in range(a, n)]
    return torch.tensor(left, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)


few = some[slice(0, 8)]
a_few, D, E = transitions(few.target_joint, few.target_mask, few.query_joint)
_, b_L, b_R = boundaries(few.target_joint, few.target_mask, few.query_joint)
for row, (v_row, q_row) in enumerate(by_hand[:8]):
    a_row, n_row = int(a_few[row]), len(v_row)
    f_L, f_R = objectives_by_hand(embedded_by_hand(v_row, q_row), a_row)
    for f, prefix in ((f_L, D[row, : a_row + 1]), (f_R, E[row, a_row:n_row])):
        torch.testing.assert_close(f - f[0], prefix - prefix[0], atol=1e-5, rtol=0)  # equal but for a constant
    assert f_L[b_L[row]] >= f_L.max() - 1e-5 and f_R[b_R[row] - a_row] >= f_R.max() - 1e-5  # [A2FA Eq. 5]
print("[A2FA Eq. 3] and [A2FA Eq. 4] by hand are the prefix sums, but for a constant, largest at the boundaries.")

# %% [markdown]
# **Picture** [as A2FA Fig. 2 and 4]. Top: the three templates' cosines with every clip; a clip takes part in $u, w$ on
# the left of the anchor and in $w, z$ on its right; a curve has a gap where a template meets itself, with a cosine of
# 1. Middle: the same as a cost picture, dark is cheap, the line being the warping path, first frame → anchor → last
# frame. Its costs are relative to each column's mean, for only the comparison within a column decides. Bottom: the two
# prefix sums and where they are largest.

# %%
gram = F.normalize(v_e, dim=-1)[[0, a, n - 1]] @ F.normalize(v_e, dim=-1).T  # rows u, w, z
_, D, E = (x[0, :n] if x.ndim == 2 else x for x in transitions(one.target_joint, one.target_mask, one.query_joint))
b_L, b_R = (int(x) for x in boundaries(one.target_joint, one.target_mask, one.query_joint)[1:])
centres = (np.arange(n) + 0.5) * clip_s

fig, axes = plots.figure(8, 6.4, nrows=3, sharex=True, height_ratios=(3, 1.6, 3))
top, middle, bottom = axes[:, 0]
for curve, name, colour in zip(
    gram, ("u, first frame", "w, anchor", "z, last frame"), (plots.QUERY, plots.PREDICTED, plots.OTHER), strict=True
):
    own = torch.isclose(curve, torch.ones_like(curve))  # a template's cosine with itself, 1, would set the scale
    top.plot(centres, curve.masked_fill(own, torch.nan), marker=".", label=name, color=colour)
top.legend(fontsize=8, ncols=3, loc="upper right")
top.set(ylabel="cosine of $v^e$", title=f"“{story.query}”", ylim=(None, float(gram[gram < 0.999].max()) + 0.08))
relative = gram - gram.mean(0)
middle.imshow(
    -relative,
    aspect="auto",
    cmap="mako",
    extent=(0, n * clip_s, 2.5, -0.5),
    interpolation="nearest",
    vmin=-float(relative[gram < 0.999].max()),
    vmax=-float(relative.min()),
)
path = (
    np.select([np.arange(n) <= b_L, np.arange(n) <= b_R], [0, 1], 2) if a > 0 else np.where(np.arange(n) <= b_R, 1, 2)
)
middle.step(centres, path, where="mid", color="white", lw=2)
middle.set(yticks=range(3), yticklabels=["first", "anchor", "last"])
middle.grid(visible=False)
bottom.plot(centres[: a + 1], D[: a + 1], marker=".", color=plots.QUERY, label="D, left of the anchor")
bottom.plot(centres[a:], E[a:], marker=".", color=plots.OTHER, label="E, right of the anchor")
bottom.scatter(
    centres[[b_L, b_R]], [D[b_L], E[b_R]], s=90, facecolors="none", edgecolors=plots.PREDICTED, linewidths=2, zorder=3
)
bottom.legend(fontsize=8)
bottom.set(xlabel="target video (s)", ylabel="prefix sum")
for ax in (top, bottom):
    for start, end in story.relevant_windows:
        ax.axvspan(start, end, color=plots.TRUTH, alpha=0.2, lw=0)
    for edge in (b_L * clip_s, (b_R + 1) * clip_s):
        ax.axvline(edge, color=plots.PREDICTED, ls="--", lw=1)
if save_figures:
    plots.save(
        fig,
        figures / "03_boundaries",
        pd.DataFrame({"clip": range(n), "u": gram[0], "w": gram[1], "z": gram[2], "D": D, "E": E}).round(4),
    )

# %% [markdown]
# ## 4. What the printed rule cannot do
#
# **Why.** The two sides are not mirror images. On the left, $b^L$ is the last clip of the *first-frame* group and is
# counted into the segment; on the right, $b^R$ is the last clip of the *anchor* group. Two consequences follow from
# the formulas alone. Since $D_{\mathcal A} - D_{\mathcal A - 1} = u_{\mathcal A} - 1 \le 0$, the segment always holds
# at least one clip left of the anchor, unless the anchor is the first. Since $E_{n-1} - E_{n-2} = w_{n-1} - 1 \le 0$,
# **the last clip of the video is never in the segment, unless it is the anchor** (or its exact copy), and moments do
# end with the video. The repair is to read [A2FA Eq. 4] as the mirror image of [A2FA Eq. 3], so that $b^R$ is the
# *first* clip of the last-frame group: `boundaries(..., right="mirror")`. The default stays what is printed.


# %%
def last_clip(data):
    """The last clip of the video: how often it is annotated, and how often each rule has it in the segment."""
    rows = []
    for batch in batches(data):
        last = batch.lengths - 1
        row = {"annotated": batch.labels.relevant.gather(1, last[:, None])[:, 0]}
        for rule in ("literal", "mirror"):
            at, left, right = boundaries(batch.target_joint, batch.target_mask, batch.query_joint, right=rule)
            row[rule], row["is anchor"] = right == last, at == last
            row[f"{rule}, left"] = (left == at) & (at > 0)
        rows.append(pd.DataFrame(row))
    return pd.concat(rows)


ends = last_clip(test)
if simulated:  # in files the last clip may be a copy of the anchor
    assert (ends["literal"] <= ends["is anchor"]).all(), "only the anchor gets the last clip in"
    assert not ends[["literal, left", "mirror, left"]].any(axis=None), "a clip left of the anchor is always in"
    print("The printed rule has the last clip in the segment only where it is the anchor.")
else:
    copies = (ends["literal"] > ends["is anchor"]).sum()
    print(f"The printed rule has the last clip in the segment, where it is not the anchor, for {copies} queries.")

# %% tags=["nbval-ignore-output"]
true_end = ends[ends["annotated"]]
pd.DataFrame(
    {
        "queries": {"annotated": len(true_end), "not annotated": len(ends) - len(true_end)},
        "literal: in the segment": ends.groupby("annotated")["literal"]
        .sum()
        .rename({True: "annotated", False: "not annotated"}),
        "mirror: in the segment": ends.groupby("annotated")["mirror"]
        .sum()
        .rename({True: "annotated", False: "not annotated"}),
    }
).rename_axis("last clip of the video")

# %% [markdown]
# So of the moments that reach the last clip, the printed rule loses that clip for most; the mirrored rule finds more of
# them, and has it wrongly for more of the other queries. On real annotations, how many windows are concerned can be
# counted without any feature.

# %% tags=["nbval-ignore-output"]
real_file = Path(os.environ.get("MRLIB_DATA", ""), "qvhighlights", "highlight_val_release.jsonl")
real = mrlib.data.load_annotations(real_file) if "MRLIB_DATA" in os.environ and real_file.is_file() else None
if real is None:
    print("MRLIB_DATA names no folder with qvhighlights/: real annotations are left out.")
else:
    windows = [(w, s.duration) for s in real for w in s.relevant_windows]
    at_end = sum(w[1] > d - 2 for w, d in windows)
    print(f"QVHighlights val: {at_end} of {len(windows)} windows ({at_end / len(windows):.1%}) reach the last clip.")

# %% [markdown]
# ## 5. The segment as an answer
#
# **Experiment.** The segment $[b^L, b^R]$ is an answer before anything is learned. The paper reports it: R1@0.7 23.8
# and mAP 31.4 on QVHighlights val [A2FA Table 5]. We decode it at both sizes, with both right-hand rules, beside what
# else can be had without a label of the query at hand (`mrlib.baselines`). The fixed list is ten windows chosen on
# the training set, the same for every query; "cosine runs" are the runs of clips whose cosine exceeds the video's
# mean by one standard deviation.


# %%
def segments(data, right="literal", tight=False):
    """The segment of every query as a prediction; tight: without the last clip of the first-frame group."""
    lines = []
    for batch in batches(data):
        at, left, last = boundaries(batch.target_joint, batch.target_mask, batch.query_joint, right=right)
        left = torch.where(left < at, left + 1, left) if tight else left
        start_s, end_s = left * batch.clip_s, torch.minimum((last + 1) * batch.clip_s, batch.duration_s)
        spans = zip(batch.samples, start_s.tolist(), end_s.tolist(), strict=True)
        lines += [{"qid": s.qid, "pred_relevant_windows": [[start, end, 1.0]]} for s, start, end in spans]
    return lines


def scores(lines, data):
    brief = metrics.evaluate(lines, data.samples)["brief"]
    return {"R1@0.5": brief["MR-full-R1@0.5"], "R1@0.7": brief["MR-full-R1@0.7"], "mAP": brief["MR-full-mAP"]}


blind = baselines.FixedList(train)
label_free = {
    "whole video": baselines.whole_video(test),
    "fixed list (blind)": blind(test),
    "cosine runs": baselines.query_similarity(test),
    "segment [A2FA Eq. 5]": segments(test),
    "segment, mirror": segments(test, "mirror"),
    "segment, tight": segments(test, tight=True),
}
baseline_table = pd.DataFrame({name: scores(lines, test) for name, lines in label_free.items()}).T
if simulated:
    wide_lines = {
        "segment [A2FA Eq. 5]": segments(wide),
        "segment, mirror": segments(wide, "mirror"),
        "segment, tight": segments(wide, tight=True),
    }
    wide_table = pd.DataFrame({name: scores(lines, wide) for name, lines in wide_lines.items()}).T
    wide_table = wide_table.rename(index="{}, paper size".format)
ours = metrics.evaluate(label_free["segment [A2FA Eq. 5]"], test.samples)["full"]["MR-R1"]
assert scores(baselines.anchor_interval(test), test) == scores(label_free["segment [A2FA Eq. 5]"], test)

# %% tags=["nbval-ignore-output"]
single = pd.concat([baseline_table, wide_table]) if simulated else baseline_table
single.round(1)

# %% tags=["nbval-ignore-output"]
segment = "segment [A2FA Eq. 5]"
by_size = {}
for name, suffix in (("small size", ""), ("paper size", ", paper size")):
    row = {
        "anchor inside (%)": runs[f"anchor inside (%), {name}"],
        "segment R1@0.7": runs[f"R1@0.7, {segment}{suffix}"],
    }
    for rule in ("mirror", "tight"):
        row |= {
            f"{rule}, {score}": runs[f"{score}, segment, {rule}{suffix}"] - runs[f"{score}, {segment}{suffix}"]
            for score in ("R1@0.7", "mAP")
        }
    by_size[name] = pd.DataFrame(row).agg(["mean", "std", "min", "max"]).T
pd.concat(by_size).round(1)

# %% [markdown]
# The second table is over the seeds of `figures/03_seeds.csv`; rows of the two other rules are differences to the
# segment as printed. At the paper's size the segment's R1@0.7 is 26.1 ± 2.1, beside the published 23.8; the simulated
# world was calibrated to be near it, so this is no evidence. What the tables do show is where the segment errs. The
# mirrored rule lets the last clip in and still *lowers* R1@0.7 at the small size, in the mean by 2.5 ± 1.4: it lets in
# the first clip of the last-frame group for every query, and that clip is rarely true. The printed rule does the same
# on the left, where it takes in the last clip of the first-frame group. "Segment, tight" leaves that clip out too,
# unless it is the anchor: mAP rises from 24.8 ± 1.3 to 27.5 ± 1.2 (21.1 ± 1.5 to 21.8 ± 1.5), R1@0.7 by 1.9 ± 1.0 (0.2
# ± 0.9). As an *answer*, the printed rule's right-hand side is the better of its two sides in the small world. As a
# *mask* for training, section 10 compares them.

# %% [markdown]
# **Can one segment have R1@0.7 of 23.8 and mAP of 31.4?** With a single prediction per query, a hit at IoU $\tau$
# gives an average precision of $1/W$ when the query has $W$ windows, and a miss gives 0. So mAP is at most the mean
# of R1@$\tau$ over $\tau = 0.5, 0.55, \dots, 0.95$, and R1 only falls with $\tau$. The six thresholds from 0.7 on add
# at most $6 \cdot 23.8$; to reach $31.4 \cdot 10$ the four below must average at least $(314 - 142.8)/4 = 42.8$,
# *even if* every query had one window and not a single hit were lost between IoU 0.7 and 0.95. Real queries have
# several windows, which makes it worse, and hits are lost.

# %%
needed = (10 * 31.4 - 6 * 23.8) / 4
taus = [float(t) for t in ours]
profile = pd.DataFrame({"IoU": taus, "this dataset": list(ours.values())})
if simulated:
    profile["sim, paper size"] = list(
        metrics.evaluate(wide_lines["segment [A2FA Eq. 5]"], wide.samples)["full"]["MR-R1"].values()
    )
profile["least for 31.4"] = [needed] * 4 + [23.8] * 6
assert np.isclose(profile["least for 31.4"].mean(), 31.4)

fig, axes = plots.figure(6, 3)
for name in profile.columns[1:]:
    axes[0, 0].plot(profile["IoU"], profile[name], marker=".", ls="--" if "least" in name else "-", label=name)
axes[0, 0].set(xlabel="IoU threshold", ylabel="R1 of the segment (%)", ylim=(0, None))
axes[0, 0].legend(fontsize=8)
if save_figures:
    plots.save(fig, figures / "03_segment_profile", profile.round(2))

# %% tags=["nbval-ignore-output"]
print(f"mAP / R1@0.7 of one segment per query: published {31.4 / 23.8:.2f}, here:")
print((single["mAP"] / single["R1@0.7"]).filter(like="segment", axis=0).round(2).to_string())
if real is not None:
    longest = [max(s.relevant_windows, key=lambda w: w[1] - w[0]) for s in real]
    perfect = [{"qid": s.qid, "pred_relevant_windows": [[*w, 1.0]]} for s, w in zip(real, longest, strict=True)]
    ceiling = metrics.evaluate(perfect, real)["brief"]["MR-full-mAP"]
    print(f"QVHighlights val: the exact longest window as the only prediction of every query has mAP {ceiling}.")
    least = (10 * 31.4 / ceiling * 100 - 6 * 23.8) / 4
    print(f"Hits that do not depend on the number of windows would need a mean R1 of {least:.1f} at IoU 0.5 to 0.65.")

# %% [markdown]
# The dashed line is the flattest profile that the published pair allows; the two simulated ones fall steadily, for a
# segment's ends are often off by a clip or more. Every segment that we can measure has a mAP below its R1@0.7, by a
# factor of about 0.8, where the published mAP is 1.32 times its R1@0.7. On the real val annotations even the exact
# longest window, given alone, has a mAP of 78.9, as a third of the queries have several windows. So the published
# 31.4 cannot, within reason, be the score of one interval per query; we take it that more candidates were scored, and
# compare with the 23.8 only.
#
# ## 6. Pull the segment towards the query
#
# **Equations** [A2FA Eq. 6] to [A2FA Eq. 12]. The segment becomes an additive mask [A2FA Eq. 6]: $m_i = 0$ for $b^L
# \le i \le b^R$ and $-\infty$ elsewhere. An attention [A2FA Eq. 7] sums the segment up in a vector $g$ [A2FA Eq. 8];
# every clip of the video is weighted by how it goes with $g$ ([A2FA Eq. 9], [A2FA Eq. 10]); and inside the segment,
# clips move towards the query ([A2FA Eq. 11], [A2FA Eq. 12]):
# $$a_i = \operatorname{softmax}_i(\langle W_Q q, W_K v_i \rangle + m_i), \qquad g = \sum_i a_i W_V v_i, \qquad
#   r_i = \tanh(w \langle W^r_1 v_i, W^r_2 g \rangle + \beta), \qquad v^r_i = r_i v_i,$$
# $$\alpha_i = \sigma(\langle W^a_1 v^r_i, W^a_2 q \rangle + m_i), \qquad v^a_i = \alpha_i q + (1 - \alpha_i) v^r_i.$$
# The transposes printed in [A2FA Eq. 7] to [A2FA Eq. 9] do not fit together; these shapes are the only ones that do.
# Outside the segment $\sigma(-\infty) = 0$ leaves $v^a_i = r_i v_i$.
#
# **Code.** By hand for one video, clip by clip and with a real $-\infty$; `AnchorAligner` does a batch without one.


# %%
def aligned_by_hand(aligner, v, q, first, last):
    """[A2FA Eq. 6] to [A2FA Eq. 12] for one video; v (n, J), q (J,) unit vectors.  Returns r, alpha, v^a."""
    W = {name: matrix.weight.double() for name, matrix in aligner.named_children()}
    m = [0.0 if first <= i <= last else -torch.inf for i in range(len(v))]  # [A2FA Eq. 6]
    logits = [(W["W_q"] @ q) @ (W["W_k"] @ v_i) + m_i for v_i, m_i in zip(v, m, strict=True)]
    a = torch.stack(logits).softmax(0)  # [A2FA Eq. 7]
    g = sum(a_i * (W["W_v"] @ v_i) for a_i, v_i in zip(a, v, strict=True))  # [A2FA Eq. 8]
    products = torch.stack([(W["W_r1"] @ v_i) @ (W["W_r2"] @ g) for v_i in v])
    r = torch.tanh(aligner.w * products + aligner.beta)  # [A2FA Eq. 9]
    v_r = r[:, None] * v  # [A2FA Eq. 10]
    pulls = [(W["W_a1"] @ x) @ (W["W_a2"] @ q) + m_i for x, m_i in zip(v_r, m, strict=True)]
    alpha = torch.stack(pulls).sigmoid()  # [A2FA Eq. 11]
    return r, alpha, alpha[:, None] * q + (1 - alpha[:, None]) * v_r  # [A2FA Eq. 12]


def assert_by_hand(aligner):
    with torch.no_grad():
        batch = aligner(one)
        r, alpha, v_a = aligned_by_hand(aligner, v, q, b_L, b_R)
    for value, expected in ((batch.cache["reweight"], r), (batch.cache["alpha"], alpha), (batch.target, v_a)):
        torch.testing.assert_close(value[0, :n].double(), expected, atol=1e-5, rtol=1e-4)


untrained = papers.build(paper, train, seed)
assert_by_hand(untrained.aligner)
print("[A2FA Eq. 6] to [A2FA Eq. 12] by hand are mrlib's aligner.")

# %% [markdown]
# **What the detector can see of it.** F²SGD looks only at cosines between aligned clips, $S^a_{ij} = \cos(v^a_i,
# v^a_j)$. Outside the segment these are cosines of $r_i v_i$, where the *size* of $r_i$ cancels: only its sign is
# left. Inside, $r_i$ matters through the mixture with $q$. This makes the initial value of $\beta$, which the paper
# does not give, matter: with $\beta = 0$ and small matrices, $r_i$ starts small with a random sign, and the map
# starts as a checkerboard of plus and minus. We start at $w = 1$, $\beta = 1$, so that $r_i \approx 0.76$ everywhere.

# %%
zero = papers.build(paper, train, seed)
torch.nn.init.zeros_(zero.aligner.beta)
with torch.no_grad():
    start, start_zero = untrained.aligner(one), zero.aligner(one)
    scaled = start.target * torch.where(start.cache["inside"], 1.0, 3.0)[..., None]
    torch.testing.assert_close(similarity(scaled, start.mask), similarity(start.target, start.mask))
    raw = similarity(one.target_joint, one.target_mask)[0, :n, :n]
    maps = {
        "clips as they are": raw,
        "β = 1, untrained": similarity(start.target, start.mask)[0, :n, :n],
        "β = 0, untrained": similarity(start_zero.target, start.mask)[0, :n, :n],
    }

fig, axes = plots.figure(11, 3.3, ncols=3)
for ax, (name, cells) in zip(axes[0], maps.items(), strict=True):
    plots.time_map(ax, cells.numpy(), clip_s)
    for edge in (b_L * clip_s, (b_R + 1) * clip_s):
        ax.axvline(edge, color="white", ls="--", lw=0.8)
        ax.axhline(edge, color="white", ls="--", lw=0.8)
    ax.set(xlabel="clip at (s)", ylabel="clip at (s)", title=name)
if save_figures:
    plots.save(fig, figures / "03_start_maps")

# %% [markdown]
# ## 7. Training
#
# A²FA has no loss of its own. It learns through the detector's squared error on the map [F2SGD Eq. 14], which flows
# back through $S^a$; the anchor and the two boundaries come from frozen features and stay as they are. So we train
# the whole model, A²FA and F²SGD, and look at the first half of it. The best epoch on `val` is kept. A simulated
# training has 1,024 queries here, and 2,048 in notebook 04, so the scores of the two differ a little.

# %% tags=["nbval-ignore-output"]
folder = out_dir or tempfile.mkdtemp(prefix="a2fa-")
retriever = mrlib.build(paper, train, seed)
history = mrlib.fit(retriever, train, val, paper, out_dir=folder, seed=seed, device=device)
retriever.to("cpu").eval()
curve = history.frame()

# %% tags=["nbval-ignore-output"]
fig, axes = plots.figure(8, 2.6, ncols=2)
plots.learning_curves(axes[0], curve, ["MR-full-mAP", "MR-full-R1@0.7"])

# %%
assert_by_hand(retriever.aligner)
fell = ""
if simulated and len(curve) > 1:
    assert curve["loss"].iloc[-1] < curve["loss"].iloc[0]
    fell = "The loss fell. "
print(f"{fell}[A2FA Eq. 6] to [A2FA Eq. 12] by hand are still mrlib's aligner after training.")

# %% [markdown]
# **Picture.** The re-weighting and the pull along the example, before and after; and the map that the detector gets
# [as A2FA Fig. 4]. The ring is the true moment's cell, start against end; in the maps the segment shows as the bright
# block.

# %%
with torch.no_grad():
    end = retriever.aligner(one)
fig, axes = plots.figure(9, 2.8, ncols=2)
for ax, name, label in ((axes[0, 0], "reweight", "re-weighting r"), (axes[0, 1], "alpha", "pull α")):
    plots.along(
        ax,
        {"untrained": start.cache[name][0, :n].numpy(), "trained": end.cache[name][0, :n].numpy()},
        clip_s,
        story.relevant_windows,
    )
    ax.set(ylabel=label, ylim=(0, 1))
    ax.legend(loc="lower right", fontsize=8)
if save_figures:
    plots.save(
        fig,
        figures / "03_pull",
        pd.DataFrame(
            {
                "clip": range(n),
                **{
                    f"{name} {when}": x.cache[name][0, :n].numpy().round(4)
                    for name in ("reweight", "alpha")
                    for when, x in (("untrained", start), ("trained", end))
                },
            }
        ),
    )

# %%
maps = {
    "before: clips as they are": raw,
    "A²FA, untrained": maps["β = 1, untrained"],
    "A²FA, trained": similarity(end.target, end.mask)[0, :n, :n],
}
fig, axes = plots.figure(11, 3.3, ncols=3)
for ax, (name, cells) in zip(axes[0], maps.items(), strict=True):
    plots.time_map(ax, cells.numpy(), clip_s, windows_s=story.relevant_windows)
    ax.set(xlabel="clip, or start (s)", ylabel="clip, or end (s)", title=name)
if save_figures:
    plots.save(fig, figures / "03_maps")

# %% [markdown]
# ## 8. Does alignment separate the moment?
#
# **Why** [A2FA Fig. 5]. The paper shows histograms of cos(query, frame) for frames inside and outside the moment.
# Before alignment they overlap; after A²FA they part clearly; after CG-DETR, another model, whose cross-attention
# mixes every clip with the words, they do not. There is no number. We give one, the area under the ROC curve (AUC):
# the chance that a random clip inside a moment has a higher cosine with its query than a random clip outside, over all
# queries together. And we ask where the separation comes from, by adding two lines that the figure does not have: A²FA
# *before* any training, and the segment alone as a yes-or-no score.


# %%
def clips(aligner, data):
    """Every real clip: its cosine with the query; is it in a moment, in the segment; its pull and weight."""
    parts = []
    for batch in batches(data):
        with torch.no_grad():
            aligned = aligner(batch)
        columns = {"cosine": aligned.saliency, "moment": batch.labels.relevant}
        if aligned.cache:
            columns |= {
                "segment": aligned.cache["inside"],
                "pull": aligned.cache["alpha"],
                "r": aligned.cache["reweight"],
            }
        parts.append(pd.DataFrame({name: x[batch.target_mask] for name, x in columns.items()}))
    return pd.concat(parts, ignore_index=True)


def auc(values, positive):
    """P(value of a positive > value of a negative), ties counting one half."""
    inside, outside = values[positive], values[~positive]
    return mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside))


stages = {
    "before: clips as they are": clips(RawAligner(test.widths.joint), test),
    "A²FA, untrained": clips(untrained.aligner, test),
    "A²FA, trained": clips(retriever.aligner, test),
}
in_segment = stages["A²FA, trained"]["segment"]
separation = {}
for name, table in stages.items():
    within, beyond = table[in_segment], table[~in_segment]
    separation[name] = {
        "AUC": auc(table["cosine"], table["moment"]),
        "AUC among clips in the segment": auc(within["cosine"], within["moment"]),
        "AUC among clips outside it": auc(beyond["cosine"], beyond["moment"]),
    }
moment = stages["A²FA, trained"]["moment"]
separation["the segment alone, 0 or 1"] = {"AUC": auc(in_segment.astype(float), moment)}
separation = pd.DataFrame(separation).T
covered = {
    "true clips in the segment": (in_segment & moment).sum() / moment.sum(),
    "clips of the segment that are true": (in_segment & moment).sum() / in_segment.sum(),
}

# %%
fig, axes = plots.figure(11, 3, ncols=3)
for ax, (name, table) in zip(axes[0], stages.items(), strict=True):
    plots.inside_outside(
        ax,
        table["cosine"][table["moment"]].to_numpy(),
        table["cosine"][~table["moment"]].to_numpy(),
        "cos(query, clip)",
    )
    ax.set_title(f"{name}, AUC {separation.loc[name, 'AUC']:.3f}", fontsize=10)
if save_figures:
    plots.save(fig, figures / "03_separation", separation.round(4).reset_index(names="clips"))

# %% tags=["nbval-ignore-output"]
print("; ".join(f"{name}: {value:.1%}" for name, value in covered.items()))
separation.round(3)

# %% [markdown]
# **Conclusion** (ten seeds, `figures/03_seeds.csv`). After A²FA the cosines do part: the AUC rises from 0.794 ± 0.005
# to 0.837 ± 0.007, and the histogram has a second hump as in Figure 5. But the rise is there *before training*, 0.835 ±
# 0.009, when the matrices are still random: $\alpha$ is about one half everywhere in the segment, zero outside, and the
# hump is the segment itself. Its error is the segment's: 76.8 ± 1.3 % of the true clips are in it, and 54.1 ± 0.9 % of
# its clips are true. Among clips in the segment, alignment does not sort true from false ones better than the raw
# cosines did: 0.739 ± 0.012 before and 0.710 ± 0.025 after. Outside it nothing can change, for $\cos(q, r_i v_i) =
# \cos(q, v_i)$ where $r_i > 0$.
#
# Training does not widen the gap either. It lowers the pull (section 10), and the bright block in the map fades with
# it. We read this so: a detector that finds borders on the map needs to know which block
# is meant, and beyond that a strong pull only drowns the finer structure that tells where the moment ends. Section 10
# has the pull and the AUC over three seeds. All this is a small model in a simulated world; on CLIP features the
# balance may be another one.
#
# ## 9. The trained model beside what needs no training
#
# Published, on QVHighlights val: 5.2 / 7.7 (R1@0.7 / mAP) for "query-frame similarity only", whose decoding is not
# given [A2FA Table 6], and 64.8 / 63.0 for the whole model. The first is below what one fixed list of windows has
# there, whatever the query.

# %%
predictions = predict_all(retriever, test)
model_table = baseline_table.copy()
model_table.loc["A²FA + F²SGD, trained"] = scores(predictions, test)

checked = range(min(32, len(test)))
check, wrong = test.batch(checked).to("cpu"), test.batch(checked[::-1]).to("cpu")
with torch.no_grad():
    with_labels = retriever(check)[1]["map"]
    without = retriever(check.unlabelled())[1]["map"]
    with_wrong = retriever(replace(check, labels=wrong.labels))[1]["map"]
assert torch.equal(with_labels, without) and torch.equal(with_labels, with_wrong)
print("Labels taken away, or exchanged for wrong ones, change no prediction.")

# %% tags=["nbval-ignore-output"]
model_table.round(1)

# %% tags=["nbval-ignore-output"]
if real is None:
    print("MRLIB_DATA names no folder with qvhighlights/: real annotations are left out.")
else:
    listed = baselines.FixedList(mrlib.data.load_annotations(real_file.with_name("highlight_train_release.jsonl")))
    brief = metrics.evaluate(listed(real), real)["brief"]
    print(f"QVHighlights val, fixed list: R1@0.7 {brief['MR-full-R1@0.7']}, mAP {brief['MR-full-mAP']}")

# %% [markdown]
# In the simulated world the trained model has a mAP of 40.4 ± 1.3 (ten seeds), against 24.8 ± 1.3 for the segment that
# it starts from, and hardly more R1@0.7 (34.2 ± 1.8 against 29.3 ± 2.1); its R1@0.5 is lower (42.4 ± 2.6 against 50.6 ±
# 2.3). Its hits are fewer and exact, and it has ten candidates, where the segment is one. How much of the mAP is owed
# to the ten candidates and how much to alignment is for `04_f2sgd` to take apart, with the published 39.6 / 43.3 for a
# map that cannot see the query.

# %% [markdown]
# ## 10. Experiment: when the anchor is led astray
#
# **Question.** Everything in A²FA hangs on one frame. The simulator's knob `irrelevant` is the chance that another
# event of the video is a look-alike of the one asked for: same actor and object doing something similar, or two of
# three concepts shared. It gives the anchor somewhere else to fall. What happens to the anchor, to the raw segment
# and to the trained model, as the knob goes from 0 to 0.6?
#
# Four values × 3 seeds, each model trained and tested in a world of its own value, on simulated data of the small
# size; videos are the same but for the look-alikes. Then, at the default value of 0.1, three choices that the paper
# leaves open or that its formula suggests: the mirrored right-hand rule (section 4), $\beta = 0$ at the start (section
# 6), and $1/\sqrt{d}$ in [A2FA Eq. 7]. All train on 1,024 queries. The rows are in `figures/03_grid.csv` and
# `figures/03_beta.csv`; `-p full true` trains what is missing of them.

# %% tags=["nbval-ignore-output"]
knob, seeds = (0.0, 0.1, 0.3, 0.6), range(3)
arms = {f"irrelevant {x}": grid.Arm("f2sgd", data={"irrelevant": x}) for x in knob}
arms["mirror"] = grid.Arm("f2sgd", {"right": "mirror"}, data={"irrelevant": 0.1})
arms["1/√d in Eq. 7"] = grid.Arm("f2sgd", {"scale": True}, data={"irrelevant": 0.1})
run = grid.run if full else grid.read
trained = run(figures / "03_grid.csv", arms, seeds).set_index(["arm", "seed"])
trained = trained[["MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP"]].set_axis(["R1@0.5", "R1@0.7", "mAP"], axis=1)


def started_at(beta, seed):
    """A training as the grid's at the default knob, from another initial value of beta; with its cosines' AUC."""
    chosen = papers.get("f2sgd", "small")
    sets = [papers.open_split(chosen, "sim", None, split, seed=seed) for split in ("train", "val", "test")]
    model = papers.build(chosen, sets[0], seed)
    torch.nn.init.constant_(model.aligner.beta, beta)
    row = {"beta": beta, "seed": seed}
    for when in ("before", "untrained", "trained"):
        if when == "trained":
            mrlib.fit(model, sets[0], sets[1], chosen, seed=seed, device="cpu", progress=False)
        table = clips(model.aligner, sets[2])
        if when == "before":
            table["cosine"] = clips(RawAligner(sets[2].widths.joint), sets[2])["cosine"]
        inside = table[table["segment"]]
        row[f"AUC {when}"] = auc(table["cosine"], table["moment"])
        row[f"AUC in segment {when}"] = auc(inside["cosine"], inside["moment"])
        if when != "before":
            row[f"pull {when}"] = table["pull"][table["segment"]].mean()
            row[f"r < 0 {when}"] = (table["r"] < 0).mean()
    return row | scores(predict_all(model, sets[2]), sets[2])


beta_file = figures / "03_beta.csv"
starts = pd.read_csv(beta_file) if beta_file.is_file() else pd.DataFrame()
for beta, s in [(beta, s) for beta in (1.0, 0.0) for s in seeds] if full else []:
    if not len(starts) or not ((starts["beta"] == beta) & (starts["seed"] == s)).any():
        starts = pd.concat([starts, pd.DataFrame([started_at(beta, s)]).round(4)], ignore_index=True)
        starts.to_csv(beta_file, index=False)

# %%
free = []
for x in knob:
    for s in seeds:
        data = mrlib.open_dataset("sim", split="test", seed=s, irrelevant=x, streams="joint")
        raw_scores = scores(baselines.anchor_interval(data), data)
        free.append(
            {
                "irrelevant": x,
                "seed": s,
                "anchor inside": 100 * baselines.anchor_inside(data),
                "segment R1@0.7": raw_scores["R1@0.7"],
                "segment mAP": raw_scores["mAP"],
                "trained R1@0.7": trained.loc[(f"irrelevant {x}", s), "R1@0.7"],
                "trained mAP": trained.loc[(f"irrelevant {x}", s), "mAP"],
            }
        )
free = pd.DataFrame(free)

fig, axes = plots.figure(11, 3, ncols=3)
panels = (
    (["anchor inside"], "queries (%)"),
    (["segment R1@0.7", "trained R1@0.7"], "R1@0.7"),
    (["segment mAP", "trained mAP"], "mAP"),
)
for ax, (columns, label) in zip(axes[0], panels, strict=True):
    for column, colour in zip(columns, (plots.OTHER, plots.PREDICTED), strict=False):
        ax.plot(knob, free.groupby("irrelevant")[column].mean(), color=colour, label=column)
        ax.scatter(free["irrelevant"], free[column], color=colour, s=14)
    ax.set(xlabel="irrelevant", ylabel=label, ylim=(0, 100) if label == "queries (%)" else (0, None))
    ax.legend(fontsize=8, loc="lower left")
if save_figures:
    plots.save(fig, figures / "03_irrelevant", free.round(2))

# %% tags=["nbval-ignore-output"]
free.groupby("irrelevant").agg(["mean", "std"]).drop(columns="seed").round(1)

# %%
compared = {"as here": trained.loc["irrelevant 0.1"], "mirror": trained.loc["mirror"]}
compared |= {"1/√d in Eq. 7": trained.loc["1/√d in Eq. 7"]}
compared["β = 0 at the start"] = starts[starts["beta"] == 0].set_index("seed")[["R1@0.5", "R1@0.7", "mAP"]]
compared = pd.concat(compared, names=["arm"]).reset_index()
fig, axes = plots.figure(9, 2.4, ncols=2, sharey=True)
for ax, score in zip(axes[0], ("R1@0.7", "mAP"), strict=True):
    plots.arms(ax, compared, score)
if save_figures:
    plots.save(fig, figures / "03_open_choices", compared.round(2))

# %% tags=["nbval-ignore-output"]
compared.groupby("arm", sort=False)[["R1@0.5", "R1@0.7", "mAP"]].agg(["mean", "std"]).round(1)

# %% tags=["nbval-ignore-output"]
starts.groupby("beta", sort=False).agg(["mean", "std"]).drop(columns="seed").T.round(3)

# %% [markdown]
# **Conclusion.** From no look-alikes to 0.6, the anchor falls from 96.6 ± 0.7 to 76.1 ± 0.8 %, the raw segment from
# 32.6 ± 2.4 to 22.1 ± 1.4 in R1@0.7 (27.0 to 18.6 in mAP), the trained model from 36.3 ± 1.9 to 25.9 ± 1.6 (41.5 to
# 36.0 in mAP; 3 seeds, ± is the deviation between them). In R1@0.7 training buys 3 to 5 points on the mean at every
# value, and does not buy back what the look-alikes cost: the model is told where to look by one frame, and falls with
# it. Its mAP falls less. It has nine more candidates, which need not follow the anchor; whether that is the reason
# was not tested.
#
# Of the open choices one matters. **Starting at $\beta = 0$ costs 4.6 points of mAP** (35.6 ± 1.6 against 40.2 ± 0.2),
# 2.5 to 6.0 in the single seeds. Not every score agrees: seed 0 is *ahead* with $\beta = 0$ in R1@0.5 (52.4 against
# 43.8) and R1@0.7 (35.8 against 34.4), and falls behind in the other two; the deviation between seeds is 10.8 in
# R1@0.5. The random signs do settle, but on minus: after training $r_i < 0$ for 99.8 to 100 % of the clips, where the
# start at $\beta = 1$ has none. To the map outside the segment a common sign is nothing; inside, the query is mixed
# with $-v_i$; and the cosines with the query are turned round, so that they separate moments *worse* than raw ones
# (AUC 0.69 against 0.79). The paper gives no initial value; it decides. The mirrored rule has 40.8 ± 0.3 mAP and 36.7
# ± 2.2 R1@0.7, against 40.2 ± 0.2 and 35.2 ± 1.1: a higher mAP in each seed, by a point at most, though as an answer
# its segment was the worse one; and $1/\sqrt d$ in [A2FA Eq. 7] has 40.0 ± 0.7 and 33.7 ± 0.6. Neither is more than
# 500 queries and three seeds leave to chance, and nothing of it is asserted here. Notebook 04 has the mirrored rule
# with 2,048 training queries, and there it is ahead in R1@0.7 and mAP in all three seeds.
#
# The pull falls under training from 0.50 to 0.25 ± 0.02 in all three seeds, while the AUC stays where the untrained
# mask put it (0.834 ± 0.007 before training, 0.838 ± 0.010 after; 0.791 ± 0.001 for the clips as they are).
#
# **What reproduces, what does not.** In this simulated world: the anchor is right nine times in ten, and one interval
# around it is a strong answer without any training (reproduced, by calibration); look-alikes take it away (measured);
# the histograms part after A²FA (reproduced) but owe it to the mask and not to what is learned (not in the paper);
# the pair 23.8 / 31.4 of Table 5 does not fit one interval per query (not reproduced). The published 64.8 / 63.0 is
# on real CLIP features, with a model nineteen times the size; nothing here confirms or denies it.

# %%
measured = {"loss, last to first epoch": curve["loss"].iloc[-1] / curve["loss"].iloc[0]}
measured |= {
    f"{column}, {size}": x
    for size, row in zip(("small size", "paper size"), counts.values(), strict=False)
    for column, x in row.items()
}
measured |= {f"AUC, {name}": x for name, x in separation["AUC"].items()}
measured |= {f"AUC in segment, {name}": x for name, x in separation["AUC among clips in the segment"].dropna().items()}
measured |= {f"AUC outside it, {name}": x for name, x in separation["AUC among clips outside it"].dropna().items()}
measured |= {f"{name} (%)": 100 * x for name, x in covered.items()}
measured |= {f"{score}, {name}": x for score in model_table for name, x in model_table[score].items()}
if simulated:
    measured |= {f"{score}, {name}": x for score in wide_table for name, x in wide_table[score].items()}
for there, of in ends.groupby("annotated"):
    measured |= {
        f"last clip in the segment (%), {rule}, annotated {there}": 100 * of[rule].mean()
        for rule in ("literal", "mirror")
    }

# %%
for world_size in ("small size", "paper size"):
    assert (runs[f"anchor inside (%), {world_size}"] > runs[f"random frame inside (%), {world_size}"] + 40).all()
for name in ("A²FA, untrained", "A²FA, trained"):
    assert (runs[f"AUC, {name}"] > runs["AUC, before: clips as they are"] + 0.01).all()
mAP = runs[[f"mAP, {name}" for name in model_table.index]]
assert (mAP.idxmax(axis=1) == "mAP, A²FA + F²SGD, trained").all(), "it beats every label-free baseline"
means = free.groupby("irrelevant").mean()
assert (means["anchor inside"].diff().dropna() < 0).all(), "every look-alike costs anchors"
assert means.loc[0.6, "segment R1@0.7"] < means.loc[0.0, "segment R1@0.7"]
assert means.loc[0.6, "trained mAP"] < means.loc[0.0, "trained mAP"], "the trained model cannot make up for it"
assert (free["trained mAP"] > free["segment mAP"]).all()
plain, from_zero = (starts[starts["beta"] == beta].set_index("seed") for beta in (1, 0))
assert (plain["AUC untrained"] > plain["AUC before"]).all(), "the mask separates before anything is learned"
assert (plain["pull trained"] < plain["pull untrained"]).all(), "training lowers the pull"
assert (from_zero["r < 0 trained"] > 0.5).all() and (plain["r < 0 trained"] < 0.5).all(), "the sign follows the start"
assert (from_zero["AUC trained"] < from_zero["AUC before"]).all() and (from_zero["mAP"] < plain["mAP"]).all()
if simulated:
    print(
        "All findings of this notebook hold: by hand is mrlib; the anchor carries the answer, look-alikes take it away."
    )
else:
    print("By hand is mrlib, and predictions do not look at labels; look-alikes were checked in simulated worlds.")
