"""A²FA's aligner and its baselines against the paper's equations, clip by clip."""

import dataclasses

import pytest
import torch

from mrlib.align.anchor import AnchorAligner, ConcatAligner, RawAligner
from mrlib.ops.boundary_search import boundaries
from tests.support.batches import make_batch

ALIGNERS = [
    AnchorAligner,
    lambda joint: AnchorAligner(joint, reweight=False),
    lambda joint: AnchorAligner(joint, right="mirror", scale=True),
    RawAligner,
    ConcatAligner,
]


def by_hand(aligner, v, q, left, right, scale=1.0):
    """[A2FA Eq. 6] to [A2FA Eq. 12] for one video v (n, J), q (J,): weights r, alpha and aligned clips, by loops."""
    n = len(v)
    v, q = v / v.norm(dim=1, keepdim=True), q / q.norm()
    matrix = {name: getattr(aligner, name).weight.detach() for name in ("W_a1", "W_a2")}
    m = [0.0 if left <= i <= right else -torch.inf for i in range(n)]  # [A2FA Eq. 6]
    r = [torch.tensor(1.0, dtype=v.dtype)] * n
    if aligner.reweight:
        matrix |= {name: getattr(aligner, name).weight.detach() for name in ("W_q", "W_k", "W_v", "W_r1", "W_r2")}
        logits = torch.stack([scale * (matrix["W_q"] @ q) @ (matrix["W_k"] @ v[i]) + m[i] for i in range(n)])
        a = logits.exp() / logits.exp().sum()  # [A2FA Eq. 7]
        g = sum(a[i] * (matrix["W_v"] @ v[i]) for i in range(n))  # [A2FA Eq. 8]
        products = [(matrix["W_r1"] @ v[i]) @ (matrix["W_r2"] @ g) for i in range(n)]
        r = [torch.tanh(aligner.w.detach() * x + aligner.beta.detach()) for x in products]  # [A2FA Eq. 9]
    v_r = [r[i] * v[i] for i in range(n)]  # [A2FA Eq. 10]
    # [A2FA Eq. 11]
    alpha = [torch.sigmoid((matrix["W_a1"] @ v_r[i]) @ (matrix["W_a2"] @ q) + m[i]) for i in range(n)]
    v_a = [alpha[i] * q + (1 - alpha[i]) * v_r[i] for i in range(n)]  # [A2FA Eq. 12]
    return torch.stack(r), torch.stack(alpha), torch.stack(v_a)


@pytest.mark.parametrize("reweight", [True, False])
@pytest.mark.parametrize("right", ["literal", "mirror"])
@pytest.mark.parametrize("scale", [True, False])
def test_aligned_clips_equal_the_equations(reweight, right, scale):
    torch.manual_seed(0)
    aligner = AnchorAligner(16, reweight=reweight, right=right, scale=scale).double()
    for parameter in aligner.parameters():  # away from the initial values
        torch.nn.init.normal_(parameter)
    batch = make_batch([9, 1, 14, 5], dtype=torch.float64)
    aligned = aligner(batch)
    _, left, right_end = boundaries(batch.target_joint, batch.target_mask, batch.query_joint, right=right)
    for b, n in enumerate([9, 1, 14, 5]):
        v, q = batch.target_joint[b, :n], batch.query_joint[b]
        r, alpha, v_a = by_hand(aligner, v, q, int(left[b]), int(right_end[b]), 0.25 if scale else 1.0)
        torch.testing.assert_close(aligned.cache["reweight"][b, :n], r)
        torch.testing.assert_close(aligned.cache["alpha"][b, :n], alpha)
        torch.testing.assert_close(aligned.target[b, :n], v_a)
        torch.testing.assert_close(aligned.saliency[b, :n], torch.cosine_similarity(v_a, q[None], dim=1))


def test_clips_outside_the_segment_keep_their_direction():
    """alpha is 0 there, by [A2FA Eq. 6] and [A2FA Eq. 11], and above 0 inside."""
    batch = make_batch([14, 10])
    aligned = AnchorAligner(16)(batch)
    inside, alpha = aligned.cache["inside"], aligned.cache["alpha"]
    assert (alpha[~inside] == 0).all() and (alpha[inside] > 0).all()
    assert inside.sum(1).tolist() == (aligned.cache["right"] - aligned.cache["left"] + 1).tolist()
    cosines = torch.cosine_similarity(aligned.target, batch.target_joint, dim=-1)[~inside & batch.target_mask]
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_initial_weights_are_nearly_equal():
    """w = beta = 1: r is near tanh(1) for every clip, so the initial similarity map is that of the raw clips."""
    torch.manual_seed(0)
    r = AnchorAligner(512)(make_batch([40], joint=512)).cache["reweight"]
    assert (r - torch.tensor(1.0).tanh()).abs().max() < 0.1


def test_number_of_parameters_is_that_of_the_paper():
    """Seven matrices of 512 x 512 and two scalars."""
    assert sum(p.numel() for p in AnchorAligner(512).parameters()) == 1_835_010


def test_without_alignment_clips_are_only_re_weighted():
    batch = make_batch([8])
    aligned = AnchorAligner(16, align=False)(batch)
    expected = aligned.cache["reweight"][..., None] * torch.nn.functional.normalize(batch.target_joint, dim=-1)
    torch.testing.assert_close(aligned.target, expected)


def test_raw_clips_are_unit_vectors_and_concatenated_clips_end_with_the_query():
    batch = make_batch([6, 3])
    v = torch.nn.functional.normalize(batch.target_joint, dim=-1)
    q = torch.nn.functional.normalize(batch.query_joint, dim=-1)
    torch.testing.assert_close(RawAligner(16)(batch).target, v)
    both = ConcatAligner(16)(batch)
    torch.testing.assert_close(both.target, torch.cat([v, q[:, None].expand_as(v)], -1))
    assert ConcatAligner(16).width == 32 and RawAligner(16).width == AnchorAligner(16).width == 16


def test_gradients_equal_finite_differences():
    batch = make_batch([5, 1, 4], joint=3, dtype=torch.float64)
    aligner = AnchorAligner(3).double()
    names = [name for name, _ in aligner.named_parameters()]

    def forward(*values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(aligner, parameters, (batch,)).target[batch.target_mask]

    torch.autograd.gradcheck(forward, tuple(p.detach().requires_grad_() for p in aligner.parameters()))


@pytest.mark.parametrize("options", [{}, {"reweight": False}])
def test_every_parameter_gets_a_gradient(options):
    batch = make_batch([9, 12])
    aligner = AnchorAligner(16, **options)
    s = torch.nn.functional.normalize(aligner(batch).target, dim=-1)
    (s @ s.mT).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in aligner.parameters())


@pytest.mark.parametrize("make", ALIGNERS)
def test_padding_batch_mates_and_labels_do_not_change_a_sample(make):
    torch.manual_seed(0)
    aligner = make(16)
    alone = aligner(make_batch([7]))
    among = aligner(make_batch([7, 12, 1], pad_to=20))
    torch.testing.assert_close(among.target[0, :7], alone.target[0])
    torch.testing.assert_close(among.saliency[0, :7], alone.saliency[0])
    unlabelled = aligner(make_batch([7]).unlabelled())
    assert torch.equal(unlabelled.target, alone.target)


@pytest.mark.parametrize("make", ALIGNERS)
def test_fields_have_the_shapes_of_aligned(make):
    aligner = make(16)
    aligned = aligner(make_batch([7, 2]))
    d = aligner.width
    assert aligned.target.shape == (2, 7, d) and aligned.query.shape == (2, 1, d)
    assert aligned.query_global.shape == (2, d) and aligned.saliency.shape == (2, 7)
    assert aligned.query_mask.all() and aligned.query_mask.shape == (2, 1)
    assert aligner.losses(aligned, make_batch([7, 2])) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_degenerate_videos_give_finite_output_and_gradients_under_autocast(dtype):
    """A video of zeros, a video of one clip, a video of equal clips."""
    batch = make_batch([6, 1, 8])
    target = batch.target_joint.clone()
    target[0] = 0
    target[2, :8] = target[2, 0]
    batch = dataclasses.replace(batch, target_joint=target)
    aligner = AnchorAligner(16)
    with torch.autocast("cpu", dtype):
        aligned = aligner(batch)
    assert torch.equal(aligned.target, aligner(batch).target)  # still computed in float32
    aligned.target.square().sum().backward()
    assert aligned.target.isfinite().all() and aligned.saliency.isfinite().all()
    assert all(p.grad.isfinite().all() for p in aligner.parameters())


@pytest.mark.parametrize("make", [AnchorAligner, RawAligner, ConcatAligner])
def test_dataset_without_a_joint_stream_is_refused_with_advice(make):
    with pytest.raises(ValueError, match='streams="joint"'):
        make(None)
