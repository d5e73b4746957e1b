"""What the shared pictures show, read from the axes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

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
