"""UniVTG's aligner: its encoder layer by layer, its pooled query, its saliency and its contrasts by loops."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mrlib import papers
from mrlib.align import Aligned
from mrlib.align.joint import JointAligner, JointEncoder
from mrlib.data import Widths
from mrlib.layers import Sizes, endpoints, sine_positions
from tests.support.batches import LENGTHS, batch_of, make_batch
from tests.support.modules import shaken

SETTINGS = {
    "default": {},
    "pre-norm": {"pre_norm": True},
    "learned": {"query_positions": "learned"},
    "none": {"query_positions": "none"},
}


def aligner(**options):
    sizes = {"width": 16, "hidden": 24, "heads": 4, "layers": 2, "dropout": 0.0, "input_dropout": 0.0}
    return papers.build(papers.get("univtg", **sizes | options), Widths(24, 12, 16), seed=3).aligner.eval()


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_clips_and_words_get_a_token_type_and_are_encoded_together(name):
    """[UniVTG], [MATR §3.2] Layer by layer from the projections; type 1 on the clips, type 0 on the words."""
    module, batch = shaken(aligner(**SETTINGS[name])), batch_of()
    encoder = module.encoder
    projected = encoder.project_target(torch.cat([batch.target, endpoints(batch.target_mask)], -1))
    target, words = projected + encoder.token_type.weight[1], encoder.project_query(batch.query)
    query = words + encoder.token_type.weight[0]
    places = {
        "sine": lambda: sine_positions(batch.query_mask, 16),
        "learned": lambda: encoder.places(query),
        "none": lambda: torch.zeros_like(query),
    }[encoder.query_positions]()
    x, positions = torch.cat([target, query], 1), torch.cat([sine_positions(batch.target_mask, 16), places], 1)
    for layer in encoder.layers:
        x = layer(x, positions, torch.cat([batch.target_mask, batch.query_mask], 1))
    if name == "pre-norm":
        x = F.layer_norm(x, (16,), encoder.norm.weight, encoder.norm.bias)
    aligned = module(batch)
    torch.testing.assert_close(aligned.target, x[:, :12])
    torch.testing.assert_close(aligned.query, x[:, 12:])
    torch.testing.assert_close(aligned.cache["target"], target)
    assert torch.equal(aligned.mask, batch.target_mask) and torch.equal(aligned.query_mask, batch.query_mask)
    joint = encoder(batch.target, batch.target_mask, batch.query, batch.query_mask)
    torch.testing.assert_close(joint.target_projected, projected)
    torch.testing.assert_close(joint.query_projected, words)
    torch.testing.assert_close(joint.target_typed, target)
    torch.testing.assert_close(joint.query_typed, query)
    assert torch.equal(joint.target, aligned.target) and torch.equal(joint.query, aligned.query)
    assert torch.equal(joint.target_positions, sine_positions(batch.target_mask, 16))


@torch.no_grad()
def test_saliency_is_the_cosine_of_a_clip_with_the_pooled_words():
    """[UniVTG] Number by number, before the encoder; a learned vector weighs the words."""
    module, batch = aligner(), batch_of()
    aligned, encoder = module(batch), module.encoder
    query = encoder.project_query(batch.query) + encoder.token_type.weight[0]
    for b, n in enumerate(LENGTHS):
        words = query[b, batch.query_mask[b]]
        weight = [math.exp(float(word @ module.pool.weight[0])) for word in words]
        whole = sum(w * word for w, word in zip(weight, words, strict=True)) / sum(weight)
        torch.testing.assert_close(aligned.query_global[b], whole)
        for t in range(n):
            clip = aligned.cache["target"][b, t]
            cosine = clip @ whole / (clip.norm() * whole.norm())
            torch.testing.assert_close(aligned.saliency[b, t], cosine)


@torch.no_grad()
def test_padded_words_have_no_weight_in_the_pooled_query():
    """[UniVTG] Even if the learned vector prefers them; all weight is on the one real word."""
    module, batch = shaken(aligner()), batch_of()
    query, first = batch.query.clone(), torch.zeros_like(batch.query_mask)
    query[:, 1:] += 100 * torch.randn(query[:, 1:].shape, generator=torch.Generator().manual_seed(0))
    first[:, 0] = True
    aligned = module(replace(batch, query=query, query_mask=first))
    word = module.encoder.project_query(query)[:, 0] + module.encoder.token_type.weight[0]
    torch.testing.assert_close(aligned.query_global, word)
    cosine = F.cosine_similarity(aligned.cache["target"], word[:, None], dim=-1)
    torch.testing.assert_close(aligned.saliency, cosine)


def hand_worked(temperature):
    """Three samples: clip 0 is the one relevant clip of the first two, the third has none.

    The label of clip 2 of the first sample equals that of its relevant clip; clip 2 of the second sample is padding
    that is labelled relevant.
    """
    module = JointAligner(JointEncoder(Widths(3, 3, None), Sizes(width=2, heads=1, layers=0)), temperature=temperature)
    batch = make_batch([3, 2, 3], joint=None, motion=3, words=1, query=3)
    relevant = torch.zeros(3, 3, dtype=torch.bool)
    relevant[[0, 1, 1], [0, 0, 2]] = True
    scores = torch.tensor([[2.0, 1.0, 2.0], [1.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    batch = replace(batch, labels=replace(batch.labels, relevant=relevant, saliency=scores))
    clips = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], [[0.0, 2.0], [1.0, 0.0], [3.0, 0.0]], [[1.0, 1.0]] * 3])
    aligned = Aligned(
        target=clips,
        mask=batch.target_mask,
        query=clips[:, :1],
        query_mask=batch.query_mask,
        query_global=torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]),
        saliency=torch.tensor([[0.5, 0.2, 0.9], [0.3, 0.9, 7.0], [5.0, 5.0, 5.0]]),
        cache={"target": clips},
    )
    return module, aligned, batch


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_contrasts_of_a_hand_worked_batch(temperature):
    """[UniVTG] Cosines of 1 with the matching query and 0 with the other; clips of equal label do not count."""
    module, aligned, batch = hand_worked(temperature)
    losses = module.losses(aligned, batch)

    def cost(difference):
        """Minus the log softmax of the first of two logits, given how much lower the second is."""
        return math.log1p(math.exp(-difference / temperature))

    # two samples, two directions each, divided by two samples
    assert losses["inter"].item() == pytest.approx(2 * cost(1.0), rel=1e-6)
    # clip 0 against clip 1 of its video; against clip 0 of the other video
    intra = cost(0.5 - 0.2) + cost(0.3 - 0.9) + cost(0.5 - 0.3) + cost(0.3 - 0.5)
    assert losses["intra"].item() == pytest.approx(intra / 2, rel=1e-6)


def test_contrasts_of_a_saliency_of_half_precision_are_finite():
    """Masked logits of -1e30 do not fit into float16."""
    module, aligned, batch = hand_worked(1.0)
    expected = module.losses(aligned, batch)["intra"]
    loss = module.losses(replace(aligned, saliency=aligned.saliency.half()), batch)["intra"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)


def test_irrelevant_sample_has_no_part_in_the_contrasts():
    """The third sample of the hand-worked batch may be anything."""
    module, aligned, batch = hand_worked(0.07)
    before = module.losses(aligned, batch)
    clips, query, scores = (x.clone() for x in (aligned.cache["target"], aligned.query_global, aligned.saliency))
    clips[2], query[2], scores[2] = -7.0, torch.tensor([3.0, -1.0]), -2.0
    changed = replace(aligned, query_global=query, saliency=scores, cache={"target": clips})
    for name, value in module.losses(changed, batch).items():
        assert torch.equal(value, before[name])


def one_relevant_clip(saliency):
    """A batch of which each sample has at most one relevant clip, so that nothing is drawn: 4, 0, 11 and none."""
    batch = batch_of()
    relevant = torch.zeros(4, 12, dtype=torch.bool)
    relevant[[0, 1, 2], [4, 0, 11]] = True
    labels = replace(batch.labels, relevant=relevant, saliency=saliency * batch.target_mask)
    return replace(batch, labels=labels)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@torch.no_grad()
def test_contrasts_equal_their_definitions(temperature):
    """[UniVTG] Against the other queries and clips of the batch; against the clips of lower label in the video.

    As released, a clip is also contrasted with the clips at its index in the other videos, if they count there.
    """
    module = aligner(temperature=temperature)
    scores = torch.randint(0, 6, (4, 12), generator=torch.Generator().manual_seed(3)).float()
    scores[[0, 1, 2], [4, 0, 11]] = torch.tensor([5.0, 3.0, 2.0])
    batch = one_relevant_clip(scores)
    aligned = module(batch)
    clips = aligned.cache["target"]
    rows, chosen = [0, 1, 2], [4, 0, 11]
    inter = intra = 0.0
    for b, t in zip(rows, chosen, strict=True):
        cosine = {
            (i, j): float(F.cosine_similarity(clips[i, chosen[i]], aligned.query_global[j], dim=0)) / temperature
            for i in rows
            for j in rows
        }
        inter -= math.log(math.exp(cosine[b, b]) / sum(math.exp(cosine[b, j]) for j in rows))
        inter -= math.log(math.exp(cosine[b, b]) / sum(math.exp(cosine[i, b]) for i in rows))

        def counted(i, s):
            """Whether clip s of sample i takes part: it is the relevant one, or its label is lower."""
            return s == chosen[i] or (s < LENGTHS[i] and scores[i, s] < scores[i, chosen[i]])

        numerator = math.exp(float(aligned.saliency[b, t]) / temperature)
        video = sum(math.exp(float(aligned.saliency[b, s]) / temperature) for s in range(LENGTHS[b]) if counted(b, s))
        time = sum(math.exp(float(aligned.saliency[i, t]) / temperature) for i in rows if counted(i, t))
        intra -= math.log(numerator / video) + math.log(numerator / time)
    losses = module.losses(aligned, batch)
    assert losses.keys() == {"inter", "intra"}
    assert losses["inter"].item() == pytest.approx(inter / 3, rel=1e-4)
    assert losses["intra"].item() == pytest.approx(intra / 3, rel=1e-4)


def test_each_relevant_clip_is_drawn():
    """Of three relevant clips with different labels, so the loss takes three values."""
    module = aligner()
    batch = batch_of(windows=[[(1, 4)], [], [], []])
    saliency = torch.zeros(4, 12)
    saliency[0, 1:4] = torch.tensor([3.0, 4.0, 5.0])
    batch = replace(batch, labels=replace(batch.labels, saliency=saliency))
    torch.manual_seed(0)
    with torch.no_grad():
        aligned = module(batch)
        values = {round(module.losses(aligned, batch)["intra"].item(), 4) for _ in range(40)}
    assert len(values) == 3


def test_without_a_relevant_clip_losses_and_gradients_are_zero():
    module, batch = aligner(), batch_of(windows=[[], [], [], []])
    losses = module.losses(module(batch), batch)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_positions": "cosine"}, "query_positions must be one of sine, learned, none, not 'cosine'"),
        ({"layers": -1}, "layers must be 0 or more, not -1"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aligner(**options)


@torch.no_grad()
def test_without_layers_the_output_is_the_projected_clips():
    module, batch = aligner(layers=0), batch_of()
    aligned = module(batch)
    assert torch.equal(aligned.target, aligned.cache["target"])


class Recorder(torch.nn.Module):
    """A `mix` that doubles the clips and keeps what it was called with."""

    def forward(self, x, positions, words):
        self.call = x, positions, words
        return 2 * x


@pytest.mark.parametrize("query_positions", ["sine", "learned"])
@torch.no_grad()
def test_mix_gets_words_with_positions_as_keys_and_changes_only_the_clips_of_the_first_layer(query_positions):
    """[TD-DETR Eq. 4] Keys carry positions, values do not; the losses still see the unmixed clips."""
    torch.manual_seed(0)
    sizes, batch = Sizes(width=16, hidden=24, heads=4, layers=0, dropout=0.0, input_dropout=0.0), batch_of()
    encoder = JointEncoder(Widths(24, 12, 16), sizes, query_positions=query_positions, mix=Recorder()).eval()
    joint = encoder(batch.target, batch.target_mask, batch.query, batch.query_mask)
    x, positions, words = encoder.mix.call
    places = sine_positions(batch.query_mask, 16) if query_positions == "sine" else encoder.places(joint.query_typed)
    assert torch.equal(x, joint.target_typed) and torch.equal(positions, joint.target_positions)
    assert torch.equal(words.keys, joint.query_typed + places) and torch.equal(words.values, joint.query_typed)
    assert torch.equal(words.mask, batch.query_mask) and words.visible is None
    assert torch.equal(joint.target, 2 * joint.target_typed) and torch.equal(joint.query, joint.query_typed)
