"""`import mrlib.papers` loads torch and little else; tests/benchmarks/bench_import.py measures the time."""

import json
import subprocess
import sys

import pytest

LIGHT = {"mrlib", "safetensors"}  # what importing the package may add to torch and the standard library
HEAVY = [
    "torch._dynamo",
    "torch._inductor",
    "triton",
    "sympy",
    "scipy",
    "numba",
    "pandas",
    "matplotlib",
    "seaborn",
    "h5py",
]


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh process has loaded after a statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stdout))


@pytest.fixture(scope="module")
def added() -> set[str]:
    """The modules that `import mrlib.papers` loads and `import torch` does not."""
    return modules_after("import mrlib.papers") - modules_after("import torch")


@pytest.mark.parametrize("module", HEAVY)
def test_importing_the_papers_loads_no_heavy_module(module, added):
    assert sorted(name for name in added if name == module or name.startswith(f"{module}.")) == []


def test_importing_the_papers_adds_no_other_package_to_torch(added):
    packages = {name.partition(".")[0] for name in added}
    assert sorted(packages - LIGHT - sys.stdlib_module_names) == []


def test_importing_the_papers_adds_no_module_of_torch(added):
    assert sorted(name for name in added if name.startswith("torch.")) == []
