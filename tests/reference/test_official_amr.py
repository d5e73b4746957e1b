"""Checkpoints of AMR, and the written-down network itself: its sizes, and what padding does to it."""

import math
from dataclasses import replace

import pytest
import torch

from mrlib import checkpoint, papers
from mrlib.checkpoint import load_official
from mrlib.data import Widths
from tests.reference.official_amr import (
    Official,
    alone,
    clip_losses,
    copy_feed_forwards,
    distill,
    layer_losses,
    make_opt,
    matching,
    random_network,
)
from tests.reference.official_univtg import save
from tests.support.batches import make_batch
from tests.support.modules import count

RELEASED = {"hidden_dim": 256, "dim_feedforward": 1024, "dec_layers": 4, "nheads": 8, "num_queries": 10, "max_q_l": 32}
RELEASED |= {"v_feat_dim": 5378, "t_feat_dim": 2048}
HEADS = ("span_embed", "class_embed", "iou_head")
PREDICTED = ("logits", "spans", "iou", "masks", "states", "saliency")
SAMPLE_AXIS = dict.fromkeys(("logits", "spans", "iou", "masks", "states"), 1)


def rows_of(lengths, width, seed):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=g) for n in lengths]


def targets_and_queries(lengths, words):
    return rows_of(lengths, 7, seed=1), rows_of(words, 6, seed=2)


def apart(a, b, sample):
    """The largest difference in what is predicted for a sample."""
    return max((a[k] - b[k]).select(SAMPLE_AXIS.get(k, 0), sample).abs().max().item() for k in PREDICTED)


@pytest.mark.parametrize(("stage", "tensors", "size"), [("pretrain", 271, 11_801_641), ("distill", 288, 13_903_933)])
def test_tensors_and_parameters_are_as_many_as_released(stage, tensors, size):
    """[AMR stage 1], [AMR stage 2] Module by module; what is stored under two names counts once."""
    with torch.device("meta"):
        network = Official(make_opt(**RELEASED, stage=stage))
    assert (len(network.state_dict()), count(network)) == (tensors, size)
    parts = {"input_vid_proj": 1_454_084, "input_txt_proj": 594_944, "fuser": 394_752, "span_embed": 132_098}
    parts |= {"class_embed": 514, "iou_head": 257, "mask_head": 197_376, "saliency_proj1": 65_792, "query_embed": 20}
    parts |= {"txt_position_embed": 8_704}
    for name, expected in parts.items():
        assert count(getattr(network, name)) == expected, name
    second = 525_568 if stage == "distill" else 0
    layers = network.transformer.decoder.layers
    assert [count(layer) - second for layer in layers] == [1_382_401, 1_316_609, 1_316_609, 1_316_609]
    assert [count(network.transformer.t2v_encoder), count(network.transformer.encoder)] == [1_579_522, 1_579_522]


def test_layers_from_text_to_video_are_two_however_deep_the_encoder():
    """[AMR stage 1] As released: `enc_layers` counts those of the encoder."""
    for layers in (1, 3):
        transformer = Official(make_opt(enc_layers=layers)).transformer
        assert (len(transformer.t2v_encoder.layers), len(transformer.encoder.layers)) == (2, layers)


def test_three_heads_are_stored_twice():
    """[AMR stage 1] Ten tensors under another name share memory with their originals."""
    tensors = Official(make_opt()).state_dict()
    aliases = [n for n in tensors if n.startswith(tuple(f"transformer.decoder.{x}" for x in HEADS))]
    assert len(aliases) == 10
    for name in aliases:
        assert tensors[name].data_ptr() == tensors[name.removeprefix("transformer.decoder.")].data_ptr()


@pytest.mark.parametrize(
    ("stage", "idle"), [("pretrain", ["txt_position_embed"]), ("distill", ["query_embed", "txt_position_embed"])]
)
def test_predictions_read_every_tensor_but_the_positions_of_words_and_later_the_first_queries(stage, idle):
    """[AMR stage 1], [AMR stage 2] As released."""
    network = random_network(make_opt(stage=stage))
    out = network(*targets_and_queries([6, 9], [4, 3]))
    sum(out[name].sum() for name in PREDICTED).backward()
    unread = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is None}
    assert sorted(unread) == idle


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
@torch.no_grad()
def test_a_sample_alone_is_the_sample_in_a_batch_without_padding(stage):
    network = random_network(make_opt(stage=stage))
    given = targets_and_queries([7, 7, 7], [5, 5, 5])
    together, each = network(*given), alone(network, *given)
    assert together.keys() == each.keys()
    for name, expected in together.items():
        torch.testing.assert_close(each[name], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_of_words_is_not_seen_and_padding_of_clips_by_its_own_sample_and_both_by_others():
    """[AMR, padding] As released: the softmax over padded clips, and the mask that lands on other samples."""
    network = random_network(make_opt())
    for lengths, words, seen in (
        ([7, 7, 7], [5, 2, 4], []),
        ([7, 4, 5], [5, 5, 5], [1, 2]),
        ([7, 4, 5], [5, 2, 5], [0, 1, 2]),
    ):
        given = targets_and_queries(lengths, words)
        together, each = network(*given), alone(network, *given)
        for b in range(3):
            n = lengths[b]
            cut = [
                {k: x[k][..., :n] if k in ("masks", "saliency") else x[k] for k in PREDICTED} for x in (together, each)
            ]
            difference = apart(*cut, b)
            assert difference > 1e-3 if b in seen else difference < 1e-5, (lengths, words, b)


@torch.no_grad()
def test_the_fusion_does_not_see_padding():
    """[AMR, fusion] Of clips or of words, in either softmax; nor in the sum over words."""
    network = random_network(make_opt())
    video, text = rows_of([7], 16, seed=1)[0], rows_of([5], 16, seed=2)[0]
    torch.testing.assert_close(network._fuse(video, text, 4, 3)[:4], network._fuse(video[:4], text[:3], 4, 3))


@torch.no_grad()
def test_the_mean_of_a_video_is_taken_over_padding_too():
    """[AMR, projections] As released."""
    network, given = random_network(make_opt()), targets_and_queries([7, 4], [5, 5])
    together, each = network(*given), alone(network, *given)
    torch.testing.assert_close(each["mean"][1], together["video"][1, :4].mean(0))
    torch.testing.assert_close(together["mean"][1], together["video"][1].mean(0))
    assert not torch.allclose(each["mean"][1], together["mean"][1], atol=1e-3)


@torch.no_grad()
def test_active_queries_begin_as_the_original_ones_and_part_with_the_feed_forwards():
    """[AMR stage 2] Two passes from the same anchors."""
    network, given = random_network(make_opt(stage="distill")), targets_and_queries([7, 4], [5, 2])
    K = network.opt.num_queries
    halves = {name: network(*given)[name].split(K, 2) for name in SAMPLE_AXIS}
    assert all(not torch.allclose(*pair) for pair in halves.values())
    copy_feed_forwards(network)
    for name, x in network(*given).items():
        if name in SAMPLE_AXIS:
            assert x.shape[2] == 2 * K
            torch.testing.assert_close(*x.split(K, 2), rtol=0, atol=0)


@torch.no_grad()
def test_original_queries_of_stage_2_are_those_of_stage_1_with_other_anchors():
    """[AMR stage 2] The ordinary feed-forward and all else unchanged; the anchors are `new_query_embed`."""
    second, given = random_network(make_opt(stage="distill")), targets_and_queries([7, 4], [5, 2])
    first = Official(make_opt()).eval()
    tensors = {k: v for k, v in second.state_dict().items() if "active" not in k and k != "new_query_embed.weight"}
    first.load_state_dict(tensors | {"query_embed.weight": second.new_query_embed.weight})
    one, two = first(*given), second(*given)
    for name in SAMPLE_AXIS:
        torch.testing.assert_close(two[name][:, :, : one[name].shape[2]], one[name])


@torch.no_grad()
def test_the_last_layer_shows_the_masks_of_the_layer_before():
    """[AMR, heads] As released; with its own, nothing else changes."""
    network, given = random_network(make_opt()), targets_and_queries([7, 4], [5, 2])
    released = network(*given)
    network.own_masks = True
    own = network(*given)
    assert released["masks"][-1].equal(released["masks"][-2])
    assert not torch.allclose(own["masks"][-1], own["masks"][-2])
    assert own["masks"][:-1].equal(released["masks"][:-1])
    assert all(own[name].equal(released[name]) for name in released if name != "masks")


def test_the_matching_prefers_the_query_whose_mask_covers_the_window():
    """[AMR, losses] Of two that are otherwise the same; and a nearer span where masks are."""
    logits, spans = torch.zeros(2, 2), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    masks = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9]])
    assert matching(logits, spans, masks, [(0.5, 1.0)], 4) == (1,)
    assert matching(logits, spans, masks, [(0.5, 1.0), (0.0, 0.5)], 4) == (1, 0)
    near = torch.tensor([[0.5, 0.5], [0.7, 0.5]])
    assert matching(logits, near, masks[[0, 0]], [(0.5, 1.0)], 4) == (1,)


def outputs():
    """Of two samples, one query and one layer; the second has two real clips and one padded."""
    there = torch.tensor([[True, True, True], [True, True, False]])
    return {
        "logits": torch.zeros(1, 2, 1, 2),
        "spans": torch.tensor([[[[0.5, 1.0]], [[0.25, 0.5]]]]),
        "iou": torch.zeros(1, 2, 1),
        "masks": torch.full((1, 2, 1, 3), 0.5),
        "saliency": torch.zeros(2, 3),
        "mask": there,
        "video": torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]]]),
        "mean": torch.tensor([[0.0, 1.0], [2.0, 0.0]]),
        "text": torch.tensor([[[0.0, 2.0], [9.0, 9.0]], [[4.0, 0.0], [0.0, 1.0]]]),
        "text_mask": torch.tensor([[True, False], [True, True]]),
        "sentence": torch.tensor([[0.0, 2.0], [0.0, 1.0]]),
    }


WINDOWS = [[(0.0, 1 / 3)], [(0.0, 0.5)]]


def test_terms_of_queries_are_those_worked_by_hand():
    """[AMR, losses] The second window is met, the first is a third of its span."""
    terms = layer_losses(outputs(), WINDOWS, 0)
    assert terms["l1"] == pytest.approx((1 / 3 + 2 / 3) / 4)
    assert terms["giou"] == pytest.approx((1 - 1 / 3) / 2)
    assert terms["class"] == pytest.approx(math.log(2) / 8)  # 0.25 of the wanted logit, 0.75 of the other, times 0.5^2
    assert terms["mask"] == pytest.approx(1 - 0.5 / 2)  # three clips of one half each, the padded one too
    assert terms["iou"] == pytest.approx(((0.5 - 1 / 3) ** 2 + 0.5**2) / 2)


def test_terms_of_clips_are_those_worked_by_hand():
    """[AMR, losses] Every direction is along an axis, so that every cosine is 0, 1, or of the mean of two words 1/2."""
    wrong = torch.tensor([[False, True, True], [False, False, False]])
    pairs = torch.tensor([[[0, 1]], [[1, 0]]])
    scores = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    out = outputs()
    out["saliency"][0, 0] = 0.5
    terms = clip_losses(out, WINDOWS, pairs, scores, wrong)
    assert terms["margin"] == pytest.approx(0.2)  # 0 and 0.2, times 2, over B
    assert terms["contrast"] == pytest.approx(2 * math.log(1 + 2 * math.exp(-1)) / 12 / 2)
    k = 1 / 0.07
    low, high = math.log1p(math.exp(-k)), math.log1p(math.exp(k))
    # sentences (0,1), (0,1) and videos (0,1), (1,0): to videos right and wrong, to sentences even both times
    assert terms["vtc"] == pytest.approx((low + high + 2 * math.log(2)) / 4, rel=1e-5)
    half = [math.log1p(math.exp(-k / 2)), math.log1p(math.exp(k / 2))]  # relevant, other: both clips at 1/2
    assert terms["ctc"] == pytest.approx((math.log(2) + 2 * high + sum(half) + math.log(2)) / 6, rel=1e-5)
    # sample 0: p = 0, n = 1; sample 1: p = 1, nothing wrong
    assert terms["discriminate"] == pytest.approx((high + low) / 2, rel=1e-5)
    unlike = clip_losses(out, [WINDOWS[0], [(0.5, 1.0)]], pairs, scores, wrong)  # sample 1: p = 0, nothing wrong
    assert unlike["discriminate"] == pytest.approx((high + math.log(2)) / 2, rel=1e-5)
    corrected = clip_losses(out, WINDOWS, pairs, scores, wrong, corrected=True)
    assert corrected["ctc"] == pytest.approx((math.log(2) + 2 * high + sum(half)) / 5, rel=1e-5)
    assert corrected["discriminate"] == pytest.approx(high, rel=1e-5)
    same = ("margin", "contrast", "vtc")
    assert [corrected[name] for name in same] == [terms[name] for name in same]


def test_the_states_of_original_queries_are_held_to_the_teachers_and_active_ones_are_free():
    """[AMR stage 2] One less the mean cosine; lengths do not matter."""
    teacher = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    active = torch.randn(2, 3, 4, 5)
    assert distill(torch.cat([3 * teacher, active], 2), teacher) == pytest.approx(0, abs=1e-6)
    assert distill(torch.cat([-teacher, active], 2), teacher) == pytest.approx(2)
    turned = teacher.clone()
    turned[0] *= -1
    assert distill(torch.cat([turned, active], 2), torch.cat([teacher, active], 2)) == pytest.approx(1)


# ---- our network with their weights

OPTIONS = {
    "as released": {},
    "wide": {"hidden_dim": 24, "dim_feedforward": 40, "nheads": 6},
    "deep": {"enc_layers": 3, "dec_layers": 3},
    "few layers, one head, one query": {"enc_layers": 1, "dec_layers": 2, "nheads": 1, "num_queries": 1},
    "one projection": {"n_input_proj": 1},
    "three projections": {"n_input_proj": 3},
    "no endpoints": {"ctx_mode": "video", "v_feat_dim": 7},
}
STAGES = ("pretrain", "distill")
LENGTHS, MOMENTS = [9, 4, 12, 7], [[(2, 6), (7, 9)], [(0, 3)], [(0, 2), (3, 4), (7, 12)], [(0, 7)]]


def labelled_batch(lengths=LENGTHS, windows=MOMENTS, **options):
    """A batch for the small networks with every label that a loss reads; the reference gets rows without padding."""
    batch = make_batch(lengths, joint=None, motion=7, words=7, query=6, seed=1, windows=windows, **options)
    g = torch.Generator().manual_seed(3)
    labels, T = batch.labels, batch.target.shape[1]
    scores = torch.randint(1, 12, (len(lengths), T), generator=g) * labels.relevant
    wrong = (torch.rand(len(lengths), T, generator=g) < 0.3) & ~labels.relevant & batch.target_mask
    wrong[1] = False  # nothing was mined here
    pairs = torch.tensor([[[3, 2], [4, 0]], [[1, 0], [2, 3]], [[11, 0], [3, 5]], [[6, 0], [1, 2]]])
    batch = replace(batch, labels=replace(labels, saliency=scores.float(), wrong=wrong, pairs=pairs))
    targets = [x[m] for x, m in zip(batch.target, batch.target_mask, strict=True)]
    queries = [x[m] for x, m in zip(batch.query, batch.query_mask, strict=True)]
    return batch, targets, queries


def saved(tmp_path, **options):
    network = random_network(make_opt(**options))
    return network, save(network, tmp_path / "model.ckpt")


def said(retriever, batch):
    aligned, outputs = retriever(batch)
    names = {"logits": "logits", "spans_cw": "spans", "quality": "iou", "masks": "masks", "states": "states"}
    return {theirs: outputs[ours] for ours, theirs in names.items()} | {"saliency": aligned.saliency}


def compare(ours, theirs, mask):
    """The masks and the saliency on real clips; elsewhere nobody reads them."""
    for name in ("logits", "spans", "iou", "states"):
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name, axes in (("saliency", mask), ("masks", mask[None, :, None].expand_as(ours["masks"]))):
        torch.testing.assert_close(ours[name][axes], theirs[name][axes], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_outputs_are_those_of_the_official_network(name, stage, tmp_path):
    """[AMR stage 1], [AMR stage 2] A padded batch as released; corrected, each sample as if it were alone."""
    network, path = saved(tmp_path, stage=stage, **OPTIONS[name])
    for given in ({}, {"lengths": [3, 5, 2], "windows": None}):
        batch, targets, queries = (
            labelled_batch()
            if not given
            else (b := make_batch([3, 5, 2], joint=None, motion=7, words=11, query=6), *rows_without_padding(b))
        )
        compare(said(load_official(path, "amr"), batch), network(targets, queries), batch.target_mask)
        corrected = said(load_official(path, "amr", corrected=True), batch)
        compare(corrected, alone(network, targets, queries), batch.target_mask)


def rows_without_padding(batch):
    pairs = ((batch.target, batch.target_mask), (batch.query, batch.query_mask))
    return [[x[m] for x, m in zip(rows, mask, strict=True)] for rows, mask in pairs]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("corrected", [False, True])
@torch.no_grad()
def test_losses_are_those_of_the_official_network(stage, corrected, tmp_path):
    """[AMR, losses] Matching by trying everything, sums by loops; every layer, every term, and what a teacher adds."""
    network, path = saved(tmp_path, stage=stage)
    batch, targets, queries = labelled_batch()
    windows = [[(s / n, e / n) for s, e in own] for own, n in zip(MOMENTS, LENGTHS, strict=True)]
    out = alone(network, targets, queries) if corrected else network(targets, queries)
    retriever = load_official(path, "amr", corrected)
    aligned, outputs = retriever(batch)
    matched = retriever.detector.match(outputs, retriever.detector.truth(batch))
    by_layer = retriever.detector.layer_losses(outputs, batch)
    for layer in range(len(out["logits"])):
        for b, own in enumerate(windows):
            found = matching(*(out[name][layer, b] for name in ("logits", "spans", "masks")), own, LENGTHS[b])
            assert matched[layer, b].tolist() == [*found, *[-1] * (3 - len(own))]
        expected = layer_losses(out, windows, layer)
        expected["quality"] = expected.pop("iou")
        if layer == len(out["logits"]) - 1:
            expected["mask"] = 0.0  # as released
        assert {name: x[layer].item() for name, x in by_layer.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    labels = batch.labels
    expected = clip_losses(out, windows, labels.pairs, labels.saliency, labels.wrong)
    if corrected:  # the discrimination of the preset stays that against the video
        told = clip_losses(out, windows, labels.pairs, labels.saliency, labels.wrong, corrected=True)
        expected["ctc"] = told["ctc"]
    found = {name: x.item() for name, x in retriever.aligner.losses(aligned, batch).items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    if stage == "distill":
        other = random_network(make_opt(stage=stage), seed=5)
        teacher = load_official(save(other, tmp_path / "teacher.ckpt"), "amr", corrected)(batch)[1]
        their = alone(other, targets, queries) if corrected else other(targets, queries)
        half = out["states"].shape[2] // 2
        terms = retriever.losses(aligned, outputs, batch, {"states": teacher["states"][:, :, :half]})
        assert terms["distill"].item() == pytest.approx(distill(out["states"], their["states"]), rel=1e-4)


@torch.no_grad()
def test_the_discrimination_of_the_paper_is_against_the_sentence_where_something_was_mined(tmp_path):
    """[AMR, losses] Only over the samples with mined clips."""
    network, path = saved(tmp_path)
    batch, targets, queries = labelled_batch()
    windows = [[(s / n, e / n) for s, e in own] for own, n in zip(MOMENTS, LENGTHS, strict=True)]
    labels, out = batch.labels, alone(network, targets, queries)
    aligner = load_official(path, "amr", corrected=True).aligner
    aligner.against = "sentence"
    found = aligner.losses(aligner(batch), batch)["discriminate"].item()
    expected = clip_losses(out, windows, labels.pairs, labels.saliency, labels.wrong, corrected=True)
    assert found == pytest.approx(expected["discriminate"], rel=1e-4)


@torch.no_grad()
def test_the_released_network_sees_batch_mates_and_padding_and_ours_does_not(tmp_path):
    """[AMR, padding] So that the two ways of loading are known to differ."""
    _, path = saved(tmp_path)
    batch, _, _ = labelled_batch()
    pair = [said(load_official(path, "amr", corrected=c), batch)["spans"] for c in (False, True)]
    assert ((pair[0] - pair[1]).abs().amax((0, 2, 3)) > 1e-4).any()


@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_a_loaded_model_is_saved_and_loaded_as_one_of_ours(stage, tmp_path):
    """[AMR stage 2] The second set of queries with it."""
    _, path = saved(tmp_path, stage=stage)
    batch, _, _ = labelled_batch()
    retriever = load_official(path, "amr")
    checkpoint.save(retriever, tmp_path / "ours")
    again = checkpoint.load(tmp_path / "ours")
    assert again.predict(batch) == retriever.predict(batch)
    assert len(again.predict(batch)[0]["pred_relevant_windows"]) == (4 if stage == "pretrain" else 8)


def test_a_file_that_contradicts_itself_is_refused(tmp_path):
    """[AMR stage 2] Its stage, its two copies of a head, its options."""
    network, path = saved(tmp_path, stage="distill")
    network.opt = make_opt(stage="pretrain")
    with pytest.raises(ValueError, match="stage of opt must be distill where there is a new_query_embed"):
        load_official(save(network, path), "amr")
    for changes, message in (
        ({"use_txt_pos": True}, "use_txt_pos of opt must be False"),
        ({"pre_norm": True}, "pre_norm of opt must be False"),
        ({"stage": "other"}, "stage of opt must be pretrain or distill"),
        ({"dec_layers": 1}, "dec_layers of opt must be 2 or more"),
        ({"enc_layers": 3}, "does not fit"),
        ({"num_queries": 6}, "does not fit"),
    ):
        network.opt = make_opt(**({"stage": "distill"} | changes))
        with pytest.raises(ValueError, match=message):
            load_official(save(network, path), "amr")
    network.opt = make_opt(stage="distill")
    network.transformer.decoder.class_embed = torch.nn.Linear(16, 2)
    with pytest.raises(ValueError, match=r"transformer.decoder.class_embed.weight and class_embed.weight differ"):
        load_official(save(network, path), "amr")


def test_our_parameters_are_as_many_as_released():
    """[AMR stage 1], [AMR stage 2] Without the positions of words, which nothing reads."""
    with torch.device("meta"):
        ours = papers.build(papers.get("amr"), Widths(5376, 2048, None))
        assert count(ours) + 8_704 == 11_801_641
        papers.prepare(ours, "active_queries")
    assert count(ours) + 8_704 == 13_903_933
