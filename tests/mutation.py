"""Damage the code in small ways and see whether the tests notice: a sample of mutants, each against its mirrored tests.

    pip install -e ".[mutation]"
    python tests/mutation.py --out runs/mutants.json                       # the sample of 400
    python tests/mutation.py --modules mrlib/ops mrlib/metrics             # those of the 400 that are in these modules
    python tests/mutation.py --modules mrlib/ops/spans.py --sample 100000  # all mutants of one module

cosmic-ray makes the mutants: `<` becomes `<=`, 1 becomes 2, a loop runs no round. A mutant has survived if its tests
pass: then a test is missing, a line is redundant, or the mutant computes the same. Mutants are tried in temporary
copies, never in the checkout. Those that the file `--out` already holds as killed are not tried again; survivors are.
"""

import argparse
import ast
import difflib
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
SAMPLED = ["mrlib/align", "mrlib/detect", "mrlib/augment", "mrlib/ops", "mrlib/metrics"]
LEFT_OUT = {"mrlib/ops/alignment_gpu.py": "its kernels run on a GPU only"}
COPIED = ["mrlib", "tests", "conftest.py", "pyproject.toml"]
CONTRACTS = {"strict", "frozen", "slots", "kw_only"}  # keywords that only turn a caller's mistake into an error
# imported once, before a process is forked for each mutant; nothing of mrlib or tests
PRELOADED = ["torch", "numba", "scipy.optimize", "scipy.stats", "pandas", "tqdm", "pytest", "nbval.plugin"]


class Mutant(NamedTuple):
    module: str
    line: int
    operator: str
    diff: str  # the lines that differ: "-" and the old one, "+" and the new one


def behaviour(source: str) -> str | None:
    """The syntax tree less what cannot change a result: annotations, kinds of parameters, the text of errors,
    contracts; None for what is not Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef():
                node.returns = None
            case ast.arguments():
                node.args = [ast.arg(arg.arg) for arg in (*node.posonlyargs, *node.args, *node.kwonlyargs)]
                node.defaults += filter(None, node.kw_defaults)
                node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
            case ast.AnnAssign():
                node.annotation = ast.Constant(None)
            case ast.Raise(exc=ast.Call()):
                node.exc = node.exc.func
            case ast.Call(func=ast.Name(id="require")):
                node.args = node.args[:1]
            case ast.keyword(arg=arg) if arg in CONTRACTS:
                node.value = ast.Constant(None)
    return ast.dump(tree)


def places(source: str, seed: str) -> list[tuple[int, str, int]]:
    """What cosmic-ray can change, as (line, operator, occurrence), shuffled, each place in the source once before any
    place twice."""
    nodes, spots = list(ast_nodes(get_ast(source))), []
    for name in operator_names():
        operator = get_operator(name)
        if not operator.arguments():
            starts = [start for node in nodes for start, _ in operator().mutation_positions(node)]
            spots += [(start, name, occurrence) for occurrence, start in enumerate(starts)]
    random.Random(seed).shuffle(spots)
    turns, earlier = [], Counter()
    for start, name, occurrence in spots:
        turns.append((earlier[start], len(turns), start[0], name, occurrence))
        earlier[start] += 1
    return [turn[2:] for turn in sorted(turns)]


def mutants(module: str, seed: str) -> Iterator[tuple[Mutant, str]]:
    """The mutants of a module that may compute something else, each with its source."""
    source = (ROOT / module).read_text("utf-8")
    same = {None, behaviour(source)}
    for line, operator, occurrence in places(source, seed + module):
        mutated = mutate_code(source, get_operator(operator)(), occurrence)
        if behaviour(mutated) not in same:
            lines = list(difflib.unified_diff(source.splitlines(), mutated.splitlines(), lineterm="", n=0))[2:]
            diff = "\n".join(text for text in lines if not text.startswith("@@"))
            yield Mutant(module, line, operator.removeprefix("core/"), diff), mutated


def sample(size: int, seed: str) -> dict[Mutant, str]:
    """Of every module a part of `size` mutants: its share of all that cosmic-ray can change."""
    files = [file for name in SAMPLED for file in sorted((ROOT / name).glob("*.py")) or [ROOT / name]]
    modules = [file.relative_to(ROOT).as_posix() for file in files if file.stem != "__init__"]
    totals = {m: len(places((ROOT / m).read_text("utf-8"), "")) for m in modules if m not in LEFT_OUT}
    counts = {m: round(total * size / sum(totals.values())) for m, total in totals.items()}
    return dict(pair for m, count in counts.items() for pair in islice(mutants(m, seed), count))


def prepare(folder: str) -> None:
    """Give a process a copy of the checkout to work in, and import what every test run needs."""
    copy = tempfile.mkdtemp(dir=folder)
    for name in COPIED:
        take = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        take(ROOT / name, Path(copy, name))
    os.chdir(copy)
    sys.path[0] = os.environ["PYTHONPATH"] = copy
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # by size and second, two mutants may be one to Python
    sys.dont_write_bytecode = True
    for name in PRELOADED:
        importlib.import_module(name)


def run_tests(tests: str) -> None:
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.exit(int(importlib.import_module("pytest").main(["-x", "-q", "-p", "no:cacheprovider", tests])))


def attempt(module: str, mutated: str, limit_s: float) -> dict[str, str | float]:
    """Outcome (killed, survived or timeout), the test that failed, and seconds, of a module's tests on a mutant."""
    file, output = Path(module), Path("output.txt")
    tests = Path("tests", *file.parts[1:-1], f"test_{file.name}")
    original, start = file.read_bytes(), time.monotonic()
    output.write_text("")
    file.write_text(mutated, "utf-8")
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=[str(tests)])
    process.start()
    try:
        process.join(limit_s)
        outcome = {None: "timeout", 0: "survived"}.get(process.exitcode, "killed")
    finally:
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        file.write_bytes(original)
    failed = re.search(r"^(FAILED|ERROR) .*", output.read_text(errors="replace"), re.M)
    return {"outcome": outcome, "failed": failed[0] if failed else "", "seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", default=SAMPLED, help="folders or files, as mrlib/align")
    parser.add_argument("--sample", type=int, default=400, help="how many mutants, over all modules")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file of results, read first if it exists")
    options = parser.parse_args()
    wanted = tuple(name if name.endswith(".py") else name.rstrip("/") + "/" for name in options.modules)
    sources = {m: source for m, source in sample(options.sample, options.seed).items() if m.module.startswith(wanted)}
    earlier = json.loads(options.out.read_text("utf-8")) if options.out and options.out.exists() else []
    results = {Mutant(*(row[key] for key in Mutant._fields)): row for row in earlier}
    pending = [m for m in sources if m not in results or results[m]["outcome"] == "survived"]
    context = multiprocessing.get_context("fork")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.jobs, context, initializer=prepare, initargs=[folder]) as pool,
    ):
        limits = {}
        modules = sorted({m.module for m in pending})
        originals = [(ROOT / m).read_text("utf-8") for m in modules]
        for module, result in zip(modules, pool.map(attempt, modules, originals, repeat(600)), strict=True):
            if result["outcome"] == "survived":
                limits[module] = 5 * result["seconds"] + 20
            else:
                print(f"{module} is left out: its tests fail without any change: {result['failed']}", flush=True)
        pending = [m for m in pending if m.module in limits]
        futures = {pool.submit(attempt, m.module, sources[m], limits[m.module]): m for m in pending}
        try:
            for future in as_completed(futures):
                m = futures[future]
                results[m] = m._asdict() | future.result()
                if options.out:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    options.out.write_text(json.dumps(list(results.values()), indent=1), "utf-8")
                if results[m]["outcome"] == "survived":
                    print(f"{m.module}:{m.line}  {m.operator}\n{m.diff}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    counts = Counter((str(Path(m.module).parent), results[m]["outcome"]) for m in sources if m in results)
    for (folder, outcome), number in sorted(counts.items()):
        print(f"{folder}: {number} {outcome}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
