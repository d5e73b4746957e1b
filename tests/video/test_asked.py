"""What the steps of a search in a corpus do with a query."""

from dataclasses import replace

import pytest
import torch

from mrlib.video import zero_shot
from mrlib.video.asked import Asked
from mrlib.video.windows import Window
from tests.support.corpora import WIDTH, Invented, invented

SENTENCE = "a dog runs"


@pytest.fixture
def window() -> Window:
    rows = torch.nn.functional.normalize(invented("a.mp4", 75, **{SENTENCE: (20, 30)}).features, dim=1)
    return Window("a.mp4", rows, 300.0, 149.5)


def test_the_moment_of_a_sentence_is_the_first_zero_shot_answer_in_seconds_of_the_video(window):
    tokens, vector = Invented().text(SENTENCE)
    (start, end, score), *_ = zero_shot.by_vector(window.rows, vector, 2.0, 149.5, 1)[0]
    asked = Asked(SENTENCE, tokens, vector, 2.0)
    assert asked.moment_in(window) == (300 + start, 300 + end, score) and not asked.by_clip
    assert start <= 40 < 60 <= end


def test_the_moment_of_a_clip_is_where_it_aligns(window):
    asked = Asked("clip.mp4", window.rows[21:29] * 7, None, 2.0)
    start, end, score = asked.moment_in(window)
    assert asked.by_clip and (start, end) == pytest.approx((342, 358), abs=2) and score > 0.9


def test_the_scale_of_a_clip_does_not_matter(window):
    """Encoders do not normalise; the rows here have a large mean, as those of pictures have."""
    rows = torch.nn.functional.normalize(window.rows + 1, dim=1)
    moments = [Asked("", scale * rows[21:29], None, 2.0).moment_in(replace(window, rows=rows)) for scale in (1, 10)]
    assert moments[0] == pytest.approx(moments[1], abs=1e-4) and moments[0][:2] == (342, 358)


def test_a_window_is_as_long_as_two_clips(window):
    assert [Asked("", torch.ones(n, WIDTH), None, 2.0).window for n in (1, 37, 38, 100)] == [75, 75, 76, 200]
    assert [Asked("", torch.ones(n, WIDTH), torch.ones(WIDTH), 0.5).window for n in (1, 500)] == [300, 300]
