"""The second implementation of AMR: sizes, the effect of padding, losses worked by hand."""

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


def largest_difference(a, b, sample):
    """The largest difference between two predictions for a sample."""
    return max((a[k] - b[k]).select(SAMPLE_AXIS.get(k, 0), sample).abs().max().item() for k in PREDICTED)


@pytest.mark.parametrize(("stage", "tensors", "size"), [("pretrain", 271, 11_801_641), ("distill", 288, 13_903_933)])
def test_tensors_and_parameters_are_as_many_as_released(stage, tensors, size):
    """[AMR stage 1], [AMR stage 2] Module by module; parameters stored under two names count once."""
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


def test_there_are_two_text_to_video_layers_whatever_the_depth_of_the_encoder():
    """[AMR stage 1] As released, `enc_layers` counts the layers of the encoder only."""
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
    ("stage", "unread"), [("pretrain", ["txt_position_embed"]), ("distill", ["query_embed", "txt_position_embed"])]
)
def test_predictions_depend_on_all_tensors_except_those_listed(stage, unread):
    """[AMR stage 1], [AMR stage 2] As released."""
    network = random_network(make_opt(stage=stage))
    out = network(*targets_and_queries([6, 9], [4, 3]))
    sum(out[name].sum() for name in PREDICTED).backward()
    modules = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is None}
    assert sorted(modules) == unread


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
@torch.no_grad()
def test_without_padding_a_batch_gives_the_outputs_of_each_sample_alone(stage):
    network = random_network(make_opt(stage=stage))
    inputs = targets_and_queries([7, 7, 7], [5, 5, 5])
    together, each = network(*inputs), alone(network, *inputs)
    assert together.keys() == each.keys()
    for name, expected in together.items():
        torch.testing.assert_close(each[name], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_of_clips_changes_its_sample_and_padding_of_both_changes_others():
    """[AMR, padding] As released: a softmax over padded clips, and a mask that lands on other samples."""
    network = random_network(make_opt())
    for lengths, words, changed in (
        ([7, 7, 7], [5, 2, 4], []),
        ([7, 4, 5], [5, 5, 5], [1, 2]),
        ([7, 4, 5], [5, 2, 5], [0, 1, 2]),
    ):
        inputs = targets_and_queries(lengths, words)
        together, each = network(*inputs), alone(network, *inputs)
        for b in range(3):
            n = lengths[b]
            cut = [
                {k: x[k][..., :n] if k in ("masks", "saliency") else x[k] for k in PREDICTED} for x in (together, each)
            ]
            difference = largest_difference(*cut, b)
            assert difference > 1e-3 if b in changed else difference < 1e-5, (lengths, words, b)


@torch.no_grad()
def test_padding_does_not_change_the_fusion():
    """[AMR, fusion] Padded clips and words are in neither softmax, nor in the sum over words."""
    network = random_network(make_opt())
    video, text = rows_of([7], 16, seed=1)[0], rows_of([5], 16, seed=2)[0]
    torch.testing.assert_close(network._fuse(video, text, 4, 3)[:4], network._fuse(video[:4], text[:3], 4, 3))


@torch.no_grad()
def test_the_mean_of_a_video_includes_padding():
    """[AMR, projections] As released."""
    network, inputs = random_network(make_opt()), targets_and_queries([7, 4], [5, 5])
    together, each = network(*inputs), alone(network, *inputs)
    torch.testing.assert_close(each["mean"][1], together["video"][1, :4].mean(0))
    torch.testing.assert_close(together["mean"][1], together["video"][1].mean(0))
    assert not torch.allclose(each["mean"][1], together["mean"][1], atol=1e-3)


@torch.no_grad()
def test_both_sets_of_queries_are_equal_if_their_feed_forwards_are():
    """[AMR stage 2] They start from the same anchors."""
    network, inputs = random_network(make_opt(stage="distill")), targets_and_queries([7, 4], [5, 2])
    K = network.opt.num_queries
    halves = {name: network(*inputs)[name].split(K, 2) for name in SAMPLE_AXIS}
    assert all(not torch.allclose(*pair) for pair in halves.values())
    copy_feed_forwards(network)
    for name, x in network(*inputs).items():
        if name in SAMPLE_AXIS:
            assert x.shape[2] == 2 * K
            torch.testing.assert_close(*x.split(K, 2), rtol=0, atol=0)


@torch.no_grad()
def test_original_queries_of_stage_2_are_those_of_stage_1_with_other_anchors():
    """[AMR stage 2] The anchors are `new_query_embed`; everything else is unchanged."""
    second, inputs = random_network(make_opt(stage="distill")), targets_and_queries([7, 4], [5, 2])
    first = Official(make_opt()).eval()
    tensors = {k: v for k, v in second.state_dict().items() if "active" not in k and k != "new_query_embed.weight"}
    first.load_state_dict(tensors | {"query_embed.weight": second.new_query_embed.weight})
    one, two = first(*inputs), second(*inputs)
    for name in SAMPLE_AXIS:
        torch.testing.assert_close(two[name][:, :, : one[name].shape[2]], one[name])


@torch.no_grad()
def test_the_last_layer_has_the_masks_of_the_layer_before():
    """[AMR, heads] As released; `own_masks` changes nothing else."""
    network, inputs = random_network(make_opt()), targets_and_queries([7, 4], [5, 2])
    released = network(*inputs)
    network.own_masks = True
    changed = network(*inputs)
    assert released["masks"][-1].equal(released["masks"][-2])
    assert not torch.allclose(changed["masks"][-1], changed["masks"][-2])
    assert changed["masks"][:-1].equal(released["masks"][:-1])
    assert all(changed[name].equal(released[name]) for name in released if name != "masks")


def test_the_matching_prefers_the_query_whose_mask_covers_the_window():
    """[AMR, losses] If two queries are otherwise equal; if their masks are equal, the query whose span is nearer."""
    logits, spans = torch.zeros(2, 2), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    masks = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9]])
    assert matching(logits, spans, masks, [(0.5, 1.0)], 4) == (1,)
    assert matching(logits, spans, masks, [(0.5, 1.0), (0.0, 0.5)], 4) == (1, 0)
    near = torch.tensor([[0.5, 0.5], [0.7, 0.5]])
    assert matching(logits, near, masks[[0, 0]], [(0.5, 1.0)], 4) == (1,)


def outputs():
    """Outputs of one layer for two samples with one query; the second has two real clips and a padded one."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return {
        "logits": torch.zeros(1, 2, 1, 2),
        "spans": torch.tensor([[[[0.5, 1.0]], [[0.25, 0.5]]]]),
        "iou": torch.zeros(1, 2, 1),
        "masks": torch.full((1, 2, 1, 3), 0.5),
        "saliency": torch.zeros(2, 3),
        "mask": mask,
        "video": torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]]]),
        "mean": torch.tensor([[0.0, 1.0], [2.0, 0.0]]),
        "text": torch.tensor([[[0.0, 2.0], [9.0, 9.0]], [[4.0, 0.0], [0.0, 1.0]]]),
        "text_mask": torch.tensor([[True, False], [True, True]]),
        "sentence": torch.tensor([[0.0, 2.0], [0.0, 1.0]]),
    }


WINDOWS = [[(0.0, 1 / 3)], [(0.0, 0.5)]]


def test_terms_of_queries_equal_hand_worked_values():
    """[AMR, losses] The second span is its window, the first window is a third of its span."""
    terms = layer_losses(outputs(), WINDOWS, 0)
    assert terms["l1"] == pytest.approx((1 / 3 + 2 / 3) / 4)
    assert terms["giou"] == pytest.approx((1 - 1 / 3) / 2)
    assert terms["class"] == pytest.approx(math.log(2) / 8)  # 0.25 for the true class, 0.75 for the other, times 0.5^2
    assert terms["mask"] == pytest.approx(1 - 0.5 / 2)  # three clips of one half each, the padded clip included
    assert terms["iou"] == pytest.approx(((0.5 - 1 / 3) ** 2 + 0.5**2) / 2)


def test_terms_of_clips_equal_hand_worked_values():
    """[AMR, losses] All vectors lie on an axis, so every cosine is 0 or 1, and 1/2 with the mean of two words."""
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
    second_clip = clip_losses(out, [WINDOWS[0], [(0.5, 1.0)]], pairs, scores, wrong)  # sample 1: p = 0, nothing wrong
    assert second_clip["discriminate"] == pytest.approx((high + math.log(2)) / 2, rel=1e-5)
    corrected = clip_losses(out, WINDOWS, pairs, scores, wrong, corrected=True)
    assert corrected["ctc"] == pytest.approx((math.log(2) + 2 * high + sum(half)) / 5, rel=1e-5)
    assert corrected["discriminate"] == pytest.approx(high, rel=1e-5)
    same = ("margin", "contrast", "vtc")
    assert [corrected[name] for name in same] == [terms[name] for name in same]


def test_distillation_compares_the_states_of_original_queries_only():
    """[AMR stage 2] It is one minus the mean cosine; the norms of the states do not matter."""
    teacher = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    active = torch.randn(2, 3, 4, 5)
    assert distill(torch.cat([3 * teacher, active], 2), teacher) == pytest.approx(0, abs=1e-6)
    assert distill(torch.cat([-teacher, active], 2), teacher) == pytest.approx(2)
    opposite = teacher.clone()
    opposite[0] *= -1
    assert distill(torch.cat([opposite, active], 2), torch.cat([teacher, active], 2)) == pytest.approx(1)
