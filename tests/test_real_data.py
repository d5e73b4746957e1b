"""One whole sample of QVHighlights, with its released features, through every paper; skips without $MRLIB_DATA."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mrlib
from mrlib import baselines, papers
from mrlib.ops.spans import iou

TEXT = [name for name in papers.PAPERS if papers.get(name).query == "text"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A copy of the sample, since a dataset keeps its cache beside it."""
    source = Path(os.environ.get("MRLIB_DATA", "."), "real", "qvhighlights_sample")
    if not source.is_dir():
        pytest.skip("MRLIB_DATA has no real/qvhighlights_sample")
    return Path(shutil.copytree(source, tmp_path_factory.mktemp("real") / "sample", copy_function=shutil.copyfile))


@pytest.mark.parametrize("name", TEXT)
def test_every_paper_reads_it_and_answers(name, root):
    """At paper size, untrained; the video is 150 s long and has 75 clips."""
    paper = papers.get(name)
    data = papers.open_split(paper, "qvhighlights", root, "val")
    assert len(data) == 1 and data.target.lengths.tolist() == [75]
    widths = {"slowfast": 2304, "clip": 512}
    assert {stream: columns.stop - columns.start for stream, columns in data.streams.items()}.items() <= widths.items()
    (line,) = papers.build(paper, data, seed=0).predict(data.batch([0]))
    assert line["qid"] == 5263 and line["vid"] == "qtyBzFV9yTs_60.0_210.0"
    scores = [score for _, _, score in line["pred_relevant_windows"]]
    assert scores and scores == sorted(scores, reverse=True)
    assert all(0 <= start <= end <= 150 and np.isfinite(score) for start, end, score in line["pred_relevant_windows"])
    assert len(line.get("pred_saliency_scores", [0] * 75)) == 75


def test_its_clips_and_its_sentence_agree_as_those_of_the_simulator_do(root):
    """The chance that a clip inside a moment is more similar to the query than one outside: 0.79; there 0.81."""

    def auc(data, i: int) -> float:
        batch = data.batch([i])
        cosine = F.cosine_similarity(batch.target_joint[0], batch.query_joint, dim=-1)
        relevant = batch.labels.relevant[0]
        return (cosine[relevant][:, None] > cosine[batch.target_mask[0] & ~relevant]).float().mean().item()

    real = mrlib.open_dataset("qvhighlights", root, "val", streams="joint")
    simulated = mrlib.open_dataset("sim", split="val", size="paper", n=60, streams="joint")
    mixed = [i for i in range(60) if 0 < simulated.batch([i]).labels.relevant.sum() < 75]
    assert auc(real, 0) == pytest.approx(0.79, abs=0.005)
    assert np.mean([auc(simulated, i) for i in mixed]) == pytest.approx(0.81, abs=0.03)


def test_its_anchor_lies_outside_every_moment(root):
    data = mrlib.open_dataset("qvhighlights", root, "val", streams="joint")
    assert baselines.anchor_inside(data) == 0
    ((start, end, _),) = baselines.anchor_interval(data)[0]["pred_relevant_windows"]
    windows = torch.tensor(data.samples[0].relevant_windows, dtype=torch.float64)
    overlaps = iou(torch.tensor([[start, end]], dtype=torch.float64), windows)
    assert overlaps.max().item() == pytest.approx(0.11, abs=0.005)
