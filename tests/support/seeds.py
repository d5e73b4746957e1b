"""Run a notebook with several seeds and write what each run measured to figures/, a row per seed.

    python -m tests.support.seeds 05_td_detr --seeds 0 1 2 3 4 5 6 7 8 9

Every notebook with a training run ends its section on the run with a dict `measured`, name -> number. The rows are
figures/05_seeds.csv, and what the notebook claims of its runs is asserted on them. All parameters but the seed are the
notebook's own. Exit status 1 if a cell fails with any seed; each failure is printed with its seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
from nbclient import NotebookClient

from mrlib.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
TOLD = "import json\n\nprint(json.dumps({name: float(value) for name, value in measured.items()}))"


def run(name: str, seed: int) -> tuple[dict[str, float], str]:
    """What a notebook measures with a seed, and the last error of its cells, empty if there is none."""
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    cells = notebook.cells
    at = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    cells.insert(at + 1, nbformat.v4.new_code_cell(f"seed = {seed}"))
    cells.append(nbformat.v4.new_code_cell(TOLD))
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", allow_errors=True, resources=resources).execute()
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    errors = [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
    told = [output.text for output in cells[-1].outputs if output.output_type == "stream"]
    return json.loads(told[-1]) if told else {}, "; ".join(errors)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.seeds", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", help="its name without the ending, such as 05_td_detr")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    args = parser.parse_args(arguments)
    file = ROOT / "figures" / f"{args.notebook[:2]}_seeds.csv"
    rows = {row["seed"]: row for row in pd.read_csv(file).to_dict("records")} if file.is_file() else {}
    failed = False
    for seed in args.seeds:
        measured, error = run(args.notebook, seed)
        failed |= bool(error)
        print(f"{args.notebook}, seed {seed}: {error or 'no error'}", flush=True)
        if measured:
            rows[seed] = {"seed": seed} | {name: round(value, 4) for name, value in measured.items()}
            write_whole(file, pd.DataFrame([rows[s] for s in sorted(rows)]).to_csv(index=False))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
