"""PReLU against torch's."""

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
