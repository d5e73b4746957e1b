"""Predictions of a retriever, for every paper and every pair of aligner and detector."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mrlib import checkpoint, papers
from mrlib.align import Aligned
from mrlib.data import Widths, open_dataset
from mrlib.data.bank import Bank
from mrlib.detect import Moments
from mrlib.retriever import MomentRetriever, unwrapped
from mrlib.train import fit, predict_all
from tests.support import toy
from tests.support.batches import make_batch
from tests.support.modules import shaken


@pytest.fixture(scope="module")
def sim():
    return open_dataset("sim", split="train", n=64, size="small", streams="joint")


@pytest.fixture(scope="module", params=list(papers.PAPERS))
def paper(request):
    return papers.get(request.param, "small", epochs=1)


@pytest.fixture(scope="module")
def data(paper):
    return papers.open_split(paper, "sim", split="train", n=64)


@pytest.fixture(scope="module")
def trained(paper, data):
    retriever = papers.build(paper, data)
    fit(retriever, data, None, paper, device="cpu", progress=False)
    return retriever


def test_predictions_do_not_change_when_labels_are_removed_or_shuffled(trained, data):
    batch = data.batch(range(16))
    expected = trained.predict(batch)
    assert trained.predict(batch.unlabelled()) == expected
    foreign = data.batch(range(16, 32))
    shuffled = [
        replace(s, relevant_windows=f.relevant_windows) for s, f in zip(batch.samples, foreign.samples, strict=True)
    ]
    assert trained.predict(replace(batch, labels=foreign.labels, samples=shuffled)) == expected


def test_predictions_do_not_change_with_batch_mates_or_padding(trained, data):
    """One target is cut to 20 clips, so that it is padded in the batch; scores agree up to rounding."""
    rows = data.target.index(data.video[:8])
    rows[0, 20:] = -1
    together = trained.predict(data.gather(rows, torch.arange(8)))
    alone = [
        trained.predict(data.gather(rows[i : i + 1, : 20 if i == 0 else 32], torch.tensor([i])))[0] for i in range(8)
    ]
    for one, many in zip(alone, together, strict=True):
        one, many = (torch.tensor(line["pred_relevant_windows"]) for line in (one, many))
        torch.testing.assert_close(one[:, 2], many[:, 2], rtol=1e-4, atol=1e-5)
        clear = (one[:, 2].diff().abs() > 1e-4).cumprod(0).sum()  # the order is certain up to the first near tie
        milliseconds = (1e3 * line[:clear, :2].double() for line in (one, many))  # rounded, so they may differ by one
        torch.testing.assert_close(*(x.round() for x in milliseconds), rtol=0, atol=1)
    assert max(w[1] for w in together[0]["pred_relevant_windows"]) <= 20 * 2.0


def test_predictions_are_lines_of_a_submission(trained, data):
    batch = data.batch(range(4))
    for line, sample in zip(trained.predict(batch), batch.samples, strict=True):
        assert (line["qid"], line["query"], line["vid"]) == (sample.qid, sample.query, sample.vid)
        assert 0 < len(line["pred_relevant_windows"]) <= trained.max_windows
        assert len(line.get("pred_saliency_scores", [0] * 32)) == 32
        scores = [score for _, _, score in line["pred_relevant_windows"]]
        assert scores == sorted(scores, reverse=True)
        for start, end, _ in line["pred_relevant_windows"]:
            assert 0 <= start <= end <= sample.duration
            assert start < end or trained.round_s  # a rounded window may have length 0


def test_predicting_does_not_change_the_training_mode(trained, data):
    trained.train()
    trained.predict(data.batch([0]))
    assert trained.training
    trained.eval()
    trained.predict(data.batch([0]))
    assert not trained.training


@pytest.fixture
def toy_retriever(monkeypatch):
    toy.register(monkeypatch.setitem)
    return papers.build(papers.get("toy", "small"), Widths(target=16, query=12, joint=16))


def test_a_model_gets_no_labels_and_no_annotations_to_predict_from(toy_retriever):
    """The batch of the aligner has no labels, and its samples have no windows and no saliency."""
    batch = make_batch([8, 6])
    assert batch.labels is not None and all(sample.relevant_windows for sample in batch.samples)
    scored = [replace(s, relevant_clip_ids=[1], saliency_scores=[[4, 4, 4]], extra={"a": 1}) for s in batch.samples]
    toy_retriever.predict(replace(batch, samples=scored))
    (call,) = toy_retriever.aligner.calls
    assert call["labels"] is None
    assert [s.as_line().keys() for s in call["samples"]] == [{"qid", "query", "duration", "vid"}] * 2


def test_dropout_is_off_in_predictions(toy_retriever):
    toy_retriever.train()
    batch = make_batch([8, 6])
    assert toy_retriever.predict(batch) == toy_retriever.predict(batch)
    assert all((call["dropped"] == 1).all() for call in toy_retriever.aligner.calls) and toy_retriever.training


def test_saliency_scores_are_those_of_the_real_clips(toy_retriever):
    together = toy_retriever.predict(make_batch([5, 9, 3], pad_to=12))
    assert [len(line["pred_saliency_scores"]) for line in together] == [5, 9, 3]
    alone = toy_retriever.predict(make_batch([5]))
    assert together[0]["pred_saliency_scores"] == pytest.approx(alone[0]["pred_saliency_scores"], rel=1e-5)


def test_times_are_rounded_and_windows_limited_by_the_paper(sim):
    paper = papers.get("f2sgd", "small", kernel=5, channels=2, round_s=5.0, max_windows=3)
    for line, sample in zip(papers.build(paper, sim).predict(sim.batch(range(4))), sim.samples, strict=False):
        windows = line["pred_relevant_windows"]
        assert len(windows) == 3
        assert all(time in (0, sample.duration) or time % 5 == 0 for window in windows for time in window[:2])
        assert any(time % 2 == 1 for window in windows for time in window[:2]), (
            "all times are even, as on the grid of clips"
        )


class Fixed(nn.Module):
    """An aligner and detector in one that predicts fixed moments."""

    def __init__(self, spans, scores):
        super().__init__()
        self.moments = Moments(torch.tensor([spans]), torch.tensor([scores]), torch.tensor([[s > 0 for s in scores]]))

    def forward(self, *inputs):
        if len(inputs) == 2:
            return {}
        batch = inputs[0]
        return Aligned(batch.target, batch.target_mask, batch.query, batch.query_mask, batch.query[:, 0])

    def decode(self, outputs, batch):
        return self.moments


def fixed(spans, scores, **options):
    part = Fixed(spans, scores)
    return MomentRetriever(part, part, **options)


def test_seconds_are_fractions_of_the_clips_cut_to_the_duration(sim):
    """32 clips of 2 s in a video of 63.5 s: only the end of the last clip is cut."""
    batch = replace(sim.batch([0]), duration_s=torch.tensor([63.5]))
    lines = fixed([[0.25, 1.0], [0.5, 0.51]], [0.9, 0.123456789]).predict(batch)[0]
    torch.testing.assert_close(
        torch.tensor(lines["pred_relevant_windows"]), torch.tensor([[16.0, 63.5, 0.9], [32.0, 32.64, 0.123456789]])
    )
    assert "pred_saliency_scores" not in lines
    rounded = fixed([[0.251, 0.99]], [0.9], round_s=2.0).predict(batch)[0]
    assert rounded["pred_relevant_windows"][0][:2] == [16.0, 63.5]


def test_a_moment_that_starts_before_the_video_is_cut_to_0(sim):
    assert fixed([[-0.25, 0.5]], [0.9]).predict(sim.batch([0]))[0]["pred_relevant_windows"][0][:2] == [0.0, 32.0]


def test_times_on_the_grid_of_clips_are_exact_seconds():
    """41/75 in float32 times 150 s is 82.0000023, so that a moment could miss an IoU exactly at the threshold."""
    line = fixed([[41 / 75, 1.0]], [0.9]).predict(make_batch([75]))[0]
    assert line["pred_relevant_windows"][0][:2] == [82.0, 150.0]


def test_masked_moments_are_left_out_and_the_number_of_windows_is_limited(sim):
    spans, scores = [[0.0, 0.1 * k] for k in range(1, 5)], [0.4, 0.3, 0.2, 0.0]
    lines = fixed(spans, scores).predict(sim.batch([0]))[0]["pred_relevant_windows"]
    assert len(lines) == 3
    assert len(fixed(spans, scores, max_windows=2).predict(sim.batch([0]))[0]["pred_relevant_windows"]) == 2


QUICK = {"f2sgd": {"kernel": 5, "channels": 2}}
_FIRST = "detector.decoder.layers.0.self_attn."
# parameters of the papers that no loss reaches
IDLE = {
    "moment_detr": {"aligner.saliency.bias"},  # cancels in the comparison of two clips
    "qd_detr": {f"{_FIRST}{name}.weight" for name in ("q_content", "k_content", "value")},  # content starts at zero
}
IDLE["td_detr"] = IDLE["qd_detr"]
# of a shift of all clips, which cancels in comparisons of two clips and in a softmax; what is left is rounding, or 0
ROUNDING = {"amr": {"aligner.saliency.bias"}}


@pytest.mark.parametrize("name", papers.PAPERS)
def test_every_parameter_learns(name):
    """At the third step, because a last layer that starts at zero passes no gradient on in the first."""
    torch.manual_seed(0)
    paper = papers.get(name, "small", **QUICK.get(name, {}))
    data = papers.open_split(paper, "sim", split="train", n=32)
    retriever = papers.build(paper, data)
    optimiser, batch = torch.optim.Adam(retriever.parameters(), 1e-2), data.batch(range(32))
    for _ in range(3):
        optimiser.zero_grad()
        sum(retriever.losses(*retriever(batch), batch).values()).backward()
        optimiser.step()
    unchanged = {n for n, p in retriever.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert unchanged - ROUNDING.get(name, set()) == IDLE.get(name, set())


@pytest.mark.parametrize("name", papers.PAPERS)
@torch.no_grad()
def test_predictions_are_decoded_from_outputs_of_the_whole_network(name):
    """A detector may compute only what `decode` reads; moments and scores are those of all its outputs.

    With other weights than the first, whose scores are so close that rounding changes their order.
    """
    batch = make_batch([9, 6, 12], motion=8)
    model = shaken(papers.build(papers.get(name, "small", **QUICK.get(name, {})), Widths(24, 12, 16)))
    aligned, outputs = model(batch)
    moments = model.detector.decode(outputs, batch)
    few = getattr(model.detector, "decodable", model.detector)(aligned, batch)
    ours = model.detector.decode(few, batch)
    for field in ("spans", "scores", "mask"):
        torch.testing.assert_close(getattr(ours, field), getattr(moments, field), rtol=1e-5, atol=1e-6)
    assert few.keys() <= outputs.keys() - {"masks", "states"}


@pytest.mark.parametrize("aligner", papers.ALIGNERS)
@pytest.mark.parametrize("detector", papers.DETECTORS)
def test_every_aligner_works_with_every_detector(aligner, detector):
    """They are built, have gradients and predict."""
    batch = make_batch([9, 6, 12], motion=8)
    retriever = papers.build(papers.get("f2sgd", "small", aligner=aligner, detector=detector), Widths(24, 12, 16))
    sum(retriever.losses(*retriever(batch), batch).values()).backward()
    lines = retriever.predict(batch)
    assert [0 < len(line["pred_relevant_windows"]) <= 10 for line in lines] == [True] * 3


@pytest.mark.parametrize("base", papers.PAPERS)
def test_another_detector_trains_with_the_stages_of_the_paper(base):
    """The paper's weights of missing loss terms are ignored; such weights of a caller are refused."""
    settings = {"detector": "similarity_map", "epochs": 1, "kernel": 3, "channels": 2}
    stages = papers.PAPERS[base].stages
    # only detectors with moment queries can have a second set
    settings |= {f"{s.name}.{field}": None for s in stages for field in ("prepare", "teacher") if getattr(s, field)}
    paper = papers.get(base, "small", **settings)
    data = papers.open_split(paper, "sim", split="train", n=8, streams="joint")
    fit(papers.build(paper, data), data, None, paper, device="cpu", progress=False)
    weighted = papers.get(base, "small", **settings, weights={"map": 1.0, "fq": 10.0})
    with pytest.raises(
        ValueError, match=r"weights of stage '\w+' name \['fq'\], which are no loss terms; the terms are"
    ):
        fit(papers.build(weighted, data), data, None, weighted, device="cpu", progress=False)


def test_the_retriever_inside_of_wrappers_is_found():
    retriever = papers.build(papers.get("qd_detr", "small"), Widths(target=24, query=12, joint=16))
    compiled = torch.compile(retriever)
    for model in (retriever, compiled, nn.DataParallel(retriever), nn.DataParallel(compiled)):
        assert unwrapped(model) is retriever
    other = nn.Linear(1, 1)
    assert unwrapped(other) is other


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapped_retriever_trains_and_goes_on_as_the_one_inside(wrap, sim, tmp_path):
    paper = papers.get("qd_detr", "small", epochs=1)
    bytes_of = []
    for name, around in (("plain", lambda model: model), ("wrapped", wrap)):
        for _ in range(2):  # the second time it goes on from the end
            fit(around(papers.build(paper, sim)), sim, None, paper, out_dir=tmp_path / name, device="cpu")
        bytes_of += [file.read_bytes() for file in (tmp_path / name).rglob("last.safetensors")]
    assert len(bytes_of) == 2 and bytes_of[0] == bytes_of[1]


def test_a_video_longer_than_those_of_the_training_is_predicted_with_a_warning(tmp_path):
    """Once a call; the length is recorded by `fit` and in checkpoints, and unknown for an untrained model."""
    paper = papers.get("univtg", "small", epochs=1)
    data = papers.open_split(paper, "sim", split="train", n=8)
    retriever = papers.build(paper, data)
    longer = data.gather(data.target.index(data.video[:2]).repeat(1, 2), torch.arange(2), labels=data.labels([0, 1]))
    expected = retriever.predict(longer)
    assert len(expected) == 2 and retriever.training_data is None
    fit(retriever, data, None, paper, out_dir=tmp_path / "run", device="cpu", progress=False)
    assert retriever.training_data.clips == 32 and retriever.predict(data.batch([0, 1]))
    for model in (retriever, checkpoint.load(tmp_path / "run" / "train" / "best")):
        with pytest.warns(UserWarning, match="has 64 clips, and the longest of the training had 32.* mrlib.video.find"):
            lines = model.predict(longer)
        assert model.lines_of(longer) == lines


def test_a_dataset_of_longer_videos_is_predicted_with_one_warning(sim):
    """`fit` says nothing of longer validation videos: their scores show what they are worth."""
    paper = papers.get("univtg", "small", epochs=1, streams="joint")
    lengths = torch.full((len(sim.target),), 20)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    rows = sim.target.rows.view(len(sim.target), 32, -1)[:, :20].flatten(0, 1)
    short = replace(sim, target=Bank(rows, offsets)).subset(range(8))
    retriever = papers.build(paper, short)
    fit(retriever, short, sim.subset(range(8)), paper, device="cpu", progress=False)
    with pytest.warns(UserWarning, match="has 32 clips, and the longest of the training had 20") as caught:
        predict_all(retriever, sim.subset(range(8)), batch_size=2)
    assert len(caught) == 1
