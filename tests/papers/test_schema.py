"""Optimisers, schedules, stages and papers: the values that they accept, and the learning rate over the steps."""

from dataclasses import replace

import pytest

from mrlib import papers


def test_names_of_stages_are_plain_words_and_unique():
    stage = papers.PAPERS["f2sgd"].stages[0]
    with pytest.raises(ValueError, match="name of a stage must be a plain word"):
        replace(stage, name="../elsewhere")
    with pytest.raises(ValueError, match="stages must be of different names"):
        replace(papers.PAPERS["f2sgd"], stages=(stage, stage))


def test_the_factor_of_the_learning_rate_equals_hand_worked_values():
    cosine = papers.Schedule("cosine", warmup=0.1)
    assert [round(cosine.factor(s, 100), 6) for s in (0, 4, 9, 10, 55)] == [0.1, 0.5, 1.0, 1.0, 0.5]
    assert cosine.factor(99, 100) < 1e-3
    step = papers.Schedule("step", drop=0.8)
    assert [step.factor(s, 10) for s in (0, 7, 8, 9)] == [1, 1, 0.1, 0.1]
    assert papers.Schedule().factor(3, 5) == 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "a", "start": ("b", "last")}, {"name": "b"}], "a.start must be None or an earlier stage"),
        ([{"name": "a", "mine": 0.5}, {"name": "b", "teacher": ("a", "last")}], "b.teacher must be None or an earlier"),
        ([{"name": "a", "mine": 0.5}], "stages must be more than stages that mine"),
        (
            [{"name": "a"}, {"name": "b", "start": ("a", "first")}],
            'start must be None, or the name of a stage and "last"',
        ),
        ([{"name": "a"}, {"name": "b", "mine": 0.5, "start": ("a", "last")}], "start must be None where a stage mines"),
        ([{"name": "a", "prepare": "other"}], "prepare must be None or one of active_queries, released_queries"),
        ([{"name": "a", "mine": "much"}], "mine must be None or a score, not 'much'"),
    ],
)
def test_impossible_sequences_of_stages_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        replace(papers.PAPERS["qd_detr"], stages=tuple(papers.Stage(epochs=1, batch_size=1, **s) for s in stages))


def test_a_stage_can_start_from_any_earlier_stage_that_does_not_mine():
    first, second = (papers.Stage(name, 1, 1) for name in ("a", "b"))
    third = papers.Stage("c", 1, 1, start=("a", "best"), teacher=("b", "last"))
    assert replace(papers.PAPERS["qd_detr"], stages=(first, second, third)).stages[2] is third


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("Optimiser", {"method": "sgd"}, "method must be adam or adamw, not 'sgd'"),
        ("Optimiser", {"lr": float("inf")}, "lr must be a number from 0 on, not inf"),
        ("Optimiser", {"lr": -1e-9}, "lr must be a number from 0 on"),
        ("Optimiser", {"weight_decay": -0.1}, "weight_decay must be a number from 0 on, not -0.1"),
        ("Optimiser", {"clip": 0.0}, "clip must be None or a number above 0, not 0.0"),
        ("Schedule", {"curve": "linear"}, "curve must be constant, cosine or step, not 'linear'"),
        ("Schedule", {"warmup": -0.1}, "warmup must be from 0 to 1, not -0.1"),
        ("Schedule", {"drop": 1.5}, "drop must be from 0 to 1, not 1.5"),
    ],
)
def test_impossible_values_are_refused_and_named(part, settings, message):
    with pytest.raises(ValueError, match=message):
        getattr(papers, part)(**settings)
