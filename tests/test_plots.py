"""What the shared pictures show, read from the axes, and where."""

import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from mrlib import plots


@pytest.fixture
def ax():
    plt.switch_backend("agg")
    fig, axes = plots.figure(3, 2)
    yield axes[0, 0]
    plt.close(fig)


def test_the_axes_of_an_alignment_are_target_and_query_in_seconds(ax):
    cost = np.arange(12.0).reshape(4, 3)
    plots.alignment(ax, cost, clip_s=2.0)
    (picture,) = ax.images
    assert picture.get_extent() == [0, 8, 0, 6]
    assert picture.origin == "lower"
    assert (picture.get_array() == cost.T).all()
    assert not ax.collections and not ax.lines


def test_a_path_is_drawn_as_dots_in_its_cells_and_windows_as_lines_at_their_ends(ax):
    path = np.zeros((4, 3), bool)
    path[[1, 2, 2], [0, 1, 2]] = True
    plots.alignment(ax, np.zeros((4, 3)), path, clip_s=2.0, windows_s=[[2.0, 6.0]])
    (dots,) = ax.collections
    assert dots.get_offsets().tolist() == [[3, 1], [5, 3], [5, 5]]
    assert [line.get_xdata()[0] for line in ax.lines] == [2, 6]


def test_a_timeline_has_a_row_of_bars_for_every_name_and_the_truth_in_its_colour(ax):
    plots.timeline(ax, {"truth": [[2, 6]], "predicted": [[0, 4, 0.9], [8, 10, 0.5]]}, 20.0)
    truth, predicted = ax.collections
    boxes = [[path.get_extents().bounds for path in bars.get_paths()] for bars in (truth, predicted)]
    np.testing.assert_allclose(boxes[0], [[2, -0.35, 4, 0.7]])
    np.testing.assert_allclose(boxes[1], [[0, -1.35, 4, 0.7], [8, -1.35, 2, 0.7]])
    assert to_rgb(truth.get_facecolor()[0]) == plots.TRUTH and to_rgb(predicted.get_facecolor()[0]) == plots.PREDICTED
    assert ax.get_xlim() == (0, 20) and [text.get_text() for text in ax.get_yticklabels()] == ["truth", "predicted"]


def test_a_curve_has_its_values_in_the_middle_of_the_clips(ax):
    plots.along(ax, {"score": np.array([0.1, 0.9, 0.2])}, 2.0, [[2.0, 4.0]])
    (curve,), (shade,) = ax.lines, ax.patches
    assert curve.get_xydata().tolist() == [[1, 0.1], [3, 0.9], [5, 0.2]]
    assert shade.get_extents().transformed(ax.transData.inverted()).intervalx.tolist() == pytest.approx([2, 4])
    assert ax.get_xlim() == (0, 6) and ax.get_legend() is None


@pytest.mark.parametrize(("peaks", "limits"), [(True, (0, 9)), (False, (1, 2))])
def test_a_window_on_a_time_map_is_in_the_cell_of_its_first_and_last_clip(peaks, limits, ax):
    """The colours of cosines leave out the diagonal, which would be the highest."""
    cells = np.where(np.eye(4), 9.0, 1.0)
    cells[0, 1:] = 2.0
    plots.time_map(ax, cells, 2.0, windows_s=[[2.0, 6.0]], predicted_s=[[0.0, 2.0]], peaks=peaks)
    (image,), (truth, predicted) = ax.images, ax.collections
    assert image.get_extent() == [0, 8, 0, 8] and (image.get_array() == cells.T).all()
    assert image.get_clim() == pytest.approx(limits)
    assert truth.get_offsets().tolist() == [[3, 5]] and predicted.get_offsets().tolist() == [[1, 1]]


def test_learning_curves_are_drawn_over_steps():
    fig, axes = plots.figure(6, 2, ncols=2)
    history = pd.DataFrame({"epoch": [1, 2], "step": [3, 6], "loss": [2.0, 1.0], "mAP": [10.0, 20.0]})
    plots.learning_curves(axes[0], history, ["mAP"])
    loss, score = (part.lines[0].get_xydata().tolist() for part in axes[0])
    assert (loss, score) == ([[3, 2], [6, 1]], [[3, 10], [6, 20]])
    plt.close(fig)


def test_histograms_inside_and_outside_share_their_bins(ax):
    plots.inside_outside(ax, np.array([0.5, 1.0]), np.array([0.0, 0.2]), "cosine")
    assert len(ax.patches) == 2 * 49
    edges = {round(bar.get_x(), 6) for bar in ax.patches}
    assert len(edges) == 49 and min(edges) == 0 and ax.get_xlabel() == "cosine"


def test_an_arm_is_a_bar_of_its_mean_with_a_dot_for_every_seed(ax):
    rows = pd.DataFrame({"arm": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "mAP": [10.0, 20.0, 30.0, 34.0]})
    plots.arms(ax, rows, "mAP")
    assert [bar.get_width() for bar in ax.patches] == [15, 32]
    assert sorted(x for dots in ax.collections for x, _ in dots.get_offsets().tolist()) == [10, 20, 30, 34]


@pytest.mark.parametrize("backend", ["agg", "TkAgg", "module://matplotlib.backends.backend_svg"])
def test_a_notebook_shows_its_figures_whatever_the_environment_has_for_a_backend(backend, tmp_path):
    cells = ["import matplotlib.pyplot as plt\nfrom mrlib import plots\nplots.setup()", "plots.figure(2, 1);"]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    environment = os.environ | {"MPLBACKEND": backend}
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute(
        env=environment
    )
    kinds = [kind for output in notebook.cells[1].outputs for kind in output.get("data", {})]
    assert "image/png" in kinds


def test_a_script_keeps_its_backend():
    code = "import matplotlib.pyplot as plt; from mrlib import plots; plots.setup(); print(plt.get_backend())"
    environment = os.environ | {"MPLBACKEND": "svg"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (process.stdout.strip(), process.stderr) == ("svg", "")


def test_videos_of_null_queries_are_drawn_without_windows(ax):
    plots.timeline(ax, {"truth": [], "predicted": [[0, 4, 0.9]]}, 20.0)
    plots.along(ax, {"score": np.array([0.1, 0.9, 0.2])}, 2.0, [])
    plots.time_map(ax, np.random.default_rng(0).random((3, 3)), 2.0)
    plots.alignment(ax, np.zeros((4, 3)), clip_s=2.0, windows_s=[])
    plots.inside_outside(ax, np.array([]), np.array([0.1, 0.3]), "cosine")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "outside" in labels and "inside" not in labels


def test_windows_that_overlap_are_in_different_rows():
    assert plots.lanes([[0, 4], [3, 6], [4, 8], [6, 9]]).tolist() == [0, 1, 0, 1]
    assert plots.lanes([[3, 6], [0, 4, 0.5]]).tolist() == [1, 0]
    assert plots.lanes([]).tolist() == []


def test_values_are_stretched_to_one_and_constant_ones_to_zero():
    assert plots.stretched(np.array([1.0, np.nan, 3.0, 2.0]))[[0, 2, 3]].tolist() == [0, 1, 0.5]
    assert plots.stretched(np.array([2.0, 2.0])).tolist() == [0, 0]


def test_there_are_no_more_rows_than_allowed():
    assert plots.lanes([[i, 10 + i] for i in range(9)], most=3).tolist() == [0, 1, 2] * 3


def storyboard(**options):
    fig, axes = plots.figure(6, 2, nrows=2)
    plots.storyboard(axes[:, 0], [np.zeros((3, 4, 3), np.uint8)] * 4, 8.0, **options)
    plt.close(fig)
    return axes[:, 0]


def test_a_storyboard_has_a_frame_for_every_part_and_bars_for_moments_in_seconds():
    strip, rows = storyboard(moments_s=[[2, 5, 0.9], [4, 7]], truth_s=[[1, 2]], opacity=[1, 0.5])
    assert [image.get_extent() for image in strip.images] == [[i, i + 2, 0, 1] for i in (0, 2, 4, 6)]
    spans = [bars.get_paths()[0].get_extents().intervalx.tolist() for bars in rows.collections]
    assert spans == [[2, 5], [4, 7], [1, 2]]
    assert [bars.get_alpha() for bars in rows.collections] == [1, 0.5, 1]
    assert [to_rgb(bars.get_facecolor()[0]) for bars in rows.collections] == [plots.PREDICTED] * 2 + [plots.TRUTH]
    assert rows.get_xlim() == strip.get_xlim() == (0, 8)


def test_a_storyboard_puts_saliency_in_the_middles_of_its_clips():
    _, rows = storyboard(saliency=np.array([1.0, 3.0, 2.0, np.nan]))
    (curve,) = rows.lines
    assert curve.get_xdata().tolist() == [1, 3, 5, 7]
    np.testing.assert_allclose(curve.get_ydata(), [0.2, 1.8, 1.0, np.nan])
    storyboard(saliency=np.ones(3))


def test_a_long_sentence_is_cut_in_the_title():
    strip, _ = storyboard(query="word " * 100)
    assert len(strip.get_title("left")) == 92 and strip.get_title("left").endswith("…”")


def test_recall_in_a_corpus_is_drawn_for_every_kind_of_query_and_answer():
    plt.switch_backend("agg")
    rows = [
        {"query": query, "answer": answer, "truth": truth, "k": k, "overlap": 9.0 * k, "R@0.5": 5.0 * k, "R@0.7": k}
        for query in ("text", "video")
        for answer in ("window", "zero-shot")
        for truth in ("any", "strict")
        for k in (1, 10)
    ]
    table = pd.DataFrame([*rows, {"query": "text", "answer": "numpy", "seconds": 0.1}])
    fig, axes = plots.figure(9, 3, ncols=3)
    plots.corpus(axes[0], table)
    assert [len(ax.lines) for ax in axes[0]] == [4, 4, 4]
    assert axes[0][0].lines[0].get_label() == "by sentence, any" and list(axes[0][0].lines[0].get_ydata()) == [9, 90]
    assert [line.get_label() for line in axes[0][2].lines[:2]] == ["coarse alone, R@0.5", "coarse alone, R@0.7"]
    assert all(ax.get_xscale() == "log" for ax in axes[0])
    plt.close(fig)
