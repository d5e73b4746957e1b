"""Retrievers from wherever they were saved, and whether they fit an index."""

import json

import pytest
import torch
from torch import nn

from mrlib import checkpoint, papers
from mrlib.data import Widths, open_dataset
from mrlib.retriever import MomentRetriever, Training
from mrlib.video.retrievers import (
    facts_of,
    normalised,
    open_retriever,
    query_of_clip,
    query_of_words,
    require_fit,
    window_clips,
)
from tests.reference.official_detr import Official, make_opt
from tests.reference.official_univtg import save
from tests.support.runs import trained

RECIPE = {"encoder": "clip", "clip_s": 2.0, "width": 512, "joint": 512, "weights": "abc"}


def facts(**changes):
    usual = {"streams": {"clip": 512}, "clip_s": 2.0, "clips": 75, "normalize": ("clip", "query"), "query": "text"}
    return Training(**usual | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of two stages on simulated videos of 32 clips, and its retriever."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = open_dataset("sim", split="train", n=16, size="small", streams="joint", query="video")
    paper = papers.get("matr", "small", epochs=1)
    return folder, trained(paper, (data, None), folder)[0]


def equal(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_runs_folder_is_the_best_of_its_last_stage(run):
    folder, retriever = run
    for source in (folder, str(folder), folder / "finetune", folder / "finetune" / "best", retriever):
        opened = open_retriever(source)
        assert equal(opened, retriever) and opened.training_data == retriever.training_data
    assert open_retriever(folder / "finetune" / "best.json").training_data.query == "video"
    assert not equal(open_retriever(folder / "pretrain"), retriever)
    assert open_retriever(nn.DataParallel(retriever)) is retriever


def test_what_is_no_retriever_is_refused_with_what_to_give(run, tmp_path):
    folder, _ = run
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is no folder of a run: it has no run.json; give one of mrlib"):
        open_retriever(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere: no such retriever; give the folder of a run"):
        open_retriever(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="retriever must be a MomentRetriever, .* not Linear"):
        open_retriever(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="retriever must be a MomentRetriever, or where one was saved, not 3"):
        open_retriever(3)
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="text.ckpt"):
        open_retriever(tmp_path / "text.ckpt")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text((folder / "run.json").read_text())
    with pytest.raises(FileNotFoundError, match="its last stage, finetune, has no weights yet"):
        open_retriever(tmp_path / "begun")
    (tmp_path / "begun" / "run.json").write_text(json.dumps({"paper": []}))
    with pytest.raises(ValueError, match="run.json does not say which stages"):
        open_retriever(tmp_path / "begun")


def official(folder, **options):
    """A file of the official Moment-DETR on CLIP features alone, with the two columns of endpoints."""
    wide = {"v_feat_dim": 514, "t_feat_dim": 512, "clip_length": 2, "max_q_l": 32, "max_v_l": 75}
    network = Official(make_opt(**wide | {"v_feat_dirs": ["../features/clip_features"]} | options), "moment_detr")
    return save(network, folder / "model_best.ckpt")


def test_an_official_checkpoint_of_clip_alone_fits_a_clip_index(tmp_path):
    retriever = open_retriever(official(tmp_path))
    assert retriever.training_data == facts(tokens=32)
    require_fit(retriever.training_data, RECIPE, by_clip=False)
    assert retriever.recipe["widths"] == {"target": 512, "query": 512, "joint": None}
    assert window_clips(retriever.training_data, 2.0) == 75


def test_what_an_official_checkpoint_does_not_say_is_unknown(tmp_path):
    path = official(tmp_path, max_v_l=-1, v_feat_dirs=None, no_norm_vfeat=True)
    training = open_retriever(path).training_data
    assert (training.clips, training.streams) == (None, {"features": 512})
    assert training.normalize == ("query",)
    assert window_clips(training, 2.0) == 75 and window_clips(training, 0.5) == 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"streams": {"slowfast": 2304, "clip": 512}},
            r"was trained on slowfast \+ clip \(2304 \+ 512\), this index has clip \(512\)",
        ),
        ({"streams": {"clip": 768}}, r"was trained on clip \(768\), this index has clip \(512\)"),
        ({"streams": {"appearance": 512}}, r"trained on appearance \(512\), this index has clip \(512\) of another"),
        ({"encoder": RECIPE | {"encoder": "toy"}}, "trained on clip .* from encoder toy, this index has clip"),
        ({"encoder": RECIPE | {"weights": "xyz"}}, "from encoder clip, .* of another encoder"),
        ({"encoder": "xyz"}, "from encoder other weights"),
        ({"clip_s": 1.0}, "trained on clips of 1 s, this index has rows of 2 s"),
        ({"query": "video"}, "the retriever answers clips; give clip="),
    ],
)
def test_a_retriever_of_other_features_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        require_fit(facts(**changes), RECIPE, by_clip=False)


def test_a_retriever_of_sentences_refuses_a_clip():
    with pytest.raises(ValueError, match="the retriever answers sentences; give query="):
        require_fit(facts(), RECIPE, by_clip=True)


def test_features_of_the_same_or_an_unknown_encoder_fit():
    for changes in ({}, {"encoder": RECIPE}, {"encoder": "abc"}, {"streams": {"mine": 512}}, {"streams": {}}):
        require_fit(facts(**changes), RECIPE, by_clip=False)


def model(training=None, query=6, joint=16):
    retriever = papers.build(papers.get("qd_detr", "small"), Widths(16, query, joint))
    retriever.training_data = training
    return retriever


def test_a_sentence_is_normalised_and_cut_as_in_training():
    tokens, vector = 3 * torch.ones(5, 6), 2 * torch.ones(16)
    plain = query_of_words(model(facts(normalize=())), "a b", tokens, vector)
    assert torch.equal(plain.rows, tokens) and torch.equal(plain.vector, vector)
    usual = query_of_words(model(facts()), "a b", tokens, vector)
    assert torch.equal(usual.rows, normalised(tokens)) and torch.equal(usual.vector, normalised(vector[None])[0])
    with pytest.warns(UserWarning, match="the sentence has 5 tokens, and the retriever reads the first 3"):
        assert len(query_of_words(model(facts(tokens=3)), "a b", tokens, vector).rows) == 3
    with pytest.raises(ValueError, match="reads queries of width 6, this encoder gives 7"):
        query_of_words(model(facts()), "a b", torch.ones(5, 7), vector)


def test_a_clip_is_read_as_the_readers_of_datasets_read_it():
    """[MATR] Its vector is the normalised mean of its normalised rows."""
    features = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    query = query_of_clip(model(facts(query="video")), "q.mp4", features)
    rows = features / (features.norm(dim=1, keepdim=True) + 1e-5)
    mean = rows.mean(0)
    torch.testing.assert_close(query.rows, rows)
    torch.testing.assert_close(query.vector, mean / (mean.norm() + 1e-5))


def test_an_earlier_checkpoint_is_taken_for_usual(tmp_path):
    retriever = model()
    checkpoint.save(retriever, tmp_path / "old")
    training = facts_of(open_retriever(tmp_path / "old"))
    assert (training.streams, training.clips, training.query) == ({"features": 16}, None, "text")
    assert training.normalize == ("features", "query")
    bare = MomentRetriever(retriever.aligner, retriever.detector)
    assert facts_of(bare).streams == {} and facts_of(bare).query is None
