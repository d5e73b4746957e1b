"""What a paper is made of: stages, schedules."""

import pytest

from mrlib import papers


def test_stages_have_plain_names_of_their_own():
    stage = papers.PAPERS["f2sgd"].stages[0]
    with pytest.raises(ValueError, match="name of a stage must be a plain word"):
        papers.replace(stage, name="../elsewhere")
    with pytest.raises(ValueError, match="stages must be of different names"):
        papers.replace(papers.PAPERS["f2sgd"], stages=(stage, stage))


def test_schedules_warm_up_and_fall_as_drawn():
    cosine = papers.Schedule("cosine", warmup=0.1)
    assert [round(cosine.factor(s, 100), 6) for s in (0, 4, 9, 10, 55)] == [0.1, 0.5, 1.0, 1.0, 0.5]
    assert cosine.factor(99, 100) < 1e-3
    step = papers.Schedule("step", drop=0.8)
    assert [step.factor(s, 10) for s in (0, 7, 8, 9)] == [1, 1, 0.1, 0.1]
    assert papers.Schedule().factor(3, 5) == 1
