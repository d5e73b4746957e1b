"""The second implementation of AMR: its sizes, and what padding does to it."""

import math

import pytest
import torch

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
