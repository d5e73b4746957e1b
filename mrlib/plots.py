"""The pictures that notebooks share. Target time runs left to right, in seconds; truth and prediction keep colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FIGURES = Path(__file__).resolve().parent.parent / "figures"
TRUTH, PREDICTED, QUERY, OTHER = (sns.color_palette("colorblind")[i] for i in (2, 3, 0, 7))


def setup() -> None:
    """One look for every notebook."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"figure.dpi": 90, "font.size": 10})


def save(fig: Figure, name: str, table: pd.DataFrame | None = None) -> None:
    """Write a picture, and the numbers it was drawn from, to figures/."""
    FIGURES.mkdir(exist_ok=True)
    fig.savefig(FIGURES / f"{name}.png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    if table is not None:
        table.to_csv(FIGURES / f"{name}.csv", index=False)


def timeline(ax: Axes, rows: Mapping[str, Sequence[Sequence[float]]], duration_s: float) -> None:
    """Windows as bars, a row for each name; "truth" has its colour.  rows: name -> [[start, end, ...], ...], seconds"""
    for height, (name, windows) in enumerate(rows.items()):
        colour = TRUTH if name == "truth" else PREDICTED
        ax.broken_barh([(w[0], w[1] - w[0]) for w in windows], (-height - 0.35, 0.7), color=colour, alpha=0.8)
    ax.set(xlim=(0, duration_s), yticks=-np.arange(len(rows)), yticklabels=rows, xlabel="target video (s)")
    ax.grid(axis="y", visible=False)


def along(ax: Axes, values: Mapping[str, np.ndarray], clip_s: float, windows_s: Sequence[Sequence[float]] = ()) -> None:
    """Curves over the clips of a video, true windows shaded.  values: name -> (T,)"""
    for start, end in windows_s:
        ax.axvspan(start, end, color=TRUTH, alpha=0.2, lw=0)
    for name, curve in values.items():
        ax.plot((np.arange(len(curve)) + 0.5) * clip_s, curve, marker=".", label=name)
    ax.set(xlim=(0, clip_s * max(map(len, values.values()))), xlabel="target video (s)")
    if len(values) > 1:
        ax.legend(loc="upper right", fontsize=8)


def time_map(
    ax: Axes,
    cells: np.ndarray,
    clip_s: float,
    *,
    windows_s: Sequence[Sequence[float]] = (),
    predicted_s: Sequence[Sequence[float]] = (),
    peaks: bool = False,
) -> None:
    """A map over (clip, clip) or (start, end); rings are true windows, crosses predicted ones.  cells (T, T)

    Cell (i, j) covers the clips i..j [F2SGD §3.3], so a window is drawn in the cell of its first and last clip.
    peaks: dark is high and all below 0 is white, for maps that are 0 nearly everywhere; else light is high.
    """
    span, others = len(cells) * clip_s, cells[~np.eye(len(cells), dtype=bool)]
    low, high = (0, cells.max()) if peaks else np.percentile(others, [1, 99])  # the diagonal of cosines is 1
    look = {"cmap": "rocket_r" if peaks else "mako", "vmin": low, "vmax": high}
    picture = ax.imshow(cells.T, origin="lower", extent=(0, span, 0, span), interpolation="nearest", **look)
    ax.figure.colorbar(picture, ax=ax, fraction=0.046)
    halo = [patheffects.withStroke(linewidth=5, foreground="white")]
    for windows, marker, colour, size in ((windows_s, "o", TRUTH, 110), (predicted_s, "x", PREDICTED, 45)):
        edge = {"facecolors": "none", "edgecolors": colour} if marker == "o" else {"color": colour}
        for start, end in windows:
            at = start + clip_s / 2, end - clip_s / 2
            ax.scatter(*at, marker=marker, s=size, linewidths=2, path_effects=halo, zorder=3, clip_on=False, **edge)
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
    """How unlike every two clips are, dark is alike; dots are the clips that a path matches, bars true windows.

    cost (T, N), path bool (T, N); clip_s, seconds per clip, sets both axes
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
    """Loss on the first axes, validation scores on the second.  history: `History.frame()`"""
    axes[0].plot(history["step"], history["loss"], color=QUERY, marker=".")
    axes[0].set(xlabel="step", ylabel="training loss")
    for score in scores:
        axes[1].plot(history["step"], history[score], marker=".", label=score)
    axes[1].set(xlabel="step", ylabel="validation score")
    axes[1].legend(fontsize=8)


def inside_outside(ax: Axes, inside: np.ndarray, outside: np.ndarray, label: str) -> None:
    """How a value is distributed over clips inside and outside the moments."""
    edges = np.linspace(min(inside.min(), outside.min()), max(inside.max(), outside.max()), 50)
    for name, values, colour in (("inside", inside, TRUTH), ("outside", outside, OTHER)):
        ax.hist(values, edges, density=True, alpha=0.6, color=colour, label=name)
    ax.set(xlabel=label, ylabel="density")
    ax.legend(fontsize=8)


def arms(ax: Axes, rows: pd.DataFrame, score: str) -> None:
    """A score of every arm of a grid: bars are means, dots the seeds."""
    sns.barplot(rows, y="arm", x=score, errorbar=None, color=QUERY, alpha=0.5, ax=ax)
    sns.stripplot(rows, y="arm", x=score, color="black", size=4, jitter=False, ax=ax)
    ax.set(ylabel="")


def figure(width: float, height: float, **grid) -> tuple[Figure, np.ndarray]:
    """A figure with its axes always as an array."""
    return plt.subplots(figsize=(width, height), squeeze=False, layout="constrained", **grid)
