"""The pictures that notebooks share.

Target time runs left to right, in seconds; truth and prediction have the same colours everywhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TRUTH, PREDICTED, QUERY, OTHER = (sns.color_palette("colorblind")[i] for i in (2, 3, 0, 7))


def setup() -> None:
    """Set the style that all notebooks share, and show figures below their cells.

    A kernel takes its backend from MPLBACKEND where that is set; with "agg", say, no figure would be shown. A script
    keeps the backend that it has.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        shell.enable_matplotlib("inline")
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"figure.dpi": 90, "font.size": 10})


def save(fig: Figure, file: str | os.PathLike, table: pd.DataFrame | None = None) -> None:
    """Write a picture as .png, and the numbers that it was drawn from beside it as .csv.

    file  the .png, or its path without the ending; its folder is created
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file.with_suffix(".png"), dpi=150, bbox_inches="tight", metadata={"Software": None})
    if table is not None:
        table.to_csv(file.with_suffix(".csv"), index=False)


def timeline(ax: Axes, rows: Mapping[str, Sequence[Sequence[float]]], duration_s: float) -> None:
    """Windows as bars, one row per name.

    rows  name -> [[start, end, ...], ...] in seconds; "truth" has the colour of truth, all others that of predictions
    """
    for height, (name, windows) in enumerate(rows.items()):
        colour = TRUTH if name == "truth" else PREDICTED
        ax.broken_barh([(w[0], w[1] - w[0]) for w in windows], (-height - 0.35, 0.7), color=colour, alpha=0.8)
    ax.set(xlim=(0, duration_s), yticks=-np.arange(len(rows)), yticklabels=rows, xlabel="target video (s)")
    ax.grid(axis="y", visible=False)


def along(ax: Axes, values: Mapping[str, np.ndarray], clip_s: float, windows_s: Sequence[Sequence[float]] = ()) -> None:
    """Curves over the clips of a video, with the true windows shaded.

    values     name -> (T,)
    clip_s     seconds per clip
    windows_s  (W, 2), seconds
    """
    for start, end in windows_s:
        ax.axvspan(start, end, color=TRUTH, alpha=0.2, lw=0)
    for name, curve in values.items():
        ax.plot((np.arange(len(curve)) + 0.5) * clip_s, curve, marker=".", label=name)
    ax.set(xlim=(0, clip_s * max(map(len, values.values()))), xlabel="target video (s)")
    if len(values) > 1:
        ax.legend(loc="upper right", fontsize=8)


def storyboard(
    axes: Sequence[Axes],
    frames: Sequence[np.ndarray],
    duration_s: float,
    *,
    query: str = "",
    moments_s: Sequence[Sequence[float]] = (),
    opacity: Sequence[float] | None = None,
    truth_s: Sequence[Sequence[float]] = (),
    saliency: np.ndarray | None = None,
) -> None:
    """A video as a strip of frames, with its moments below: the first moment is cut out of the strip.

    axes       the strip's and, below it, the timeline's
    frames     (H, W, 3) uint8 each, at the middles of equal parts of the video
    query      the sentence, the title
    moments_s  (K, 2 or more)  predicted: start and end in seconds, best first, and perhaps the score
    opacity    (K,)  of the moments' bars
    truth_s    (W, 2 or more)  true windows in seconds
    saliency   (n,)  values evenly along the video
    """
    strip, rows = axes
    step = duration_s / len(frames)
    for i, frame in enumerate(frames):
        strip.imshow(frame, extent=(i * step, (i + 1) * step, 0, 1), aspect="auto", interpolation="antialiased")
        strip.axvline(i * step, color="white", lw=1)
    strip.set(xlim=(0, duration_s), ylim=(0, 1), yticks=[])
    strip.tick_params(bottom=False, labelbottom=False)
    strip.set_title(_short(query), loc="left", fontsize=12, fontweight="bold", parse_math=False)
    strip.set_title(_answer(moments_s), loc="right", fontsize=10, color=PREDICTED if len(moments_s) else "0.4")
    for start, end, *_ in moments_s[:1]:
        for left, right in ((0, start), (end, duration_s)):
            strip.axvspan(left, right, color="white", alpha=0.6, lw=0)
        strip.axvspan(start, end, facecolor="none", edgecolor=PREDICTED, lw=3, clip_on=False, zorder=4)
        rows.axvspan(start, end, color=PREDICTED, alpha=0.1, lw=0)
    _timeline_rows(rows, duration_s, moments_s, opacity, truth_s, saliency)
    for ax in axes:
        ax.grid(visible=False)
        ax.spines[["top", "right", "left"]].set_visible(False)
    strip.spines["bottom"].set_visible(False)


def _timeline_rows(ax: Axes, duration_s: float, moments_s, opacity, truth_s, saliency) -> None:
    """Saliency, predicted and true moments below one another, each row with its name at the left."""
    names, top = {}, 0.0
    if saliency is not None:
        curve = 1.6 * stretched(saliency)
        time_s = (np.arange(len(curve)) + 0.5) * duration_s / len(curve)
        ax.fill_between(time_s, curve + 0.2, 0.2, color=QUERY, alpha=0.2, lw=0)
        ax.plot(time_s, curve + 0.2, color=QUERY, lw=1.5)
        names["saliency"] = 0.9
    for name, windows, colour in (("predicted", moments_s, PREDICTED), ("truth", truth_s, TRUTH)):
        places = lanes(windows)
        shades = np.ones(len(windows)) if opacity is None or name == "truth" else opacity
        for (start, end, *_), lane, shade in zip(windows, places, shades, strict=True):
            ax.broken_barh([(start, end - start)], (top - lane - 0.85, 0.7), facecolor=colour, alpha=shade, lw=0)
        if len(windows):
            height = 1 + places.max()
            names[name], top = top - height / 2, top - height
    ax.set(ylim=(top - 0.15, 2 if saliency is not None else 0.1), yticks=[*names.values()], yticklabels=names)
    ax.tick_params(left=False)
    ax.set(xlim=(0, duration_s), xlabel="target video (s)")


def stretched(values: np.ndarray) -> np.ndarray:
    """Values (n,) shifted and scaled to 0 to 1; NaN stays NaN."""
    low, high = np.nanmin(values), np.nanmax(values)
    return (values - low) / (high - low or 1)


def lanes(windows: Sequence[Sequence[float]], most: int = 4) -> np.ndarray:
    """A row (K,) int for every window, so that windows in one row do not overlap unless `most` rows are not enough.

    windows  (K, 2 or more)  start and end
    """
    ends, rows = np.full(most, -np.inf), np.zeros(len(windows), int)
    for i in np.argsort([start for start, *_ in windows], kind="stable"):
        start, end, *_ = windows[i]
        free = np.flatnonzero(ends <= start)
        rows[i] = free[0] if len(free) else ends.argmin()
        ends[rows[i]] = max(end, ends[rows[i]])
    return rows


def _short(query: str, most: int = 90) -> str:
    """A sentence in quotes, on one line."""
    words = " ".join(query.split())
    return words and f"“{words if len(words) <= most else words[: most - 1] + '…'}”"


def _answer(moments_s: Sequence[Sequence[float]]) -> str:
    """The best moment in words."""
    if not len(moments_s):
        return "not here"
    start, end, *score = moments_s[0]
    known = score and np.isfinite(score[0])
    return f"{start:.1f}–{end:.1f} s" + (f", score {score[0]:.3g}" if known else "")


def time_map(
    ax: Axes,
    cells: np.ndarray,
    clip_s: float,
    *,
    windows_s: Sequence[Sequence[float]] = (),
    predicted_s: Sequence[Sequence[float]] = (),
    peaks: bool = False,
) -> None:
    """A map over (clip, clip) or (start, end), with true windows as rings and predicted ones as crosses.

    cells                   (T, T)  cell (i, j) covers the clips i..j [F2SGD §3.3], so a window is drawn in the cell of
                            its first and last clip
    clip_s                  seconds per clip; sets both axes
    windows_s, predicted_s  (W, 2), seconds
    peaks                   for maps that are 0 nearly everywhere: dark is high and everything below 0 is white; else
                            light is high
    """
    span, others = len(cells) * clip_s, cells[~np.eye(len(cells), dtype=bool)]
    low, high = (0, cells.max()) if peaks else np.percentile(others, [1, 99])  # the diagonal of cosines is 1
    colours = {"cmap": "rocket_r" if peaks else "mako", "vmin": low, "vmax": high}
    image = ax.imshow(cells.T, origin="lower", extent=(0, span, 0, span), interpolation="nearest", **colours)
    ax.figure.colorbar(image, ax=ax, fraction=0.046)
    halo = [patheffects.withStroke(linewidth=5, foreground="white")]
    for windows, marker, colour, size in ((windows_s, "o", TRUTH, 110), (predicted_s, "x", PREDICTED, 45)):
        edge = {"facecolors": "none", "edgecolors": colour} if marker == "o" else {"color": colour}
        for start, end in windows:
            cell = start + clip_s / 2, end - clip_s / 2
            ax.scatter(*cell, marker=marker, s=size, linewidths=2, path_effects=halo, zorder=3, clip_on=False, **edge)
    ax.set(xlabel="start (s)", ylabel="end (s)", xlim=(0, span), ylim=(0, span))
    ax.grid(visible=False)


def alignment(
    ax: Axes,
    cost: np.ndarray,
    path: np.ndarray | None = None,
    *,
    clip_s: float,
    windows_s: Sequence[Sequence[float]] = (),
) -> None:
    """The cost of every pair of clips; dark is a low cost.

    cost       (T, N)
    path       bool (T, N)  the pairs that an alignment matches, drawn as dots
    clip_s     seconds per clip; sets both axes
    windows_s  (W, 2)  true windows in seconds, drawn as vertical lines at their ends
    """
    T, N = cost.shape
    ax.imshow(
        np.asarray(cost).T,
        origin="lower",
        aspect="auto",
        extent=(0, T * clip_s, 0, N * clip_s),
        interpolation="nearest",
        cmap="mako",
    )
    if path is not None:
        i, j = np.nonzero(np.asarray(path))
        ax.scatter((i + 0.5) * clip_s, (j + 0.5) * clip_s, s=22, color=PREDICTED, edgecolors="white", linewidths=0.8)
    halo = [patheffects.withStroke(linewidth=5, foreground="white")]
    for edge in np.ravel(windows_s):
        ax.axvline(edge, color=TRUTH, lw=3, path_effects=halo)
    ax.set(xlabel="target video (s)", ylabel="query video (s)", xlim=(0, T * clip_s), ylim=(0, N * clip_s))
    ax.grid(visible=False)


def learning_curves(axes: Sequence[Axes], history: pd.DataFrame, scores: Sequence[str]) -> None:
    """Training loss on the first axes, validation scores on the second.

    history  `History.frame()`
    scores   the columns of `history` to draw
    """
    axes[0].plot(history["step"], history["loss"], color=QUERY, marker=".")
    axes[0].set(xlabel="step", ylabel="training loss")
    for score in scores:
        axes[1].plot(history["step"], history[score], marker=".", label=score)
    axes[1].set(xlabel="step", ylabel="validation score")
    axes[1].legend(fontsize=8)


def inside_outside(ax: Axes, inside: np.ndarray, outside: np.ndarray, label: str) -> None:
    """Histograms of a value over the clips inside and outside the moments; either may be empty, but not both."""
    both = np.concatenate([inside, outside])
    edges = np.linspace(both.min(), both.max(), 50)
    for name, values, colour in (("inside", inside, TRUTH), ("outside", outside, OTHER)):
        if len(values):
            ax.hist(values, edges, density=True, alpha=0.6, color=colour, label=name)
    ax.set(xlabel=label, ylabel="density")
    ax.legend(fontsize=8)


def arms(ax: Axes, rows: pd.DataFrame, score: str) -> None:
    """A score of every arm of a grid: a bar is the mean over seeds, a dot one seed."""
    sns.barplot(rows, y="arm", x=score, errorbar=None, color=QUERY, alpha=0.5, ax=ax)
    sns.stripplot(rows, y="arm", x=score, color="black", size=4, jitter=False, ax=ax)
    ax.set(ylabel="")


def corpus(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Recall of the search in a corpus against the number of answers, as `mrlib.video.corpus_trial` measures it.

    axes   three: the coarse step, then moments by sentence and by clip
    table  rows with "query", "answer", "truth", "k", "overlap" and "R@0.5", "R@0.7"; others are left out
    """
    names = {"text": "by sentence", "video": "by clip"}
    rows = table.dropna(subset="k")
    for (query, truth), part in rows[rows["answer"] == "window"].groupby(["query", "truth"]):
        style = {"color": QUERY if query == "text" else PREDICTED, "linestyle": "-" if truth == "any" else ":"}
        axes[0].plot(part["k"], part["overlap"], marker=".", label=f"{names[query]}, {truth}", **style)
    axes[0].set(title="coarse step: the true window", xlabel="windows kept", ylabel="recall (%)")
    for ax, query in zip(axes[1:], names, strict=True):
        some = rows[(rows["query"] == query) & (rows["truth"] == "any")]
        for colour, (answer, part) in zip(sns.color_palette(), some.groupby("answer", sort=False), strict=False):
            for score, style in (("R@0.5", "-"), ("R@0.7", ":")):
                name = "coarse alone" if answer == "window" else answer
                ax.plot(part["k"], part[score], style, color=colour, marker=".", label=f"{name}, {score}")
        ax.set(title=f"moments {names[query]}", xlabel="moments looked at", ylabel="recall (%)")
    for ax in axes:
        ax.set(xscale="log", ylim=(-2, 102))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.legend(fontsize=7)


def figure(width: float, height: float, **grid) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, always as an array (rows, columns); width and height in inches."""
    return plt.subplots(figsize=(width, height), squeeze=False, layout="constrained", **grid)
