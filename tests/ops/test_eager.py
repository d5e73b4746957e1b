"""A function marked `eager` runs uncompiled, and marking it imports no compiler."""

import subprocess
import sys

import torch

from mrlib.ops.eager import eager


def test_a_compiled_model_calls_the_function_itself():
    """A function that leaves torch for numpy, between two operations that are compiled."""
    states = []

    @eager
    def doubled(x, factor=2):
        """Twice x."""
        states.append(torch.compiler.is_compiling())
        return torch.from_numpy(x.detach().numpy() * factor)

    x = torch.tensor([-1.0, 3.0])
    compiled = torch.compile(lambda x, factor: doubled(x.relu(), factor=factor) + 1, backend="aot_eager")
    for factor in (2, 5, 7):
        assert compiled(x, factor).tolist() == [1.0, 3.0 * factor + 1]
    assert states == [False] * 3


def test_gradients_flow_through_the_function():
    cube = eager(lambda x: x**3)
    x = torch.tensor([2.0], requires_grad=True)
    torch.compile(lambda x: cube(x) * 2, backend="aot_eager")(x).backward()
    assert x.grad.item() == 24


def test_the_function_keeps_its_name_and_docstring():
    @eager
    def product(a, b):
        """a times b."""
        return a * b

    assert (product.__name__, product.__doc__, product(3, b=4)) == ("product", "a times b.", 12)


def test_neither_marking_nor_calling_imports_the_compiler():
    program = """
import sys
from mrlib.ops.eager import eager
assert eager(lambda x: x + 1)(1) == 2
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
