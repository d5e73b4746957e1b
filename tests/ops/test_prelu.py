"""PReLU and its gradients against torch's."""

import pytest
import torch
import torch.nn.functional as F

from mrlib.ops.prelu import prelu


def test_prelu_and_its_gradients_are_those_of_torch():
    x, slope = torch.randn(6, 7, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    x[0, :3] = 0
    given = [t.requires_grad_() for t in (x, slope)]
    ours, theirs, dy = prelu(*given), F.prelu(*given), torch.randn_like(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for a, b in zip(torch.autograd.grad(ours, given, dy), torch.autograd.grad(theirs, given, dy), strict=True):
        torch.testing.assert_close(a, b)


def test_prelu_by_hand():
    """Above 0 itself with gradient 1, elsewhere slope times x; the slope gathers g x where x is below 0."""
    x, slope = torch.tensor([2.0, -4.0, 0.0, -1.0], requires_grad=True), torch.tensor([0.25], requires_grad=True)
    y = prelu(x, slope)
    assert y.tolist() == [2.0, -1.0, 0.0, -0.25]
    y.backward(torch.tensor([1.0, 10.0, 1.0, 3.0]))
    assert x.grad.tolist() == [1.0, 2.5, 0.25, 0.75] and slope.grad.tolist() == [-43.0]


@pytest.mark.parametrize("value", [0.0, -0.5, 1.0, 2.0])
def test_any_slope_has_the_gradients_of_finite_differences(value):
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slope = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(prelu, (x, slope))


def test_strided_and_half_precision_numbers_are_those_of_torch():
    slope = torch.tensor([0.3])
    x = torch.randn(4, 6).mT[::2]
    assert torch.equal(prelu(x, slope), F.prelu(x, slope))
    assert torch.equal(prelu(x.bfloat16(), slope.bfloat16()), F.prelu(x.bfloat16(), slope.bfloat16()))
