"""Which process takes which video."""

import subprocess
import sys

import pytest

from mrlib.video.shards import Shard, parse_shard, shard_of_process, stable_hash


def test_every_video_belongs_to_one_shard():
    names = [f"video_{i}" for i in range(1000)]
    counts = [sum(Shard(k, 4).has(name) for name in names) for k in range(4)]
    assert sum(counts) == 1000 and min(counts) > 200
    assert all(Shard().has(name) for name in names)


def test_the_hash_is_the_same_in_every_process():
    program = "from mrlib.video.shards import stable_hash; print(stable_hash('ümläut'))"
    other = int(subprocess.check_output([sys.executable, "-c", program]))
    assert other == stable_hash("ümläut") == 11245744002809733257


def test_a_shard_is_written_as_k_of_n():
    assert parse_shard("3/4") == Shard(3, 4) and str(Shard(3, 4)) == "3/4"


@pytest.mark.parametrize("text", ["4/4", "1", "1/0", "-1/4", "a/b", "1/2/3", "", "1 / 2", "0/100001"])
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match="shard must be k/n with k from 0 to n - 1"):
        parse_shard(text)


SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, Shard(0, 1)),
        ({"RANK": "1"}, Shard(0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Shard(1, 2)),
        (SLURM, Shard(3, 4)),
        (SLURM | {"SLURM_ARRAY_TASK_MIN": "1"}, Shard(2, 4)),  # --array=1-4
        (SLURM | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, Shard(1, 4)),  # --array=1-7:2
        (SLURM | {"RANK": "0", "WORLD_SIZE": "2"}, Shard(0, 2)),
    ],
)
def test_processes_that_were_started_together_share_the_videos(environment, shard):
    assert shard_of_process(environment)[0] == shard


@pytest.mark.parametrize("environment", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_variables_that_are_wrong_are_named(environment):
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE: "):
        shard_of_process(environment)
    with pytest.raises(ValueError, match="SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT: "):
        shard_of_process(SLURM | {"SLURM_ARRAY_TASK_ID": "9"})  # an array with gaps, as --array=1,9
