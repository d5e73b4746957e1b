"""`mrlib.detect.map_size`: a video whose maps do not fit into the memory is refused, with the length that would fit."""

import re

import pytest
import torch

from mrlib import papers
from mrlib.align.anchor import RawAligner
from mrlib.data import Widths
from mrlib.detect import map_size
from mrlib.detect.similarity_map import build_similarity_map
from mrlib.detect.tan import TanDetector
from mrlib.retriever import MomentRetriever
from tests.support.batches import make_batch


@pytest.fixture
def small_machine(monkeypatch):
    """A machine of a million bytes."""
    monkeypatch.setattr(map_size, "device_memory", lambda device: 10**6)


def test_the_length_that_would_fit_fits_and_one_clip_more_does_not(small_machine):
    device = torch.device("cpu")
    for samples, cell_bytes in ((1, 20), (1, 64), (7, 20)):
        with pytest.raises(ValueError, match="300 clips") as error:
            map_size.require_maps_fit(samples, 300, cell_bytes, device)
        fits = int(re.search(r"enough for up to ([\d,]+) clips", str(error.value)).group(1))
        map_size.require_maps_fit(samples, fits, cell_bytes, device)
        with pytest.raises(ValueError, match=f"enough for up to {fits} clips"):
            map_size.require_maps_fit(samples, fits + 1, cell_bytes, device)


@pytest.mark.parametrize(
    ("own", "file"),
    [("0::/jobs/7\n", "jobs/7/memory.max"), ("0::/jobs/7\n", "jobs/memory.max"), ("0::/\n", "memory.max"),
     ("8:cpu:/\n4:memory:/jobs/7\n0::/\n", "memory/jobs/memory.limit_in_bytes")],
)  # fmt: skip
def test_the_memory_is_that_of_the_machine_or_of_its_control_groups(own, file, tmp_path, monkeypatch):
    """A limit of the group or of one above it, in both versions; no limit without them."""
    monkeypatch.setattr(map_size, "_OWN", tmp_path / "own")
    monkeypatch.setattr(map_size, "_CGROUPS", tmp_path)
    cpu, group = torch.device("cpu"), tmp_path / file
    machine = map_size.device_memory(cpu)  # without control groups
    assert machine >= 2**30
    (tmp_path / "own").write_text(own)
    assert map_size.device_memory(cpu) == machine
    group.parent.mkdir(parents=True, exist_ok=True)
    for text, memory in (("max\n", machine), ("1000000\n", 10**6), (f"{2 * machine}\n", machine)):
        group.write_text(text)
        assert map_size.device_memory(cpu) == memory


def test_the_memory_of_an_unknown_device_is_not_limited():
    map_size.require_maps_fit(1, 10**9, 100, torch.device("meta"))


@pytest.mark.parametrize(
    "build", [lambda: build_similarity_map(16, kernel=5, channels=2), lambda: TanDetector(16, channels=2)]
)
def test_a_detector_of_maps_refuses_a_video_that_does_not_fit(build, small_machine):
    retriever = MomentRetriever(RawAligner(16), build())
    retriever.predict(make_batch([20]))
    for call in (retriever.predict, retriever):
        with pytest.raises(
            ValueError, match=r"a video has 400 clips.* python -m mrlib.find, which cut it into windows"
        ):
            call(make_batch([3, 400]))


def test_training_needs_more_memory_than_prediction(small_machine):
    detector, batch = build_similarity_map(16, kernel=5, channels=2), make_batch([200])
    aligned = RawAligner(16)(batch)
    with torch.no_grad():
        detector(aligned, batch)
    with pytest.raises(ValueError, match="200 clips"):
        detector(aligned, batch)


@pytest.mark.parametrize(("clips", "moments"), [(1, 1), (5000, 10)])
def test_one_clip_and_three_hours_are_answered(clips, moments):
    """At two seconds per clip."""
    retriever = papers.build(papers.get("f2sgd", "small", kernel=3, channels=2), Widths(16, 16, 16))
    (line,) = retriever.predict(make_batch([clips], joint=16))
    assert len(line["pred_relevant_windows"]) == moments
