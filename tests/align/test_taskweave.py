"""TaskWeave's aligner against its equations, clip by clip."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.align import saliency
from mrlib.align.taskweave import TaskWeaveAligner, above_mean, max_pool_time
from mrlib.align.words import Words
from mrlib.data import Widths
from mrlib.layers import Sizes, sine_positions
from tests.support.batches import LENGTHS, batch_of

WIDTHS = Widths(24, 12, 16)


def aligner(**options):
    torch.manual_seed(3)
    tiny = {"width": 16, "hidden": 24, "heads": 4, "dropout": 0.0, "input_dropout": 0.0}
    return TaskWeaveAligner(WIDTHS, Sizes(**tiny | options))


def peaks_by_hand(x):
    """[TaskWeave] Of one video (n, d)."""
    return torch.stack([x[max(0, t - 2) : t + 3].amax(0) for t in range(len(x))])


def test_peaks_are_the_maximum_over_five_real_clips():
    """[TaskWeave] Also of negative numbers; values on padding are ignored."""
    x = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2
    mask = torch.arange(8) < torch.tensor([8, 3, 1])[:, None]
    x[~mask] = 9.0
    pooled = max_pool_time(x, mask)
    for b, n in enumerate([8, 3, 1]):
        assert torch.equal(pooled[b, :n], peaks_by_hand(x[b, :n]))
    assert (pooled[~mask] == 0).all()


def test_highlights_are_the_clips_above_the_mean_of_their_video():
    """[TaskWeave] By hand; padding is not in the mean and is no highlight; nor is the only clip of a video."""
    scores = torch.tensor([[1.0, 3.0, 2.5, 1.0, 99.0], [-5.0, -1.0, -4.0, -3.0, -2.0], [7.0, 9.0, 9.0, 9.0, 9.0]])
    mask = torch.arange(5) < torch.tensor([4, 5, 1])[:, None]
    expected = [[False, True, True, False, False], [False, True, False, False, True], [False] * 5]
    assert above_mean(scores, mask).tolist() == expected


def with_words_by_hand(module, target, words, p):
    x = target[None]
    for layer in module.layers:
        x = layer(x, p, words)
    return peaks_by_hand(x[0])


def shared_by_hand(module, x, p):
    x, mask = x[None], torch.ones(1, len(x), dtype=torch.bool)
    for layer in module.encoder:
        x = layer(x, p, mask)
    return peaks_by_hand(x[0])


def one_video_by_hand(module, target, query):
    """[TaskWeave] Clips (n, d) and saliency (n,) of projected clips and words, all of them real."""
    n, d = target.shape
    p = sine_positions(torch.ones(1, n, dtype=torch.bool), d)
    words = Words(query[None], query[None], torch.ones(1, len(query), dtype=torch.bool))

    x = with_words_by_hand(module, target, words, p) @ module.highlight_branch.weight.mT + module.highlight_branch.bias
    x = x * shared_by_hand(module, x, p)
    scores = []
    for clip in x:
        y = clip
        for layer in module.relevance:
            y = layer.weight @ y + layer.bias
        scores.append(y[0] + clip.sum() / d**0.5)
    scores = torch.stack(scores)

    louder = torch.stack([2 * v if s > scores.mean() else v for v, s in zip(target, scores, strict=True)])
    x = with_words_by_hand(module, louder, words, p) @ module.moment_branch.weight.mT + module.moment_branch.bias
    shared, clips = shared_by_hand(module, x, p), []
    for t in range(n):
        y = torch.zeros(d, dtype=x.dtype)
        for k in range(-2, 3):
            if 0 <= t + k < n:
                y = y + module.conv.weight[:, 0, k + 2] * x[t + k]
        y = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt() * module.norm.weight + module.norm.bias
        clips.append((module.expert.weight @ y + module.expert.bias) * shared[t])
    return torch.stack(clips), scores


@torch.no_grad()
def test_clips_and_saliency_equal_their_equations():
    """[TaskWeave] Sample by sample in float64, in a padded batch."""
    module, batch = aligner().double().eval(), batch_of(dtype=torch.float64)
    for parameter in (module.norm.weight, module.norm.bias):
        torch.nn.init.normal_(parameter)
    aligned = module(batch)
    doubled = 0
    for b, n in enumerate(LENGTHS):
        target, query = aligned.cache["target"][b, :n], aligned.query[b, batch.query_mask[b]]
        clips, scores = one_video_by_hand(module, target, query)
        torch.testing.assert_close(aligned.saliency[b, :n], scores)
        torch.testing.assert_close(aligned.target[b, :n], clips)
        torch.testing.assert_close(aligned.query_global[b], query.mean(0))
        doubled += int((scores > scores.mean()).sum())
    assert 4 < doubled < sum(LENGTHS) - 4


@torch.no_grad()
def test_feedback_changes_the_clips_and_not_the_saliency():
    """[TaskWeave] It goes from highlights to moments only."""
    module, batch = aligner().eval(), batch_of()
    aligned = module(batch)
    given = aligned.cache["target"], batch.target_mask, aligned.query, batch.query_mask
    assert not torch.allclose(module.moment_features(*given), aligned.target)
    assert torch.equal(module.highlight_scores(*given), aligned.saliency)


def test_losses_are_twice_the_saliency_losses():
    """[TaskWeave] Scores for the negative query are those of a second pass. Sample 0 has no negative query here."""
    module, batch = aligner().eval(), batch_of([9, 4, 12])
    batch = replace(batch, labels=replace(batch.labels, negative=torch.tensor([-1, 0, 0])))
    aligned = module(batch)
    negative_saliency = module(
        replace(batch, query=batch.query[[0, 0, 0]], query_mask=batch.query_mask[[0, 0, 0]])
    ).saliency
    torch.manual_seed(0)
    terms = module.losses(aligned, batch)
    torch.manual_seed(0)
    pairs = saliency.ranking_pairs(batch)
    negative_mask = batch.target_mask & torch.tensor([False, True, True])[:, None]
    scores = torch.cat([batch.labels.saliency, torch.zeros(3, 12)], 1)
    contrast = saliency.rank_contrast(
        torch.cat([aligned.saliency, negative_saliency], 1), scores, torch.cat([batch.target_mask, negative_mask], 1)
    )
    expected = {
        "margin": 2 * saliency.margin(aligned.saliency, pairs),
        "contrast": 2 * contrast,
        "negative": 2 * saliency.negative(negative_saliency, negative_mask, 2),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("detector", papers.DETECTORS)
def test_every_parameter_gets_a_gradient_from_every_detector(detector):
    """At the small size; and every query gets moments and a saliency per clip."""
    paper = papers.get("f2sgd", "small", aligner="taskweave", detector=detector)
    if detector == "similarity_map":
        paper = papers.get(**paper.given, zero_init=False)  # else the first step reaches the last layer only
    retriever, batch = papers.build(paper, WIDTHS), batch_of([9, 6, 12])
    sum(retriever.losses(*retriever(batch), batch).values()).backward()
    untrained = [n for n, p in retriever.aligner.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert untrained == []
    lines = retriever.predict(batch)
    assert all(0 < len(line["pred_relevant_windows"]) <= 10 for line in lines)
    assert [len(line["pred_saliency_scores"]) for line in lines] == [9, 6, 12]


def test_default_sizes_in_any_paper_are_those_of_qd_detr():
    """Each can be set by name."""
    paper = papers.get("f2sgd", aligner="taskweave")
    assert paper.aligner == papers.Choice("taskweave")
    module = papers.build(paper, WIDTHS).aligner
    assert (module.width, len(module.layers), len(module.encoder)) == (256, 2, 2)
    assert module.layers[0].feed_forward.linear1.weight.shape == (1024, 256)
    assert papers.get("qd_detr", aligner="taskweave", layers=3).aligner.options == {"layers": 3}
    assert papers.get("f2sgd", "small", aligner="taskweave").aligner.options == papers.SMALL["taskweave"]


def test_forty_steps_on_the_simulator_lower_every_loss():
    """On eight samples; the detector's loss starts at that of an empty map."""
    paper = papers.get("f2sgd", "small", aligner="taskweave", channels=4, kernel=5, width=32)
    data = papers.open_split(paper, "sim", split="train", n=8)
    retriever, batch, history = papers.build(paper, data), data.batch(range(8)), []
    optimiser = torch.optim.Adam(retriever.parameters(), 3e-3)
    for _ in range(40):
        terms = retriever.losses(*retriever(batch), batch)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
        history.append({name: term.item() for name, term in terms.items()})
    assert history[0].keys() == {"margin", "contrast", "negative", "map"}
    assert all(history[-1][name] < 0.9 * value for name, value in history[0].items())
