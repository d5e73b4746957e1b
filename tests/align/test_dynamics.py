"""TD-DETR's dynamics against its equations: the module, its use in every aligner, and copies and checkpoints of it."""

import copy

import pytest
import torch
from torch import nn

from mrlib import checkpoint, papers
from mrlib.align.dynamics import Dynamics, dynamic_tokens, dynamics
from mrlib.align.words import Words
from mrlib.data import Widths
from mrlib.layers import Sizes, sine_positions
from tests.support.batches import LENGTHS, batch_of

WIDTHS = Widths(24, 12, 16)
TINY = {"width": 16, "hidden": 24, "heads": 4, "moment_queries": 3, "layers": 2, "decoder_layers": 2}
# a paper for every aligner that takes dynamics
NETWORKS = {name: TINY for name in ("moment_detr", "qd_detr", "matr")} | {"amr": TINY | {"encoder_layers": 1}}
NETWORKS["univtg"] = {k: v for k, v in TINY.items() if k not in ("moment_queries", "decoder_layers")}


def build(name, seed=3, **options):
    return papers.build(papers.get(name, "small", **NETWORKS[name] | options), WIDTHS, seed)


def random_words(batch, width=16):
    rows = torch.randn(2, *batch.query.shape[:2], width, generator=torch.Generator().manual_seed(0))
    return Words(*rows, batch.query_mask)


def dynamics_of(retriever):
    return [module for module in retriever.modules() if isinstance(module, Dynamics)]


def test_tokens_are_differences_of_neighbours_and_of_the_first_clip_and_the_start():
    """[TD-DETR Eq. 2], [TD-DETR Eq. 3] By hand; 0 on padding."""
    x = torch.tensor([[[1.0, 5.0], [4.0, 3.0], [4.0, 10.0]], [[2.0, 2.0], [9.0, 9.0], [7.0, 7.0]]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    tokens = dynamic_tokens(x, torch.tensor([0.5, 1.0]), mask)
    expected = [[[0.5, 4.0], [3.0, -2.0], [0.0, 7.0]], [[1.5, 1.0], [0.0, 0.0], [0.0, 0.0]]]
    assert tokens.tolist() == expected
    assert torch.equal(dynamic_tokens(x, torch.tensor([0.5, 1.0]))[mask], tokens[mask])


def test_tokens_have_the_precision_of_the_clips():
    clips = torch.ones(1, 3, 2, dtype=torch.bfloat16)
    assert dynamic_tokens(clips, torch.zeros(2)).dtype == torch.bfloat16


def test_the_cumulative_sum_of_tokens_and_start_restores_the_clips():
    """[TD-DETR Eq. 3] The inverse of the tokenizer."""
    g = torch.Generator().manual_seed(0)
    x, start = torch.randn(3, 7, 5, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 3, 1])[:, None]
    restored = start + dynamic_tokens(x, start, mask).cumsum(1)
    torch.testing.assert_close(restored[mask], x[mask])
    assert not torch.allclose(restored[~mask], x[~mask])


def test_dynamics_equal_their_equations():
    """[TD-DETR Eq. 4], [TD-DETR Eq. 5], [TD-DETR Eq. 6] Clip by clip, with torch's attention."""
    torch.manual_seed(0)
    module, batch, beta = Dynamics(16, 4, 0.3, 0.6).eval(), batch_of(), 0.6
    words, x, p = random_words(batch), torch.randn(4, 12, 16), sine_positions(batch.target_mask, 16)
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    attention.load_state_dict(module.attend.state_dict())
    norm1, _, linear1, _, norm2, _, linear2 = module.project
    mixed = module(x, p, words)
    for b, n in enumerate(LENGTHS):
        keys, values = (rows[b : b + 1, words.mask[b]] for rows in (words.keys, words.values))
        for t in range(n):
            change = x[b, t] + p[b, t] - (x[b, t - 1] + p[b, t - 1] if t else module.start.weight[0])
            change = linear2(norm2(linear1(norm1(change)).relu())).relu()
            gathered, _ = attention(change[None, None], keys, values)
            torch.testing.assert_close(mixed[b, t], beta * x[b, t] + 0.4 * gathered[0, 0], rtol=1e-5, atol=1e-5)


def test_tokens_attend_only_to_words_that_their_clip_may_see():
    """[TD-DETR Eq. 5] If a clip sees one word, it takes up the value of that word, whatever its token."""
    torch.manual_seed(0)
    module, batch = Dynamics(16, 4, 0.0, 0.0).eval(), batch_of()
    words, x = random_words(batch), torch.randn(4, 12, 16)
    visible = torch.zeros(4, 4, 12, 6, dtype=torch.bool)
    visible[..., 2] = True
    mixed = module(x, torch.zeros_like(x), words._replace(mask=torch.ones_like(words.mask), visible=visible))
    value = words.values[:, 2] @ module.attend.in_proj_weight[32:].mT + module.attend.in_proj_bias[32:]
    torch.testing.assert_close(mixed, module.attend.out_proj(value)[:, None].expand_as(mixed), rtol=1e-5, atol=1e-5)


def test_gradients_equal_finite_differences():
    """[TD-DETR Eq. 6] For clips, words and the start."""
    torch.manual_seed(0)
    module = Dynamics(4, 2, 0.0, 0.7).double()
    x, p, y = (torch.randn(2, n, 4, dtype=torch.float64) for n in (3, 3, 2))
    mask = torch.tensor([[True, True], [True, False]])

    def run(x, y, start):
        return torch.func.functional_call(module, {"start.weight": start}, (x, p, Words(y, y, mask)))

    start = torch.randn(1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(run, [z.requires_grad_() for z in (x, y, start)])


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_beta_of_one_is_the_same_as_no_dynamics(name):
    """[TD-DETR Eq. 6] To the last bit, from the projections to the predicted windows; a smaller beta is not."""
    plain, batch = build(name).eval(), batch_of()
    for beta, same in ((1.0, True), (1, True), (0.7, False)):
        mixed = build(name, beta=beta).eval()
        weights, shared = mixed.state_dict(), plain.state_dict()
        assert shared.keys() < weights.keys()
        mixed.load_state_dict(weights | shared)
        for x, y in zip(outputs_of(plain, batch), outputs_of(mixed, batch), strict=True):
            assert torch.equal(x, y) or not same
        assert (mixed.predict(batch) == plain.predict(batch)) == same


def outputs_of(retriever, batch):
    aligned, outputs = retriever(batch)
    return [aligned.target[batch.target_mask], *(outputs[k] for k in sorted(outputs) if outputs[k].is_floating_point())]


@pytest.mark.parametrize("name", NETWORKS)
def test_without_beta_there_are_no_dynamics(name):
    """A beta of None builds the same weights as no beta, and no paper sets one by default."""
    plain, none = build(name), build(name, beta=None)
    assert not dynamics_of(none)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), none.parameters(), strict=True))
    assert "beta" not in papers.get(name).aligner.options


def test_layers_have_separate_projections_and_attention_and_one_shared_start():
    """[TD-DETR Eq. 2] The start is one vector; 395,776 further parameters in each layer of the released width."""
    modules = dynamics(3, Sizes(width=256, heads=8, dropout=0.1), 0.7)
    count = [sum(p.numel() for p in module.parameters()) for module in modules]
    assert count == [395_776 + 256, 395_776, 395_776]
    stack = nn.ModuleList(modules)
    assert [name for name, _ in stack.named_parameters() if "start" in name] == ["0.start.weight"]
    batch = batch_of()
    words, x = random_words(batch, 256), torch.randn(4, 12, 256)
    before = [module.eval()(x, torch.zeros_like(x), words) for module in modules]
    with torch.no_grad():
        modules[0].start.weight.normal_()
    for module, old in zip(modules, before, strict=True):
        changed = (module(x, torch.zeros_like(x), words) - old).abs().amax(-1)
        assert (changed[:, 0] > 1e-4).all() and changed[:, 1:].max() == 0


def copied(retriever, path):
    return copy.deepcopy(retriever)


def saved(retriever, path):
    checkpoint.save(retriever, path / "model")
    return checkpoint.load(path / "model")


def moved(retriever, path):
    again = copy.deepcopy(retriever)
    return again.to(torch.float64).to("cpu").to(torch.float32)


def assigned(retriever, path):
    """Built on the meta device, then given the weights."""
    with torch.device("meta"):
        empty = papers.build(papers.get(**retriever.recipe["paper"]), WIDTHS)
    empty.load_state_dict(retriever.state_dict(), assign=True)
    return empty


@pytest.mark.parametrize("again", [copied, saved, moved, assigned])
@torch.no_grad()
def test_start_is_still_shared_after_copies_checkpoints_and_moves(again, tmp_path):
    """A change in the first layer changes all layers, and the copy only."""
    retriever, batch = build("qd_detr", beta=0.7).eval(), batch_of()
    other = again(retriever, tmp_path).eval()
    first = dynamics_of(other)[0].start
    assert all(module._shared_start[0] is first for module in dynamics_of(other)) and len(dynamics_of(other)) == 2
    assert other.predict(batch) == retriever.predict(batch)
    start = first.weight.clone()
    first.weight.data = start + 3
    outputs = [x.clone() for x in outputs_of(other, batch)]
    retriever.load_state_dict(other.state_dict())
    for x, y in zip(outputs, outputs_of(retriever, batch), strict=True):
        assert torch.equal(x, y)
    if again is not assigned:  # which shares its tensors with the state dict
        assert dynamics_of(retriever)[0].start.weight.data_ptr() != first.weight.data_ptr()


def test_start_is_saved_and_trained_once():
    retriever = build("qd_detr", beta=0.7)
    names = [name for name in retriever.state_dict() if "start" in name]
    assert names == [name for name, _ in retriever.named_parameters() if "start" in name] == [
        "aligner.layers.0.mix.start.weight"
    ]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_padding_and_batch_mates_change_nothing(name):
    retriever, together = build(name, beta=0.4).eval(), batch_of(pad_to=15)
    aligned, _ = retriever(together)
    for b, n in enumerate(LENGTHS):
        single, _ = retriever(batch_of()[b : b + 1])
        torch.testing.assert_close(aligned.target[b, :n], single.target[0, :n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_of_dynamics_learns(name):
    batch, retriever = batch_of([9, 4, 12]), build(name, beta=0.7)
    aligned, outputs = retriever(batch)
    sum(retriever.losses(aligned, outputs, batch).values()).backward()
    modules = dynamics_of(retriever)
    assert modules
    for module in modules:
        for key, p in module.named_parameters():
            if key == "attend.in_proj_bias":  # the bias of the keys does not change the weights of attention
                third = len(p) // 3
                assert p.grad[:third].any() and p.grad[2 * third :].any()
            else:
                assert p.grad is not None and p.grad.abs().max() > 1e-9, key


@pytest.mark.parametrize("name", ["univtg", "matr"])
@torch.no_grad()
def test_clips_before_a_joint_encoder_do_not_depend_on_the_query(name):
    """Saliency, contrasts and the first alignment compare clips that no word has entered."""
    retriever, batch = build(name, beta=0.2).eval(), batch_of()
    encoder = retriever.aligner.encoder if name == "univtg" else retriever.aligner.fuse
    joint = encoder(batch.target, batch.target_mask, batch.query, batch.query_mask)
    other = encoder(batch.target, batch.target_mask, batch.query.flip(0), batch.query_mask)
    for field in ("target_projected", "target_typed", "target_positions"):
        assert torch.equal(getattr(joint, field), getattr(other, field))
    assert not torch.allclose(joint.target, other.target)


@torch.no_grad()
def test_first_layer_of_a_joint_encoder_gets_the_output_of_the_dynamics():
    """[TD-DETR Eq. 6] Their input is the clips with their token type; words have positions as keys, not as values."""
    for name in ("univtg", "matr", "moment_detr"):
        retriever, batch, calls = build(name, beta=0.2, query_positions="learned").eval(), batch_of(), []
        aligner = retriever.aligner
        encoder = {"univtg": "encoder", "matr": "fuse"}.get(name)
        encoder = aligner if encoder is None else getattr(aligner, encoder)
        encoder.mix.register_forward_hook(lambda _, inputs, output, calls=calls: calls.append((*inputs, output)))
        encoder.layers[0].register_forward_hook(lambda _, inputs, output, calls=calls: calls.append(inputs))
        retriever(batch)
        (x, positions, words, mixed), (first, joint_positions, mask) = calls
        T = x.shape[1]
        assert torch.equal(first[:, :T], mixed) and torch.equal(joint_positions[:, :T], positions)
        assert torch.equal(first[:, T:], words.values) and torch.equal(mask[:, T:], words.mask)
        torch.testing.assert_close(words.keys, words.values + joint_positions[:, T:])
        assert not torch.allclose(words.keys, words.values)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan"), True, "much"])
def test_beta_outside_zero_to_one_is_refused(beta):
    for name in NETWORKS:
        if beta == beta:
            with pytest.raises(ValueError, match="beta must be None or a number from 0 to 1"):
                build(name, beta=beta)
    with pytest.raises(ValueError, match="beta must be None or a number from 0 to 1"):
        Dynamics(16, 4, 0.0, beta)
