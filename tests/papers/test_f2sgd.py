"""A2FA + F2SGD: its numbers."""

import pytest

from mrlib import papers
from mrlib.data import Widths


def test_f2sgd_has_the_papers_numbers():
    """[A2FA, F2SGD §4]: Adam, batch 128, 10 epochs, warm-up to 1e-4, cosine, C = 21, ten candidates."""
    paper = papers.get("f2sgd")
    stage = paper.stages[-1]
    assert (stage.epochs, stage.batch_size, stage.optimiser.method, stage.optimiser.lr) == (10, 128, "adam", 1e-4)
    assert (stage.schedule.curve, stage.schedule.warmup) == ("cosine", 0.1)
    assert (paper.detector.options["kernel"], paper.detector.options["candidates"]) == (21, 10)
    learnable = papers.build(paper, Widths(512, 512, 512)).aligner.parameters()
    assert sum(p.numel() for p in learnable) == 7 * 512**2 + 2
    for dataset in ("charades_sta", "activitynet_captions"):
        options = papers.get("f2sgd", preset=dataset).detector.options
        assert (options["kernel"], options["candidates"]) == (27, 1)


@pytest.mark.parametrize("settings", [{"kernel": 8}, {"kernel": -3}, {"channels": 0}, {"candidates": 0}])
def test_impossible_sizes_of_the_map_are_refused_when_it_is_built(settings):
    with pytest.raises(ValueError, match="has no centre|must be at least 1"):
        papers.build(papers.get("f2sgd", **settings), Widths(target=24, query=12, joint=16))
