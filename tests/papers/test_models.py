"""Models built from papers: their seeds, sizes that are refused, and training on video queries."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from mrlib.train import fit, predict_all

WIDTHS = Widths(target=24, query=12, joint=16)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("matr", {"heads": 0}, "heads must be 1 or more"),
        ("matr", {"decoder_layers": 0}, "decoder_layers must be 1 or more"),
        ("univtg", {"layers": -1}, "layers must be 0 or more"),
        ("univtg", {"projections": 0}, "projections must be 1 or more"),
        ("univtg", {"nms": 7.0}, "nms must be from 0 to 1"),
        ("moment_detr", {"moment_queries": 0}, "moment_queries must be 1 or more"),
        ("qd_detr", {"decoder_layers": 0}, "decoder_layers must be 1 or more"),
    ],
)
def test_impossible_sizes_are_refused_when_the_network_is_built(name, settings, message):
    with pytest.raises(ValueError, match=message):
        papers.build(papers.get(name, "small", **settings), WIDTHS)


def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_unchanged():
    paper = papers.get("f2sgd", "small")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (papers.build(paper, WIDTHS, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("scored", [True, False], ids=["with saliency", "windows only"])
@pytest.mark.parametrize("name", ["moment_detr", "qd_detr"])
def test_a_paper_for_sentences_trains_and_predicts_on_video_queries(name, scored):
    """One step changes the query's projection; predictions lie inside the video and depend on the query."""
    paper = papers.get(name, "small", query="video", streams="joint", width=16, hidden=16, heads=2, epochs=1)
    data = papers.open_split(paper, "sim", split="train", n=16)
    if not scored:
        samples = [replace(s, relevant_clip_ids=None, saliency_scores=None) for s in data.samples]
        data = replace(data, samples=samples, _annotations=None)
    retriever = papers.build(paper, data)
    weights = [p for p in retriever.aligner.project_query.parameters() if p.ndim == 2]
    before = [p.detach().clone() for p in weights]
    history = fit(retriever, data, None, paper, device="cpu", progress=False)
    (row,) = history.rows
    assert row["step"] == 1 and all(value > 0 for key, value in row.items() if key.startswith("loss"))
    for weight, initial in zip(weights, before, strict=True):
        assert (weight - initial).abs().max() > paper.stages[0].optimiser.lr / 2  # more than weight decay changes it

    lines = predict_all(retriever, data)
    for line, sample in zip(lines, data.samples, strict=True):
        assert line["pred_relevant_windows"]
        assert all(0 <= start <= end <= sample.duration for start, end, _ in line["pred_relevant_windows"])
    rolled = predict_all(retriever, replace(data, query_item=data.query_item.roll(1)))
    for line, foreign in zip(lines, rolled, strict=True):
        scores, foreign_scores = ([w[2] for w in x["pred_relevant_windows"]] for x in (line, foreign))
        assert scores != foreign_scores


def test_a_model_that_needs_joint_features_is_refused_without_them():
    with pytest.raises(ValueError, match="joint"):
        papers.build(papers.get("f2sgd"), Widths(target=24, query=12, joint=None))
