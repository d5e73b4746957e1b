"""AMR's aligner against its equations, its losses against hand-worked cases, and padding hidden or seen."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mrlib import papers
from mrlib.align import Aligned
from mrlib.align.trilinear import HiddenPadding, SeenPadding, TrilinearFusion, build_trilinear
from mrlib.align.words import released_masks
from mrlib.data import Widths
from tests.support.batches import LENGTHS, alone, batch_of, make_batch, spoilt

K = 1 / 0.07


def aligner(**options):
    sizes = {"width": 16, "hidden": 24, "heads": 4, "dropout": 0.0, "input_dropout": 0.0}
    return papers.build(papers.get("amr", **sizes, **options), Widths(24, 12, 16), seed=3).aligner


def fusion_of(width=6, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    fusion = TrilinearFusion(width, dropout).double()
    for vector in (fusion.clip, fusion.word, fusion.both, fusion.pool):
        nn.init.normal_(vector)
    return fusion


def fusion_by_hand(fusion, video, text):
    """Of one sample without padding: video (n, d), text (m, d), number by number."""
    (n, d), m = video.shape, len(text)
    score = torch.zeros(n, m, dtype=video.dtype)
    for t in range(n):
        for w in range(m):
            for k in range(d):
                score[t, w] += video[t, k] * fusion.clip[k] + text[w, k] * fusion.word[k]
                score[t, w] += video[t, k] * fusion.both[k] * text[w, k]
    shares = [math.exp(sum(text[w, k].item() * fusion.pool[k].item() for k in range(d))) for w in range(m)]
    sentence = sum(share * text[w] for w, share in enumerate(shares)) / sum(shares)
    out = []
    for t in range(n):
        p, q = torch.zeros(d, dtype=video.dtype), torch.zeros(d, dtype=video.dtype)
        for w in range(m):
            word = score[t, w].exp() / score[t].exp().sum()
            p = p + word * text[w]
            for i in range(n):
                q = q + word * score[i, w].exp() / score[:, w].exp().sum() * video[i]
        x = torch.cat([video[t], p, video[t] * p, video[t] * q]) @ fusion.mix.weight.T + fusion.mix.bias
        out.append((torch.cat([x, sentence]) @ fusion.out.weight.T + fusion.out.bias).clamp(min=0))
    return torch.stack(out)


@torch.no_grad()
def test_fusion_equals_its_equation_and_ignores_padding():
    """[AMR, fusion] Padding of clips and of words; a query of one word; a video of one clip."""
    fusion, g = fusion_of(), torch.Generator().manual_seed(1)
    n, m = [5, 3, 1, 4], [4, 1, 3, 2]
    video, text = (torch.randn(4, length, 6, generator=g, dtype=torch.float64) for length in (5, 4))
    mask, words = (torch.arange(length) < torch.tensor(real)[:, None] for length, real in ((5, n), (4, m)))
    output = fusion(video, mask, text, words)
    for b in range(4):
        expected = fusion_by_hand(fusion, video[b, : n[b]], text[b, : m[b]])
        torch.testing.assert_close(output[b, : n[b]], expected)
    assert (output > 0).any() and (output == 0).any()


def test_fusion_has_the_gradients_of_its_equation():
    """[AMR, fusion] For clips, words and every parameter."""
    fusion, g = fusion_of(3), torch.Generator().manual_seed(1)
    video, text = (torch.randn(2, length, 3, generator=g, dtype=torch.float64, requires_grad=True) for length in (3, 2))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    words = torch.tensor([[True, True], [True, False]])
    names, values = zip(*fusion.named_parameters(), strict=True)

    def run(video, text, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(fusion, given, (video, mask, text, words))[mask]

    assert torch.autograd.gradcheck(run, (video, text, *values))


def test_query_without_words_gives_finite_output_and_gradients():
    fusion = fusion_of().float()
    video, text = torch.randn(2, 4, 6, requires_grad=True), torch.zeros(2, 3, 6)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    output = fusion(video, torch.tensor([[True] * 4, [False] * 4]), text, nothing)
    output.sum().backward()
    assert output.isfinite().all() and video.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in fusion.parameters())


def test_dropout_of_the_fusion_changes_its_scores_only():
    """[AMR, fusion] With scores of zero it has no effect."""
    fusion, ones = fusion_of(dropout=0.5), torch.ones(1, 4, dtype=torch.bool)
    video, text = torch.randn(1, 4, 6, dtype=torch.float64), torch.randn(1, 4, 6, dtype=torch.float64)
    assert not torch.allclose(fusion.train()(video, ones, text, ones), fusion.eval()(video, ones, text, ones))
    for vector in (fusion.clip, fusion.word, fusion.both):
        nn.init.zeros_(vector)
    torch.testing.assert_close(
        fusion.train()(video, ones, text, ones), fusion.eval()(video, ones, text, ones), rtol=0, atol=0
    )


def test_vectors_of_the_fusion_are_initialised_as_matrices():
    """[AMR, decoder] Xavier-uniform: three as matrices of one column; w_m as the kernel (1, 1, d) of the release."""
    fusion = TrilinearFusion(256, 0.0)
    for vector, fans in ((fusion.clip, 257), (fusion.word, 257), (fusion.pool, 257), (fusion.both, 512)):
        bound = math.sqrt(6 / fans)
        assert 0.9 * bound < vector.abs().max() <= bound


class Thirds(nn.Module):
    """An encoder layer that divides its input by three and records it."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, x, positions, mask):
        self.given.append(x)
        return x / 3


@pytest.mark.parametrize("padding", ["hidden", "seen"])
@torch.no_grad()
def test_second_pass_of_the_encoder_gets_the_highlights_lifted(padding):
    """[AMR, encoder] An encoder that divides by three: E = H/3, then Z = (E + w H)/3."""
    module, batch = aligner(padding=padding).eval(), batch_of(wrong=True)
    module.encoder = nn.ModuleList([Thirds()])
    aligned = module(batch)
    y, second = module.encoder[0].given
    real = torch.ones_like(batch.target_mask) if padding == "seen" else batch.target_mask
    for b in range(len(LENGTHS)):
        sigma = [module.saliency(y[b, t] / 3).sum() / 4 for t in range(12)]
        total = sum(s.exp() for t, s in enumerate(sigma) if real[b, t])
        for t in range(LENGTHS[b]):
            torch.testing.assert_close(aligned.saliency[b, t], sigma[t])
            lifted = y[b, t] / 3 + sigma[t].exp() / total * y[b, t]
            torch.testing.assert_close(second[b, t], lifted)
            torch.testing.assert_close(aligned.target[b, t], lifted / 3)


@torch.no_grad()
def test_whole_query_is_its_last_word_and_words_are_as_projected():
    """[AMR, projections] Also for a query of one word."""
    module, batch = aligner().eval(), batch_of(wrong=True)
    aligned, projected = module(batch), module.project_query(batch.query)
    assert torch.equal(aligned.query, projected)
    for b, words in enumerate([6, 5, 4, 6]):
        assert torch.equal(aligned.query_global[b], projected[b, words - 1])
    one = replace(batch, query_mask=torch.arange(6) < torch.ones(4, 1))
    assert torch.equal(module(one).query_global, projected[:, 0])


def hand_worked(**options):
    """Two samples whose vectors are parallel to the axes; the second has two real clips and one padded.

    Clip 0 is relevant in both; the other clips of the first are mined.
    """
    options = {"padding": "hidden", "against": "sentence"} | options
    module = build_trilinear(Widths(3, 3, None), width=2, heads=1, layers=0, encoder_layers=0, **options)
    batch = make_batch([3, 2], joint=None, motion=3, words=2, query=3, windows=[[(0, 1)], [(0, 1)]])
    wrong = torch.tensor([[False, True, True], [False, False, False]])
    pairs = torch.tensor([[[0, 1]], [[1, 0]]])
    scores = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    batch = replace(
        batch,
        query_mask=torch.tensor([[True, False], [True, True]]),
        labels=replace(batch.labels, wrong=wrong, pairs=pairs, saliency=scores),
    )
    clips = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]]])
    words = torch.tensor([[[0.0, 2.0], [9.0, 9.0]], [[4.0, 0.0], [0.0, 1.0]]])
    saliency = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 8.0]])
    last = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    clips.requires_grad_()
    last.requires_grad_()
    aligned = Aligned(clips, batch.target_mask, words, batch.query_mask, last, saliency, cache={"target": clips})
    return module, aligned, batch


def test_hidden_and_seen_padding_of_two_samples():
    """[AMR, padding] By hand: which clips count, the mean clip, and the words that clips may attend to."""
    mask, words = torch.tensor([[True, True, True], [True, False, False]]), torch.tensor([[True, True], [True, False]])
    clips = torch.tensor([[[1.0], [2.0], [6.0]], [[3.0], [6.0], [9.0]]])
    hidden, seen = HiddenPadding(), SeenPadding(heads=2)
    assert torch.equal(hidden.counted(mask), mask) and seen.counted(mask).all()
    assert hidden.mean(clips, mask).tolist() == [[3.0], [3.0]] and seen.mean(clips, mask).tolist() == [[3.0], [6.0]]
    assert hidden.visible_words(mask, words) is None
    assert torch.equal(seen.visible_words(mask, words), released_masks(mask, words, 2))


@pytest.mark.parametrize("against", ["sentence", "video"])
def test_losses_of_half_precision_features_are_computed_in_full_precision(against):
    module, aligned, batch = hand_worked(against=against)
    half = replace(
        aligned,
        query=aligned.query.bfloat16(),
        query_global=aligned.query_global.bfloat16(),
        cache={"target": aligned.cache["target"].bfloat16()},
    )
    losses = module.losses(half, batch)
    for name, value in module.losses(aligned, batch).items():  # the numbers of the case are exact in bfloat16
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], value)


def softplus(x):
    return math.log1p(math.exp(x))


# directions of the videos: of the first (1, 3), of the second (3, 1), with its padding (3, 6); of the sentences (0, 1)
FIRST, SECOND, SECOND_SEEN = 3 / math.sqrt(10), 1 / math.sqrt(10), 2 / math.sqrt(5)


@pytest.mark.parametrize("padding", ["hidden", "seen"])
def test_losses_are_those_worked_by_hand(padding):
    """[AMR, losses] Margin, rank contrast and both contrasts of video and text."""
    module, aligned, batch = hand_worked(padding=padding)
    terms = {name: x.item() for name, x in module.losses(aligned, batch).items()}
    assert set(terms) == {"margin", "contrast", "vtc", "ctc", "discriminate"}
    assert terms["margin"] == pytest.approx(2 * (0.0 + 0.2) / 2)
    assert terms["contrast"] == pytest.approx(2 * math.log(1 + 2 * math.exp(-1)) / 12 / 2)
    # both sentences are the same: a sentence is nearer to the second video or to the first, a video to neither
    second = SECOND_SEEN if padding == "seen" else SECOND
    vtc = softplus(K * (second - FIRST)) + softplus(K * (FIRST - second)) + 2 * math.log(2)
    assert terms["vtc"] == pytest.approx(vtc / 4, rel=1e-5)
    # words (0, 1); and (1/2, 1/2), whose mean is not normalised
    ctc = math.log(2) + 2 * softplus(K) + softplus(-K / 2) + softplus(K / 2)
    ctc = (ctc + math.log(2)) / 6 if padding == "seen" else ctc / 5
    assert terms["ctc"] == pytest.approx(ctc, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # only the first has mined clips; they are parallel to the sentence, its relevant clip is orthogonal to it
        ({}, softplus(K)),
        ({"padding": "seen"}, softplus(K)),
        # p = 1/sqrt(10), n = 3/sqrt(10); p = 3/sqrt(10), n = 0
        ({"against": "video"}, (softplus(K * (FIRST - SECOND)) + softplus(-K * FIRST)) / 2),
        ({"against": "video", "padding": "seen"}, (softplus(K * (FIRST - SECOND)) + softplus(-K / math.sqrt(5))) / 2),
    ],
    ids=["sentence", "sentence, padding seen", "video", "video, padding seen"],
)
def test_discrimination_of_relevant_and_mined_clips(options, expected):
    """[AMR, losses] By hand; against the sentence for samples with mined clips; as released, the video for all."""
    module, aligned, batch = hand_worked(**options)
    assert module.losses(aligned, batch)["discriminate"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", ["no file", "no clip", "all relevant", "none relevant"])
def test_discrimination_and_its_gradient_are_zero_without_mined_or_without_relevant_clips(case):
    """[AMR, losses] The second sample has no mined clips; each case removes those of the first, or the relevant."""
    module, aligned, batch = hand_worked()
    labels, nothing = batch.labels, torch.zeros_like(batch.labels.relevant)
    labels = {
        "no file": replace(labels, wrong=None),
        "no clip": replace(labels, wrong=nothing),
        "all relevant": replace(labels, wrong=nothing, relevant=batch.target_mask),
        "none relevant": replace(labels, relevant=nothing),
    }[case]
    loss = module.losses(aligned, replace(batch, labels=labels))
    assert loss["discriminate"].item() == 0.0
    for gradient in torch.autograd.grad(loss["discriminate"], (aligned.cache["target"], aligned.query_global)):
        assert not gradient.any()
    assert all(term.isfinite() for term in loss.values())


def test_samples_of_padding_do_not_change_the_losses():
    """Losses equal those of the batch without them; gradients are finite even if all samples are padding."""
    module, batch = aligner(), batch_of([9, 7, 12, 5], wrong=True)
    pairs = torch.tensor([[[1, 0], [2, 3]], [[3, 2], [0, 1]], [[1, 0], [5, 2]], [[0, 1], [4, 2]]])
    batch = replace(batch, labels=replace(batch.labels, pairs=pairs))
    mask, words = batch.target_mask.clone(), batch.query_mask.clone()
    mask[3], words[3] = False, False
    missing = replace(batch, target_mask=mask, query_mask=words)
    missing = replace(missing, labels=replace(missing.labels, pairs=torch.where(mask[:, :1, None], pairs, -1)))
    losses, expected = (module.losses(module(x), x) for x in (missing, missing[:3]))
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=lambda m, n=name: f"{n}: {m}")
    for padding in ("hidden", "seen"):
        for against in ("sentence", "video"):
            module = aligner(padding=padding, against=against)
            empty = replace(missing, target_mask=torch.zeros_like(mask), query_mask=torch.zeros_like(words))
            for given in (missing, empty):
                given = replace(given, labels=replace(given.labels, pairs=None))
                sum(module.losses(module(given), given).values()).backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("term", ["margin", "contrast", "vtc", "ctc", "discriminate"])
def test_parts_of_the_network_that_each_loss_trains(term):
    """[AMR, losses] Those of the saliency train everything below it, the contrasts only the projections."""
    module, batch = aligner(), batch_of(wrong=True)
    module.losses(module(batch), batch)[term].backward()
    trained = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    projections = {"project_target", "project_query"}
    deep = {"fusion", "layers", "encoder", "saliency"} if term in ("margin", "contrast") else set()
    assert trained == projections | deep


def differ(a, b):
    """The largest difference of two samples on real clips."""
    n = int(min(a.mask.sum(), b.mask.sum()))
    pairs = ((a.target[0, :n], b.target[0, :n]), (a.saliency[0, :n], b.saliency[0, :n]))
    return max((x - y).abs().max().item() for x, y in (*pairs, (a.query_global, b.query_global)))


def row(aligned, b):
    names = ("target", "mask", "query", "query_mask", "query_global", "saliency")
    return Aligned(**{name: getattr(aligned, name)[b : b + 1] for name in names})


@torch.no_grad()
def test_padding_and_batch_mates_change_a_sample_only_if_padding_is_seen():
    """[AMR, padding] As released, padding of a sample or of its batch mates changes its output."""
    hidden, seen = (aligner(padding=padding).eval() for padding in ("hidden", "seen"))
    batch, wide = batch_of(wrong=True), batch_of(wrong=True, pad_to=15)
    for given in (batch, wide, spoilt(wide)):
        together, as_released = hidden(given), seen(given)
        differences = []
        for b in range(len(LENGTHS)):
            one = alone(batch, b)
            assert differ(row(together, b), hidden(one)) < 2e-5
            differences.append(differ(row(as_released, b), seen(one)))
            assert differ(hidden(one), seen(one)) < 2e-5
        assert max(differences) > 1e-2


@pytest.mark.parametrize("against", ["sentence", "video"])
def test_padding_changes_the_losses_only_if_it_is_seen(against):
    """More padding, and other values on it; pairs are given, since random ones depend on the width of the batch."""
    hidden, seen = (aligner(padding=padding, against=against).eval() for padding in ("hidden", "seen"))
    pairs = torch.tensor([[[1, 0]], [[3, 2]], [[1, 0]], [[-1, -1]]])
    batches = [
        replace(x, labels=replace(x.labels, pairs=pairs))
        for x in (batch_of(wrong=True), batch_of(wrong=True, pad_to=15))
    ]
    batches.append(spoilt(batches[1]))
    without, released = ([module.losses(module(x), x) for x in batches] for module in (hidden, seen))
    for terms in without[1:]:
        for name, value in without[0].items():
            torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("vtc", "ctc", *(["discriminate"] if against == "video" else [])):
        assert not torch.isclose(released[1][name], released[0][name], rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "shown"}, "padding must be hidden or seen"),
        ({"against": "words"}, "against must be sentence or video"),
        ({"activation": "swish"}, "unknown activation 'swish'; known: relu, gelu, prelu"),
        ({"heads": 3}, "3 heads cannot share a width of 16"),
        ({"projections": 0}, "projections must be 1 or more"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    sizes = {"width": 16, "hidden": 24, "heads": 4, "detector": "boundary"} | options
    with pytest.raises(ValueError, match=message):
        papers.build(papers.get("amr", **sizes), Widths(24, 12, 16))
