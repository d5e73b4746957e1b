"""The page on clusters agrees with the package: its scripts run, with stand-ins for the commands of Slurm."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from torch.distributed.run import get_args_parser

import mrlib
from mrlib.training import cli
from tests.support.own_videos import files_of, own_folder
from tests.support.slurm import stand_in

PAGE = (Path(mrlib.__file__).parent / "clusters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)
TINY = '{"epochs": 1, "kernel": 3, "channels": 2'


def block(language: str, word: str) -> str:
    """The only block of the page in a language with a word."""
    (text,) = [text for name, text in BLOCKS if name == language and word in text]
    return text


def in_small(text: str) -> str:
    """A script of the page with less to train and to encode."""
    for old, new in (('{"epochs": 10', TINY), ("range(3)", "range(1)"), ("clip-vit-base-patch32", "pixels")):
        text = text.replace(old, new)
    return text.replace('executor, 16, "my', 'executor, 2, "my')


@pytest.fixture
def videos(tmp_path):
    return own_folder(tmp_path / "my_videos", ("cat,2,6,dog", "bird,4,8,cat"), "video,start,end,query_video")


@pytest.mark.parametrize(
    ("package", "word"), [("executorlib", "SlurmClusterExecutor"), ("dask_jobqueue", "SLURMCluster")]
)
def test_a_script_trains_rows_as_jobs(package, word, videos, tmp_path):
    pytest.importorskip(package, reason=f"{package} is not installed")
    (tmp_path / "slurm").mkdir()
    environment = stand_in(tmp_path / "slurm") | {"PYTHONPATH": str(Path(mrlib.__file__).parents[1])}
    script = in_small(block("python", word))
    if word == "SlurmClusterExecutor" and find_spec("pysqa") is None:  # the same executor without Slurm
        old, new = "from executorlib import SlurmCl", "from executorlib.api import TestClusterExecutor as SlurmCl"
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / "script.py").write_text(script)
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 500}
    process = subprocess.run([sys.executable, "script.py"], **options)
    assert process.returncode == 0, process.stderr
    assert pd.read_csv(tmp_path / "rows.csv")["arm"].tolist() == ["full", "raw"]
    submitted = list((tmp_path / "slurm").glob("job-*"))
    assert submitted or "TestClusterExecutor" in script
    if "extract_on" in block("python", word):
        assert (
            "3 videos encoded, 0 kept, 0 failed; " in process.stdout and (tmp_path / "my_data/encoder.json").is_file()
        )


def test_the_tasks_of_an_array_write_all_features(videos, tmp_path):
    (tmp_path / "slurm").mkdir()
    variables = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_CPUS_PER_TASK": "1"}
    environment = stand_in(tmp_path / "slurm") | variables | {"PYTHONPATH": str(Path(mrlib.__file__).parents[1])}
    script = in_small(block("bash", "#SBATCH --array"))
    for task in "01":
        options = {"cwd": tmp_path, "env": environment | {"SLURM_ARRAY_TASK_ID": task}, "text": True}
        process = subprocess.run(["bash", "-c", script], capture_output=True, **options)
        assert process.returncode == 0, process.stderr
    assert {"encoder.json", "activitynet_vrl_train.jsonl"} <= files_of(tmp_path / "my_data").keys()


def test_the_command_of_a_training_run_is_one_of_torchrun_and_of_mrlib():
    (line,) = [line for line in block("bash", "torchrun").splitlines() if line.startswith("srun torchrun ")]
    options = get_args_parser().parse_args(shlex.split(line)[2:])
    assert options.module and options.training_script == "mrlib.train" and options.max_restarts == 3
    assert cli.parse_words(options.training_script_args).paper == "qd_detr"
