"""`papers.get`: the settings that change a paper, and those that it refuses."""

from dataclasses import replace

import pytest

from mrlib import papers
from mrlib.augment import identity
from mrlib.train import fit


def test_any_field_can_be_set_by_name():
    paper = papers.get(
        "f2sgd", "small", kernel=5, lr=3e-3, max_windows=4, **{"train.batch_size": 7, "train.warmup": 0.5}
    )
    stage = paper.stages[0]
    assert (paper.detector.options["kernel"], paper.max_windows) == (5, 4)
    assert (stage.optimiser.lr, stage.batch_size, stage.schedule.warmup) == (3e-3, 7, 0.5)
    assert papers.get(**paper.given) == paper


def test_epochs_set_the_last_stage_and_scale_the_others(monkeypatch):
    base = papers.PAPERS["f2sgd"]
    stages = (papers.Stage("first", 40, 8), papers.Stage("second", 10, 8))
    monkeypatch.setitem(papers.PAPERS, "two", replace(base, name="two", stages=stages))
    assert [s.epochs for s in papers.get("two", epochs=5).stages] == [20, 5]
    assert [s.epochs for s in papers.get("two", **{"first.epochs": 3}).stages] == [3, 10]


@pytest.mark.parametrize("name", ["moment_detr", "qd_detr"])
def test_base_models_have_the_numbers_of_their_papers(name):
    """[Moment-DETR], [QD-DETR]: AdamW 1e-4, 200 epochs of 32, ten queries; 10, 1 and 4 for L1, overlap and class."""
    paper = papers.get(name)
    (stage,) = paper.stages
    o = stage.optimiser
    assert (stage.epochs, stage.batch_size, o.method, o.lr, o.weight_decay, o.clip) == (
        200,
        32,
        "adamw",
        1e-4,
        1e-4,
        0.1,
    )
    assert (stage.weights, stage.schedule.curve) == ({"l1": 10, "giou": 1, "class": 4}, "constant")
    options = paper.detector.options
    assert [options[f"cost_{k}"] for k in ("l1", "giou", "class")] == [10, 1, 4]
    assert [options[k] for k in ("moment_queries", "decoder_layers", "background", "most_windows")] == [10, 2, 0.1, 5]
    for slot in (paper.aligner.options, options):
        assert [slot[k] for k in ("heads", "hidden", "dropout")] == [8, 1024, 0.1]
    assert [paper.aligner.options[k] for k in ("width", "layers", "input_dropout", "tef")] == [256, 2, 0.5, True]
    assert (paper.round_s, paper.max_windows) == (2.0, 10)
    small = papers.get(name, "small", dropout=0.3)
    assert small.aligner.options["dropout"] == small.detector.options["dropout"] == 0.3


def test_stages_can_be_left_out():
    """A stage whose starting stage is left out begins with the current weights."""
    (only,) = papers.get("matr", "small", stages=["finetune"], epochs=3).stages
    assert (only.name, only.start, only.epochs) == ("finetune", None, 3)
    (first,) = papers.get("matr", stages=["pretrain"]).stages
    assert first.name == "pretrain"
    assert len(papers.get("matr", stages=["pretrain", "finetune"]).stages) == 2


def test_naming_the_current_detector_changes_nothing():
    """Its options stay, though another paper is the first that has this detector."""
    assert papers.get("univtg", detector="boundary").describe() == papers.get("univtg").describe()


def test_an_option_of_aligner_and_detector_is_set_in_both():
    paper = papers.get("matr", heads=2)
    assert paper.aligner.options["heads"] == paper.detector.options["heads"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="nonsense"), "unknown paper 'nonsense'; known: f2sgd"),
        (dict(name="f2sgd", size="huge"), "unknown size 'huge'; known: paper, small"),
        (dict(name="f2sgd", preset="mars"), "unknown preset 'mars'"),
        (dict(name="f2sgd", epochs=0), "epochs must be a whole number from 1 on, not 0"),
        (dict(name="f2sgd", epochs=-3), "epochs must be a whole number from 1 on, not -3"),
        (dict(name="f2sgd", batch_size=0), "batch_size must be a whole number from 1 on"),
        (dict(name="f2sgd", kernal=9), "unknown setting 'kernal'"),
        (dict(name="f2sgd", aligner="anchors"), "unknown aligner 'anchors'; known: anchor, raw, concat"),
        ({"name": "f2sgd", "tune.lr": 1}, "has no stage 'tune'; it has train"),
        (dict(name="f2sgd", epochs=True), "epochs must be a whole number"),
        (dict(name="f2sgd", kernel="abc"), "kernel must be a whole number, not 'abc'"),
        (dict(name="f2sgd", lr="abc"), "lr must be a number, not 'abc'"),
        (dict(name="f2sgd", lr=-1.0), "lr must be a number from 0 on"),
        (dict(name="f2sgd", method="sgdd"), "method must be adam or adamw, not 'sgdd'"),
        (dict(name="f2sgd", curve="cosin"), "curve must be constant, cosine or step"),
        (dict(name="f2sgd", warmup=2.0), "warmup must be from 0 to 1, not 2.0"),
        (dict(name="f2sgd", clip=0), "clip must be None or a number above 0"),
        (dict(name="f2sgd", max_windows=0), "max_windows must be 1 or more"),
        (dict(name="f2sgd", round_s=0), "round_s must be None or seconds above 0"),
        (dict(name="f2sgd", reweight="yes"), "reweight must be true or false"),
        (dict(name="f2sgd", augment="mixup"), "augment must be one of identity, clip_query, clip_alone, splice"),
        (dict(name="matr", data="clips"), "data must be one of pairs, videos, ten_passes, not 'clips'"),
        (dict(name="matr", query="song"), "query must be text or video, not 'song'"),
        (dict(name="matr", stages=["train"]), "stages must be a list of some of pretrain, finetune"),
        (dict(name="matr", stages=[]), "stages must be a list of some of pretrain, finetune"),
        (dict(name="matr", weights=3), "weights must be numbers by the names of loss terms, not 3"),
        (dict(name="matr", weights={"fg": "much"}), "weights must be numbers by the names of loss terms"),
        (dict(name="matr", start="pretrain"), 'start must be None, or the name of a stage and "last" or "best"'),
        (dict(name="matr", streams=5), "streams must be None, a name or a list of names, not 5"),
        (dict(name="matr", round_s="abc"), "round_s must be None or seconds above 0, not 'abc'"),
        (dict(name="matr", aligner=["anchor"]), "unknown aligner"),
        (dict(name="matr", stages=[["pretrain"]]), "stages must be a list of some of pretrain, finetune"),
        (dict(name="f2sgd", augment=print), "augment must be a plain value"),
    ],
)
def test_wrong_settings_are_refused_with_a_list_of_the_valid_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        papers.get(**arguments)


def test_datasets_on_disk_use_the_papers_numbers_and_the_simulator_small_ones():
    assert papers.usual("f2sgd", "sim") == {"size": "small", "preset": None}
    assert papers.usual("f2sgd", "qvhighlights") == {"size": "paper", "preset": None}
    assert papers.usual("f2sgd", "charades_sta") == {"size": "paper", "preset": "charades_sta"}


def test_settings_whose_default_is_none_accept_none():
    """The largest norm of the gradient, a teacher, a preparation; other settings do not."""
    paper = papers.get("amr", **{"clip": None, "distill.teacher": None, "distill.prepare": None})
    assert [s.optimiser.clip for s in paper.stages] == [None] * 3
    assert (paper.stages[-1].teacher, paper.stages[-1].prepare) == (None, None)
    with pytest.raises(ValueError, match=r"distill.augment must be text, not None"):
        papers.get("amr", **{"distill.augment": None})


def test_an_option_of_an_augmenter_is_set_by_name_in_every_stage_that_has_it():
    paper = papers.get("td_detr", augment="synthesize", alpha=0.5, partners="random")
    (stage,) = paper.stages
    assert stage.augment_options == {"alpha": 0.5, "partners": "random"}
    assert paper.describe()["stages"][0]["augment_options"] == stage.augment_options
    assert papers.get(**paper.given) == paper
    assert papers.get("td_detr").stages[0].augment_options == {}  # the defaults, which are not recorded
    spliced = papers.get("amr", placement="official")
    assert [s.augment_options for s in spliced.stages] == [{}, {"placement": "official"}, {}]
    one = papers.get("amr", **{"distill.alpha": 1, "distill.augment": "synthesize"})  # in any order
    assert [s.augment_options for s in one.stages] == [{}, {}, {"alpha": 1}]


def test_options_are_dropped_when_the_augmenter_changes(monkeypatch):
    base = papers.PAPERS["td_detr"]
    mixed = replace(base.stages[0], augment="synthesize", augment_options={"alpha": 0.5})
    monkeypatch.setitem(papers.PAPERS, "mixed", replace(base, name="mixed", stages=(mixed,)))
    assert papers.get("mixed", augment="splice").stages[0].augment_options == {}
    assert papers.get("mixed", augment="synthesize").stages[0].augment_options == {"alpha": 0.5}
    assert papers.get("mixed", jitter=0).stages[0].augment_options == {"alpha": 0.5, "jitter": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partner": "random"}, "unknown setting 'partner'.* alpha, partners, jitter, originals"),
        ({"alpha": "half"}, "alpha must be a number, not 'half'"),
        ({"train.originals": 1}, "train.originals must be true or false, not 1"),
        ({"placement": "even"}, "unknown setting 'placement'"),
        ({"augment_options": {"placement": "even"}}, "augment_options must be a table of options of synthesize: alpha"),
        ({"augment_options": {"jitter": "much"}}, "jitter must be a number, not 'much'"),
        ({"augment_options": 3}, "augment_options must be a table of options of synthesize"),
    ],
)
def test_wrong_options_of_an_augmenter_are_refused_with_a_list_of_the_valid_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        papers.get("td_detr", augment="synthesize", **settings)


def test_fit_passes_the_options_of_the_augmenter(monkeypatch):
    alphas = []

    def watching(indices, dataset, draw, *, alpha=0.7):
        alphas.append(alpha)
        return identity(indices, dataset, draw)

    monkeypatch.setitem(papers.AUGMENTERS, "watching", watching)
    paper = papers.get("f2sgd", "small", augment="watching", alpha=0.25, epochs=1)
    data = papers.open_split(paper, "sim", split="train", n=8)
    fit(papers.build(paper, data), data, None, paper, device="cpu", progress=False)
    assert len(alphas) > 1 and set(alphas) == {0.25}
