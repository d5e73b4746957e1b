"""What pytest needs to know: a sanitising file for nbval, few examples for Hypothesis, and a worker for each core.

A run of all tests is spread over processes of pytest-xdist, file by file; `-n 0` runs them in one.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

# Threads of torch and numpy, imported later, and of kernels and processes that tests start. Small models are no
# faster on two, and threads that wait take time from others; tests of threads set their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile(
    "short",
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,  # tests.support.answers measures the time of the reader alone
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.register_profile("long", settings.get_profile("short"), max_examples=500, derandomize=False)
settings.load_profile("short")

MOST_WORKERS = 4  # one takes up to 1.2 GB, and the kernel of its notebook some more
LONGEST = [  # files of tests, which start first, so that the workers end at about the same time
    "notebooks/05_td_detr.ipynb",
    "notebooks/02_matr.ipynb",
    "notebooks/07_your_video.ipynb",
    "notebooks/01_amr.ipynb",
    "notebooks/06_compare.ipynb",
    "notebooks/04_f2sgd.ipynb",
    "notebooks/03_a2fa.ipynb",
    "notebooks/00_tour.ipynb",
    "tests/test_grid.py",
    "tests/test_clusters.py",
    "tests/test_bench_gpu.py",
    "tests/test_two_ranks.py",
]


def pytest_configure(config: pytest.Config) -> None:
    config.option.nbval_sanitize_with = str(config.rootpath / "tests" / "nbval_sanitize.cfg")
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # two that compile at once could mix up numba's files
        os.environ.setdefault("NUMBA_CACHE_DIR", str(config.rootpath / ".pytest_cache" / f"numba-{worker}"))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Set what the command line left open, before pytest-xdist reads it; without that plugin, run one after another."""
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    options = config.option
    if options.numprocesses is None and not options.tx and _runs_whole_folders(config):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options.numprocesses = min(cores, MOST_WORKERS) if cores > 1 else 0
    if options.numprocesses and options.dist == "no":
        options.dist, options.loadscopereorder = "loadfile", False  # the cells of a notebook share a kernel
        options.maxworkerrestart = options.maxworkerrestart or "0"  # loadfile would give a new one work that it lacks


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        place = {config.rootpath / name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.path, len(place)))


def _runs_whole_folders(config: pytest.Config) -> bool:
    """Whether all of `tests` or `notebooks` runs: for a few files, starting workers costs more than it saves.

    A debugger and output that is not captured need the process of the terminal.
    """
    options = config.option
    if options.usepdb or options.trace or options.capture == "no" or options.collectonly:
        return False
    folders = [config.rootpath / name for name in config.getini("testpaths")]
    chosen = [config.invocation_params.dir / argument for argument in config.args]
    return any(folder.is_relative_to(path.resolve()) for folder in folders for path in chosen)
