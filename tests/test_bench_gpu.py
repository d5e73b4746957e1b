"""The script that measures a GPU runs as a whole on the CPU, and says what failed and what there was no time for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrlib import papers
from tests.benchmarks import bench_gpu
from tests.support import on_device

ROOT = Path(__file__).parents[1]


def run_script(*words, status=0):
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_a_dry_run_measures_everything(tmp_path):
    """Every part has rows; every paper is compared with float64 and takes a step; errors are within their limits."""
    run_script("--dry", "--out", tmp_path / "gpu.json")
    written = json.loads((tmp_path / "gpu.json").read_text())
    rows = written["rows"]
    assert written["machine"]["torch"] == torch.__version__ and written["machine"]["dry"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(bench_gpu.PARTS)
    assert not [row for row in rows if "failed" in row or "left_out" in row]
    for precision in ("fp32", "bf16"):
        steps = {row["what"]: row for row in rows if row["part"] == f"steps in {precision}" and "samples" in row}
        assert list(steps) == [f"{name}, {precision}" for name in papers.PAPERS]
        assert all(row["ms"] > 0 and row["gflop"] > 0 for row in steps.values())
    compared = {row["what"].split(",")[0] for row in rows if row["part"] == "right"}
    assert compared >= {
        *papers.PAPERS,
        "soft_dtw",
        "drop_dtw",
        "hard_alignment",
        "fourier",
        "direct",
        "attend",
        "match",
    }


def test_without_time_the_rows_say_so(tmp_path):
    out = run_script("--dry", "--part", "recipe", "--minutes", "0", "--out", tmp_path / "gpu.json")
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert row == {"part": "recipe", "what": "the rest", "left_out": "no time"} and "0 s left" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_names_the_dry_run():
    assert "give --dry" in run_script(status=2)


def test_an_error_above_its_limit_is_a_failure(monkeypatch):
    """A model that is wrong by 1 % in float32 fails; in bf16 it is printed only."""
    monkeypatch.setattr(bench_gpu, "interpret", lambda: None)
    monkeypatch.setattr(on_device, "kernels", lambda device, large: iter([("soft_dtw", 1e-6)]))
    monkeypatch.setattr(on_device, "models", lambda device, precision: iter([(f"amr, {precision}", 0.01)]))
    rows = {row["what"]: row for row in bench_gpu.right(bench_gpu.Bench(dry=True, minutes=1))}
    assert "failed" in rows["amr, fp32"] and not {"failed"} & (rows["amr, bf16"].keys() | rows["soft_dtw"].keys())


def test_an_error_is_relative_to_the_largest_number():
    """Hand-worked: a difference of 0.5 beside a largest value of 4 is 1/8; equal infinities are no difference."""
    want = torch.tensor([1.0, -4.0, torch.inf])
    assert on_device.error(torch.tensor([1.5, -4.0, torch.inf]), want) == 0.125
    assert on_device.error(torch.tensor([1.0, -4.0, 1.0]), want) == torch.inf
    assert torch.tensor(on_device.error(torch.tensor([torch.nan, -4.0, torch.inf]), want)).isnan()


def test_papers_that_fail_leave_the_others(monkeypatch):
    """Each paper's row has its cost, or its error."""

    def one_step(bench, name, kind, rate):
        if name == "amr":
            raise RuntimeError("out of memory")
        return {"ms": 1.0}

    monkeypatch.setattr(bench_gpu, "one_step", one_step)
    rows = list(bench_gpu.steps(bench_gpu.Bench(dry=True, minutes=1), "fp32"))[1:]
    assert [row["what"] for row in rows] == [f"{name}, fp32" for name in papers.PAPERS]
    assert [row["what"] for row in rows if "failed" in row] == ["amr, fp32"]
