"""Queries with nothing to find, in every loss, augmenter and training run: they are background, and nothing else."""

from dataclasses import replace

import pytest
import torch

from mrlib import audit, papers, train
from mrlib.data import Widths, open_dataset
from mrlib.detect.pyramid import points, window_of_point
from mrlib.ops.draw import Draw
from tests.support.batches import make_batch
from tests.support.runs import open_world, run, small, trained

WINDOWS = [[(1, 2)], [(3, 4)], [(4, 5), (7, 9)], [(0, 1)], [], []]  # the last two queries have nothing to find
ONE_CLIP = [w[:1] for w in WINDOWS]  # [UniVTG] draws a relevant clip of every sample
REAL = 4
PAIRS = [(name, "dab") for name in papers.ALIGNERS] + [("text_to_video", name) for name in papers.DETECTORS]


def batch_of(windows=WINDOWS, **options):
    """Six videos, with pairs of clips and negative queries that stay inside the first four and the last two."""
    batch = make_batch([9, 4, 12, 1, 7, 5], motion=8, words=6, windows=windows, **options)
    pairs = torch.tensor([[[1, 0]], [[3, 2]], [[4, 0]], [[-1, -1]], [[-1, -1]], [[-1, -1]]])
    wrong = batch.target_mask & ~batch.labels.relevant & (torch.arange(batch.target.shape[1]) % 2 == 0)
    negative = torch.tensor([1, 2, 3, 0, 5, 4])
    answered = torch.tensor([bool(w) for w in windows])
    labels = replace(batch.labels, pairs=pairs, wrong=wrong, negative=negative, saliency_mask=answered)
    return replace(batch, labels=labels)


def retriever(aligner, detector, **options):
    narrow = {} if aligner in ("anchor", "raw", "concat") else {"width": 16, "hidden": 24}
    paper = papers.get("qd_detr", "small", aligner=aligner, detector=detector, **narrow | options)
    return papers.build(paper, Widths(24, 12, 16), seed=3).eval()


@torch.no_grad()
def terms_of(model, batch):
    return {name: value.item() for name, value in model.losses(*model(batch), batch).items()}


def test_the_labels_say_which_queries_have_nothing_to_find():
    """Clips labelled without windows [TVSum] are an answer too."""
    labels = batch_of().labels
    assert labels.answered.tolist() == [True, True, True, True, False, False]
    assert replace(labels, saliency=labels.saliency + 1).answered.all()


@pytest.mark.parametrize(("aligner", "detector"), PAIRS)
def test_batches_of_null_queries_give_finite_losses_and_gradients(aligner, detector):
    for windows in (WINDOWS, [[]] * 6):
        model, batch = retriever(aligner, detector).train(), batch_of(windows)
        for labels in (batch.labels, replace(batch.labels, pairs=None, negative=None)):
            given = replace(batch, labels=labels)
            terms = model.losses(*model(given), given)
            assert all(term.isfinite() for term in terms.values())
            sum(terms.values()).backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# how often the part of a sample counts in the mean of a term; terms that are not listed leave null queries out
SAMPLES = ("contrast", "negative", "class", "map", "words_contrast", "words_negative", "quality")
CLIPS = ("ctc", "fg", "words_match")


def weight_of(term, batch):
    n = batch.lengths
    if term in SAMPLES:
        return len(batch)
    if term in CLIPS:
        return n.sum().item()
    if term == "overlap":
        return (n * (n + 1) // 2).sum().item()
    if term == "focal":
        grid = points(batch.target.shape[1], 3)
        spans = batch.labels.spans, batch.labels.span_mask
        return max(1, window_of_point(*spans, n.float(), *grid, 3)[0].sum().item())
    return 1


@pytest.mark.parametrize(
    ("aligner", "detector", "options"),
    [(aligner, detector, {"levels": 3} if detector == "pyramid" else {}) for aligner, detector in PAIRS]
    + [("trilinear", "dab_quality", {"against": "video"}), ("dual_stage", "boundary", {})]
    + [("joint_memory", "detr", {"contrast_width": 8})],
)
def test_null_queries_change_the_losses_of_other_queries_by_their_share_only(aligner, detector, options):
    """The mean over the batch is that of the other queries and that of the null queries, each weighted by its count."""
    model, batch = retriever(aligner, detector, **options), batch_of(ONE_CLIP if aligner == "joint" else WINDOWS)
    both, real, null = (terms_of(model, part) for part in (batch, batch[:REAL], batch[REAL:]))
    for name in set(both) - {"similarity"}:
        weights = [weight_of(name, part) for part in (batch, batch[:REAL], batch[REAL:])]
        if name == "focal":
            weights[0] = weights[1]  # null queries have no positive point
        expected = (real[name] * weights[1] + null[name] * weights[2]) / weights[0]
        assert both[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), name
        assert name in (*SAMPLES, *CLIPS, "overlap", "focal") or null[name] == 0, name


@pytest.mark.parametrize(
    ("aligner", "name"),
    [("uvcom", "similarity"), ("trilinear", "vtc"), ("joint", "inter"), ("joint", "intra")]
    + [("dual_stage", "align_pre"), ("dual_stage", "align_post")],
)
@torch.no_grad()
def test_contrasts_and_alignments_do_not_read_the_words_of_null_queries(aligner, name):
    """They bring a query and its video together, and a null query does not belong to its video."""
    model, batch = retriever(aligner, "dab"), batch_of(ONE_CLIP)
    changed = batch.query.clone()
    changed[REAL:] = changed[:2].flip(-1)
    other = replace(batch, query=changed * batch.query_mask[..., None])
    assert terms_of(model, other)[name] == terms_of(model, batch)[name]
    answered = replace(batch, labels=replace(batch.labels, saliency=batch.labels.saliency + 1))
    if aligner != "joint":  # which needs a relevant clip
        assert terms_of(model, answered)[name] != terms_of(model, batch)[name]


@pytest.mark.parametrize("detector", papers.DETECTORS)
def test_a_null_query_lowers_the_scores_of_its_moments(detector):
    """A step on null queries alone, which every detector takes as background."""
    options = {"zero_init": False} if detector == "similarity_map" else {}  # else all scores start at 0
    model, batch = retriever("text_to_video", detector, **options).train(), batch_of([[]] * 6)

    def scores():
        moments = model.detector.decode(model(batch)[1], batch)
        return moments.scores[moments.mask].mean().item()

    before, optimiser = scores(), torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(5):
        terms = model.losses(*model(batch), batch)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
    assert scores() < before


# ---- augmenters


def null_world(n=40, query="text", **options):
    streams = "joint" if query == "video" else None
    return open_dataset("sim", split="train", n=n, query=query, streams=streams, null=0.4, **options)


@pytest.mark.parametrize("name", [name for name in papers.AUGMENTERS if not name.startswith("clip")])
def test_augmenters_leave_null_queries_as_they_are(name):
    """A spliced video gets another query, which has an answer; all others keep their clips and have no windows."""
    data = null_world()
    null = torch.tensor([not s.relevant_windows for s in data.samples]).nonzero()[:, 0]
    for indices in (torch.arange(40), null):
        batch, plain = papers.AUGMENTERS[name](indices, data, Draw(3)), data.batch(indices)
        own = {s.qid: b for b, s in enumerate(plain.samples) if not s.relevant_windows}
        kept = 0
        for b, sample in enumerate(batch.samples):
            answered = bool(sample.relevant_windows)
            assert answered == bool(batch.labels.span_mask[b].any()) == bool(batch.labels.relevant[b].any())
            if not answered:
                kept += 1
                row, n = own[sample.qid], int(batch.lengths[b])
                assert torch.equal(batch.target[b, :n], plain.target[row, : int(plain.lengths[row])])
                assert not batch.labels.saliency_mask[b]
        assert kept == len(own) or name.startswith("splice")


@pytest.mark.parametrize("name", [name for name in papers.AUGMENTERS if name.startswith("clip")])
def test_a_random_clip_is_a_query_with_an_answer_in_every_video(name):
    """[MATR, pre-training] needs no annotation, so null queries take part like all others."""
    data = null_world(query="video")
    batch = papers.AUGMENTERS[name](torch.arange(40), data, Draw(3))
    assert batch.labels.span_mask.any(1).all() and all(sample.relevant_windows for sample in batch.samples)


# ---- training


def cases():
    """Every paper with each of its presets."""
    return [(name, preset) for name in papers.PAPERS for preset in (None, *papers.PRESETS.get(name, {}))]


@pytest.mark.parametrize(("name", "preset"), cases())
def test_every_paper_trains_an_epoch_on_data_with_null_queries(name, preset):
    paper = papers.get(name, "small", preset, epochs=1)
    data = [papers.open_split(paper, "sim", split=split, n=24, null=0.3) for split in ("train", "val")]
    data[1] = None if preset in ("tvsum", "youtube_highlights") else data[1]  # which keep an epoch by highlights
    model, history = trained(paper, data)
    losses = [value for row in history.rows for name, value in row.items() if name.startswith("loss")]
    assert losses and torch.tensor(losses).isfinite().all()
    lines = train.predict_all(model, data[0])
    assert len(lines) == 24 and all(line["pred_relevant_windows"] for line in lines)
    if data[1] is not None:
        assert {"AUROC", "Rej-F1@0.4", "G-mIoU@1", "mR+@5", "MR-full-mAP", "mIoU"} <= set(history.rows[-1])


def test_validation_on_null_queries_alone_is_refused_before_anything_is_trained(tmp_path):
    data, val = open_world()
    null = open_dataset("sim", split="val", n=60, null=0.5, streams="joint")
    null = null.subset([i for i, s in enumerate(null.samples) if not s.relevant_windows])
    with pytest.raises(ValueError, match="val data, sim val, has null queries only"):
        run((data, null), small(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_split_of_null_queries_alone_is_scored_by_what_it_says():
    """As the split that a trained model is scored on, or as a probe."""
    null = open_dataset("sim", split="val", n=60, null=0.5, streams="joint")
    null = null.subset([i for i, s in enumerate(null.samples) if not s.relevant_windows])
    scores = train.scores_of(train.predict_all(papers.build(small(), null), null), null)
    assert train.headline(scores).keys() == {
        *("AUROC", "Rej-F1@0.4", "Acc@0.4", "Rej-F1@0.6", "Acc@0.6", "G-mIoU@1", "G-mIoU@3", "G-mIoU@5")
    }


def test_the_best_epoch_is_kept_by_any_of_the_new_scores():
    data, val = (open_dataset("sim", split=split, n=48, null=0.3, streams="joint") for split in ("train", "val"))
    history = run((data, val), small(keep="AUROC + G-mIoU@1"))[0]
    kept = history.result["brief"]["AUROC"] + history.result["brief"]["G-mIoU@1"]
    assert kept == pytest.approx(max(row["AUROC"] + row["G-mIoU@1"] for row in history.rows))


def test_audits_read_null_queries():
    data = null_world(n=12)
    model = retriever_for(data)
    assert not audit.reads_labels(model, data.batch(range(6)), data.batch(range(6, 12)))
    assert audit.padding_shifts(model, data.batch(range(3)), [32, 20, 9]) < 1e-4


def retriever_for(data):
    return papers.build(papers.get("qd_detr", "small", width=16, hidden=24), data)


@pytest.mark.parametrize("name", ["detr", "dab", "dab_quality"])
def test_detectors_with_a_class_head_learn_which_queries_have_nothing_to_find(name):
    """On the training samples themselves. Trained for all its epochs, QD-DETR has an AUROC of about 84 on new videos:
    `python -m mrlib.train qd_detr --data null=0.3 --score test --out FOLDER`.
    """
    paper = papers.get("qd_detr", "small", detector=name, width=32, hidden=32)
    data = papers.open_split(paper, "sim", split="train", n=16, null=0.5)
    model, batch = papers.build(paper, data), data.batch(range(16))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(80):
        optimiser.zero_grad()
        sum(model.losses(*model(batch), batch).values()).backward()
        optimiser.step()
    assert train.scores_of(model.predict(batch), data)["brief"]["AUROC"] > 80
