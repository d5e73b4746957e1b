"""The table of papers, and models built from it."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from mrlib.train import fit, predict_all

WIDTHS = Widths(target=24, query=12, joint=16)


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
    monkeypatch.setitem(papers.PAPERS, "two", papers.replace(base, name="two", stages=stages))
    assert [s.epochs for s in papers.get("two", epochs=5).stages] == [20, 5]
    assert [s.epochs for s in papers.get("two", **{"first.epochs": 3}).stages] == [3, 10]


def test_matr_has_the_papers_numbers():
    """[MATR, settings]: AdamW 1e-4, decay 1e-4, 200 epochs of 1,200 pairs, width 1,024, four layers, ten queries."""
    paper = papers.get("matr")
    pretrain, finetune = paper.stages
    assert (finetune.epochs, finetune.batch_size, pretrain.batch_size) == (200, 1200, 600)
    assert (pretrain.augment, pretrain.data, finetune.start) == ("clip_query", "videos", ("pretrain", "last"))
    for stage in paper.stages:
        o = stage.optimiser
        assert (o.method, o.lr, o.weight_decay, o.clip) == ("adamw", 1e-4, 1e-4, 0.1) and not stage.weights
    options = paper.aligner.options
    assert [options[k] for k in ("width", "layers", "decoder_layers", "moment_queries")] == [1024, 4, 4, 10]
    assert (options["dropout"], options["input_dropout"], paper.query) == (0.1, 0.5, "video")
    assert papers.get("matr", preset="paper").describe() == paper.describe()
    sports = papers.get("matr", preset="sportsmoments").stages[-1]
    assert (sports.epochs, sports.batch_size) == (40, 40)


@pytest.mark.parametrize("name", ["moment_detr", "qd_detr"])
def test_the_base_models_have_the_papers_numbers(name):
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
    """Without the stage that it was to start from, a stage goes on with the weights there are."""
    (only,) = papers.get("matr", "small", stages=["finetune"], epochs=3).stages
    assert (only.name, only.start, only.epochs) == ("finetune", None, 3)
    (first,) = papers.get("matr", stages=["pretrain"]).stages
    assert first.name == "pretrain"
    assert len(papers.get("matr", stages=["pretrain", "finetune"]).stages) == 2


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
def test_a_network_that_cannot_be_is_refused_when_it_is_built(name, settings, message):
    with pytest.raises(ValueError, match=message):
        papers.build(papers.get(name, "small", **settings), WIDTHS)


def test_what_already_stands_in_a_slot_stays_as_it_is():
    """Not as another paper, which has it first, would set it."""
    assert papers.get("univtg", detector="boundary").describe() == papers.get("univtg").describe()


def test_a_number_that_both_slots_have_is_set_in_both():
    paper = papers.get("matr", heads=2)
    assert paper.aligner.options["heads"] == paper.detector.options["heads"] == 2


def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_left_alone():
    paper = papers.get("f2sgd", "small")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (papers.build(paper, WIDTHS, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


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
def test_wrong_settings_are_refused_and_the_right_ones_listed(arguments, message):
    with pytest.raises(ValueError, match=message):
        papers.get(**arguments)


def test_stages_have_plain_names_of_their_own():
    stage = papers.PAPERS["f2sgd"].stages[0]
    with pytest.raises(ValueError, match="name of a stage must be a plain word"):
        papers.replace(stage, name="../elsewhere")
    with pytest.raises(ValueError, match="stages must be of different names"):
        papers.replace(papers.PAPERS["f2sgd"], stages=(stage, stage))


@pytest.mark.parametrize("settings", [{"kernel": 8}, {"kernel": -3}, {"channels": 0}, {"candidates": 0}])
def test_a_map_that_cannot_be_is_refused_when_it_is_built(settings):
    with pytest.raises(ValueError, match="has no centre|must be at least 1"):
        papers.build(papers.get("f2sgd", **settings), WIDTHS)


@pytest.mark.parametrize("scored", [True, False], ids=["with saliency", "windows only"])
@pytest.mark.parametrize("name", ["moment_detr", "qd_detr"])
def test_a_paper_of_sentences_learns_from_a_film_and_answers_it(name, scored):
    """One step teaches what reads the query; every pair is answered inside its video, and another film otherwise."""
    paper = papers.get(name, "small", query="video", streams="joint", width=16, hidden=16, heads=2, epochs=1)
    data = papers.open_split(paper, "sim", split="train", n=16)
    if not scored:
        bare = [replace(s, relevant_clip_ids=None, saliency_scores=None) for s in data.samples]
        data = replace(data, samples=bare, _annotations=None)
    retriever = papers.build(paper, data)
    weights = [p for p in retriever.aligner.project_query.parameters() if p.ndim == 2]
    before = [p.detach().clone() for p in weights]
    history = fit(retriever, data, None, paper, device="cpu", progress=False)
    (row,) = history.rows
    assert row["step"] == 1 and all(value > 0 for key, value in row.items() if key.startswith("loss"))
    for weight, old in zip(weights, before, strict=True):
        assert (weight - old).abs().max() > paper.stages[0].optimiser.lr / 2  # more than by its decay

    lines = predict_all(retriever, data)
    for line, sample in zip(lines, data.samples, strict=True):
        assert line["pred_relevant_windows"]
        assert all(0 <= start <= end <= sample.duration for start, end, _ in line["pred_relevant_windows"])
    others = predict_all(retriever, replace(data, query_item=data.query_item.roll(1)))
    scores = [[[w[2] for w in line["pred_relevant_windows"]] for line in found] for found in (lines, others)]
    assert all(own != other for own, other in zip(*scores, strict=True))


def test_files_take_the_papers_numbers_and_the_simulator_small_ones():
    assert papers.usual("f2sgd", "sim") == {"size": "small", "preset": None}
    assert papers.usual("f2sgd", "qvhighlights") == {"size": "paper", "preset": None}
    assert papers.usual("f2sgd", "charades_sta") == {"size": "paper", "preset": "charades_sta"}


def test_a_model_that_needs_joint_features_is_refused_without_them():
    with pytest.raises(ValueError, match="joint"):
        papers.build(papers.get("f2sgd"), Widths(target=24, query=12, joint=None))


def test_schedules_warm_up_and_fall_as_drawn():
    cosine = papers.Schedule("cosine", warmup=0.1)
    assert [round(cosine.factor(s, 100), 6) for s in (0, 4, 9, 10, 55)] == [0.1, 0.5, 1.0, 1.0, 0.5]
    assert cosine.factor(99, 100) < 1e-3
    step = papers.Schedule("step", drop=0.8)
    assert [step.factor(s, 10) for s in (0, 7, 8, 9)] == [1, 1, 0.1, 0.1]
    assert papers.Schedule().factor(3, 5) == 1


def test_what_may_be_none_can_be_set_so_by_name():
    """The clip of a gradient, a teacher, a preparation; and nothing else."""
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
    assert papers.get("td_detr").stages[0].augment_options == {}  # its own defaults, and nothing to record
    spliced = papers.get("amr", placement="official")
    assert [s.augment_options for s in spliced.stages] == [{}, {"placement": "official"}, {}]
    one = papers.get("amr", **{"distill.alpha": 1, "distill.augment": "synthesize"})  # in whatever order
    assert [s.augment_options for s in one.stages] == [{}, {}, {"alpha": 1}]


def test_another_augmenter_knows_nothing_of_the_options_before(monkeypatch):
    base = papers.PAPERS["td_detr"]
    mixed = papers.replace(base.stages[0], augment="synthesize", augment_options={"alpha": 0.5})
    monkeypatch.setitem(papers.PAPERS, "mixed", papers.replace(base, name="mixed", stages=(mixed,)))
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
def test_a_wrong_option_of_an_augmenter_is_refused_and_the_right_ones_listed(settings, message):
    with pytest.raises(ValueError, match=message):
        papers.get("td_detr", augment="synthesize", **settings)


def test_a_training_gives_the_augmenter_its_options(monkeypatch):
    seen = []

    def watching(indices, dataset, draw, *, alpha=0.7):
        seen.append(alpha)
        return papers.identity(indices, dataset, draw)

    monkeypatch.setitem(papers.AUGMENTERS, "watching", watching)
    paper = papers.get("f2sgd", "small", augment="watching", alpha=0.25, epochs=1)
    data = papers.open_split(paper, "sim", split="train", n=8)
    fit(papers.build(paper, data), data, None, paper, device="cpu", progress=False)
    assert len(seen) > 1 and set(seen) == {0.25}
