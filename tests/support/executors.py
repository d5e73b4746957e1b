"""Executors of every kind that tests use; those of packages that are not installed are skipped."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

KINDS = ("threads", "spawn", "fork", "forkserver", "dask", "executorlib")


@contextmanager
def opened(kind: str, workers: int = 2) -> Iterator[Executor]:
    """An executor of two workers on this machine."""
    with ExitStack() as stack:
        if kind == "threads":
            yield stack.enter_context(ThreadPoolExecutor(workers))
        elif kind == "dask":
            yield stack.enter_context(dask_cluster(workers)).get_client().get_executor()
        elif kind == "executorlib":
            executorlib = pytest.importorskip("executorlib", reason="executorlib is not installed")
            yield stack.enter_context(executorlib.SingleNodeExecutor(max_workers=workers, hostname_localhost=True))
        elif kind not in multiprocessing.get_all_start_methods():
            pytest.skip(f"this system cannot start processes by {kind}")
        else:
            yield stack.enter_context(ProcessPoolExecutor(workers, multiprocessing.get_context(kind)))


@contextmanager
def dask_cluster(workers: int = 2) -> Iterator:
    """A cluster of Dask on this machine; each worker is a process with one thread."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    options = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        yield cluster
