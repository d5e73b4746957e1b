"""PReLU and its gradients against torch's."""

import pytest
import torch
import torch.nn.functional as F

from mrlib.ops.prelu import prelu


def test_prelu_and_its_gradients_equal_those_of_torch():
    x, slope = torch.randn(6, 7, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    x[0, :3] = 0
    inputs = [t.requires_grad_() for t in (x, slope)]
    ours, torchs, dy = prelu(*inputs), F.prelu(*inputs), torch.randn_like(x)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=0)
    for a, b in zip(torch.autograd.grad(ours, inputs, dy), torch.autograd.grad(torchs, inputs, dy), strict=True):
        torch.testing.assert_close(a, b)


def test_prelu_by_hand():
    """x with gradient 1 above 0, slope times x elsewhere; the gradient of the slope sums dy x where x is below 0."""
    x, slope = torch.tensor([2.0, -4.0, 0.0, -1.0], requires_grad=True), torch.tensor([0.25], requires_grad=True)
    y = prelu(x, slope)
    assert y.tolist() == [2.0, -1.0, 0.0, -0.25]
    assert "_PReLU" in y.grad_fn.name()  # the backward pass of this module
    y.backward(torch.tensor([1.0, 10.0, 1.0, 3.0]))
    assert x.grad.tolist() == [1.0, 2.5, 0.25, 0.75] and slope.grad.tolist() == [-43.0]


@pytest.mark.parametrize("value", [0.0, -0.5, 1.0, 2.0])
def test_gradients_equal_finite_differences_for_any_slope(value):
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slope = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(prelu, (x, slope))


def test_strided_and_half_precision_inputs_give_the_result_of_torch():
    slope = torch.tensor([0.3])
    x = torch.randn(4, 6).mT[::2]
    assert torch.equal(prelu(x, slope), F.prelu(x, slope))
    assert torch.equal(prelu(x.bfloat16(), slope.bfloat16()), F.prelu(x.bfloat16(), slope.bfloat16()))


def test_a_second_derivative_raises_an_error():
    x, slope = torch.tensor([2.0, -4.0], requires_grad=True), torch.tensor([0.25], requires_grad=True)
    (dx,) = torch.autograd.grad(prelu(x, slope).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
