"""From a folder of videos and their annotations to a dataset that every paper trains on."""

import csv
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mrlib import open_dataset, papers, train
from mrlib.data.check import check
from mrlib.data.check import main as check_command
from mrlib.sim import open_sim
from mrlib.video import encode
from mrlib.video.clip import Clip
from mrlib.video.encode import Pixels
from mrlib.video.extract import extract, extract_on, main
from mrlib.video.rendered import render
from mrlib.video.search import find
from mrlib.video.shards import Shard
from mrlib.video.toy import train_toy
from tests.support.encoders import FakeEncoder, Wordless
from tests.support.own_videos import HEADER, ROWS, VIDEOS, files_of, own_folder, small_video
from tests.support.simulated import val
from tests.support.tiny_clip import write_tiny_clip

TEXT_PAPERS = [name for name, paper in papers.PAPERS.items() if paper.query == "text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return own_folder(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory) -> Path:
    """What one process writes at once."""
    extract(folder, out := tmp_path_factory.mktemp("out"), FakeEncoder())
    return out


@pytest.fixture
def fake(monkeypatch):
    """Let the command line know one encoder, "fake"."""
    monkeypatch.setattr(encode, "open_encoder", lambda name: FakeEncoder(), raising=False)


def test_a_table_of_moments_becomes_the_official_layout(written):
    expected = {"encoder.json", "highlight_train_release.jsonl", "highlight_val_release.jsonl"}
    expected |= {f"clip_features/{Path(name).stem}.npz" for name in VIDEOS}
    names = files_of(written).keys()
    assert expected < names and sum(name.startswith("clip_text_features/qid") for name in names) == len(names) - 7
    lines = [json.loads(line) for split in ("train", "val") for line in _lines(written, split)]
    windows = {(line["vid"], line["query"]): line["relevant_windows"] for line in lines}
    assert windows == {
        ("cat", "a cat jumps"): [[2, 6], [10, 14]],
        ("cat", "a cat sleeps"): [[4, 8.5]],
        ("dog", "a dog runs"): [[12, 20]],
        ("bird", "a bird sings, then flies"): [[0, 21]],
        ("fish", "a fish swims"): [[3, 9]],
    }
    assert {line["vid"]: line["duration"] for line in lines} == {"cat": 20, "dog": 24, "bird": 21, "fish": 30}


def _lines(out: Path, split: str) -> list[str]:
    return (out / f"highlight_{split}_release.jsonl").read_text().splitlines()


def test_features_are_those_of_the_encoder_in_float32(folder, written):
    encoder = FakeEncoder()
    with np.load(written / "clip_features/cat.npz") as arrays:
        np.testing.assert_array_equal(arrays["features"], encoder.video(folder / "cat.mp4").numpy())
    sample = next(s for s in open_dataset("qvhighlights", written, "val").samples if s.query == "a cat jumps")
    tokens, vector = encoder.text("a cat jumps")
    with np.load(written / f"clip_text_features/qid{sample.qid}.npz") as arrays:
        np.testing.assert_array_equal(arrays["last_hidden_state"], tokens.numpy())
        np.testing.assert_array_equal(arrays["pooler_output"], vector.numpy())


@pytest.mark.parametrize("clip_s", [2.0, 0.5])
def test_what_is_written_passes_the_check_and_opens_without_options(clip_s, folder, tmp_path, capsys):
    extract(folder, tmp_path, encoder := FakeEncoder(clip_s, width=6))
    assert check("qvhighlights", tmp_path) == [] and check_command(["qvhighlights", str(tmp_path)]) == 0
    assert "0 problems" in capsys.readouterr().out
    opened = open_dataset("qvhighlights", tmp_path)
    assert (opened.clip_s, opened.settings["encoder"]) == (clip_s, encoder.recipe)
    assert opened.target.lengths.tolist() == [round(s.duration / clip_s) for s in opened.samples]


@pytest.mark.parametrize("paper", TEXT_PAPERS)
def test_every_text_paper_trains_on_it_and_then_finds_moments_in_the_videos(paper, folder, written, tmp_path):
    options = {"settings": {"epochs": 1}, "dataset": "qvhighlights", "root": str(written), "out_dir": tmp_path / "run"}
    scores, _, retriever = train.experiment(paper, size="small", **options)
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert "brief" in scores and run["train"]["encoder"] == run["val"]["encoder"] == FakeEncoder().recipe
    opened = open_dataset("qvhighlights", written, "val")
    (line,) = retriever.predict(opened.batch([0]))
    video, asked = (
        folder / f"{line['vid']}.mp4",
        {"retriever": tmp_path / "run", "cache": tmp_path / "cache", "here": 0},
    )
    found = find(video, line["query"], encoder=FakeEncoder(), **asked)
    windows = [[moment["start_s"], moment["end_s"], moment["score"]] for moment in found]
    assert windows and windows == line["pred_relevant_windows"][: len(windows)]  # the same numbers, to the last bit
    with pytest.raises(ValueError, match="of another encoder"):
        find(video, line["query"], encoder=FakeEncoder(version=2), **asked)


def test_videos_as_queries_get_the_layout_of_matr(tmp_path):
    rows = ("cat,2,6,short", "dog.mp4,0:12,0:20,short.mp4", "bird,4,8,cat", "bird,10,12,cat")
    videos = VIDEOS | {"short.mp4": 4}
    folder = own_folder(tmp_path / "in", rows, "video,start,end,query_video", videos)
    report = extract(folder, tmp_path / "out", Pixels())  # which has no words
    assert str(report).startswith("4 videos encoded, 0 kept, 0 failed; ") and report.name == "activitynet_vrl"
    assert check("activitynet_vrl", tmp_path / "out") == []
    splits = [open_dataset("activitynet_vrl", tmp_path / "out", split) for split in ("train", "val")]
    pairs = {(s.qid, s.vid): s.relevant_windows for split in splits for s in split.samples}
    assert pairs == {("short", "cat"): [[2, 6]], ("short", "dog"): [[12, 20]], ("cat", "bird"): [[4, 8], [10, 12]]}
    assert extract(folder, tmp_path / "out", Pixels()).kept == 4
    options = {"settings": {"epochs": 1}, "dataset": "activitynet_vrl", "root": str(tmp_path / "out")}
    _, _, retriever = train.experiment("matr", size="small", out_dir=tmp_path / "run", **options)
    (line,) = retriever.predict(splits[1].batch([0]))
    video, clip = (folder / f"{line[name]}.mp4" for name in ("vid", "qid"))
    found = find(video, clip=clip, retriever=tmp_path / "run", encoder=Pixels(), cache=tmp_path / "cache", here=0)
    windows = [[moment["start_s"], moment["end_s"], moment["score"]] for moment in found]
    assert windows and windows == line["pred_relevant_windows"][: len(windows)]


def test_an_encoder_without_words_writes_the_videos_and_says_so(folder, tmp_path):
    with pytest.warns(UserWarning, match="no features of sentences are written.*Wordless cannot read a sentence"):
        report = extract(folder, tmp_path, Wordless())
    assert report.encoded == 4 and not (tmp_path / "clip_text_features").exists()


def test_the_command_with_a_clip_folder_writes_what_clip_gives(folder, tmp_path, capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    clip = write_tiny_clip(tmp_path / "clip", projection=24)
    assert main([str(folder), str(tmp_path / "out"), "--encoder", str(clip)]) == 0
    told = capsys.readouterr()
    assert told.out == f"4 videos encoded, 0 kept, 0 failed; train 2, val 3 queries: {tmp_path / 'out'}\n"
    assert told.err == ""
    encoder = Clip(clip)
    with np.load(tmp_path / "out/clip_features/bird.npz") as arrays:
        np.testing.assert_allclose(arrays["features"], encoder.video(folder / "bird.mp4"), atol=1e-5)
        assert arrays["features"].shape == (11, 24)  # 21 s, as published
    opened = open_dataset("qvhighlights", tmp_path / "out", "val")
    assert opened.settings["encoder"] == encoder.recipe and opened.widths.query == 32
    assert check("qvhighlights", tmp_path / "out") == []


def test_rendered_videos_and_toy_make_a_dataset(tmp_path):
    toy, rows = train_toy(open_sim("train", n=4), steps=2, batch_size=4), []
    (tmp_path / "in").mkdir()
    for i, sample in enumerate(val().samples[:3]):
        render(val(), i, tmp_path / "in" / f"{sample.vid}.mp4", fps=4, width=64, height=36)
        rows += [[sample.vid, *window, sample.query] for window in sample.relevant_windows]
    with (tmp_path / "in/moments.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER.split(","), *rows])
    extract(tmp_path / "in", tmp_path / "out", toy)
    splits = [open_dataset("qvhighlights", tmp_path / "out", split, normalize=False) for split in ("train", "val")]
    windows = {sample.vid: sample.relevant_windows for split in splits for sample in split.samples}
    assert windows == {sample.vid: sample.relevant_windows for sample in val().samples[:3]}
    for split in splits:
        for i, sample in enumerate(split.samples):
            batch, (tokens, vector) = split.batch([i]), toy.text(sample.query)
            assert torch.equal(batch.target[0], toy.video(tmp_path / "in" / f"{sample.vid}.mp4"))
            assert torch.equal(batch.query[0], tokens) and torch.equal(batch.query_joint[0], vector)
    assert splits[0].settings["encoder"] == toy.recipe


# ---- going on


def test_what_is_whole_is_kept_and_what_is_not_is_made_again(folder, written, tmp_path):
    extract(folder, tmp_path, FakeEncoder())
    damaged = [tmp_path / "clip_features/cat.npz", *sorted((tmp_path / "clip_text_features").iterdir())[:1]]
    for file in damaged:
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 255
        file.write_bytes(content)
    (tmp_path / "clip_features/dog.npz").unlink()
    (tmp_path / "clip_features/.fish.npz.0123abcd.partial").write_bytes(b"of a killed process")
    report = extract(folder, tmp_path, encoder := FakeEncoder())
    assert {"cat.mp4", "dog.mp4"} <= set(encoder.videos) and report.encoded == len(encoder.videos) <= 3
    assert files_of(tmp_path) == files_of(written)


def test_a_row_more_and_another_video_change_what_they_concern_only(tmp_path):
    folder = own_folder(tmp_path / "in")
    extract(folder, tmp_path / "out", FakeEncoder())
    before = files_of(tmp_path / "out")
    own_folder(folder, ("dog,2,4,a dog eats", *ROWS), videos={"fish.mp4": 12})
    extract(folder, tmp_path / "out", encoder := FakeEncoder())
    assert sorted(encoder.videos) == ["dog.mp4", "fish.mp4"]
    after = files_of(tmp_path / "out")
    changed = {name for name in before if before[name] != after[name]}
    assert "clip_features/fish.npz" in changed and all("highlight" in name or "fish" in name for name in changed)
    assert len(after) == len(before) + 1 and check("qvhighlights", tmp_path / "out") == []


def test_a_folder_of_another_encoder_is_refused_by_name(folder, written):
    with pytest.raises(ValueError, match="features of another encoder are here, version 1, not 2; give another folder"):
        extract(folder, written, FakeEncoder(version=2))
    with pytest.raises(ValueError, match='encoder "fake", not "pixels"'):
        extract(folder, written, Pixels())
    with pytest.raises(ValueError, match="no encoder.json, but other files, as bird.mp4; give a new or empty folder"):
        extract(folder, folder, FakeEncoder())


def test_shards_together_write_what_one_process_writes(folder, written, tmp_path):
    reports = [extract(folder, tmp_path, FakeEncoder(), Shard(k, 3)) for k in range(3)]
    assert sum(report.encoded for report in reports) == 4
    assert files_of(tmp_path) == files_of(written)
    assert reports[0].waiting > 0 and reports[0].splits == {} and sum(reports[-1].splits.values()) == 5


PROGRAM = """
import sys
from mrlib.video import encode, extract
from tests.support.encoders import FakeEncoder

class Waiting(FakeEncoder):
    def video(self, path, progress=None):
        features = super().video(path, progress)
        print(path, flush=True)
        sys.stdin.readline()
        return features

encode.open_encoder = lambda name: Waiting()
sys.exit(extract.main(sys.argv[1:]))
"""


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen:
    """The command in a process of its own; it prints the path of every video in work, and then waits for a line."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments), "--encoder", "fake"]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment, **options)


def test_killed_and_resumed_it_writes_what_an_uninterrupted_run_writes(folder, written, tmp_path, fake, capsys):
    for before in (0, 2):  # videos that are written before a kill
        process = start(folder, tmp_path / "out")
        for _ in range(before):
            process.stdout.readline()
            print(file=process.stdin, flush=True)
        process.stdout.readline()
        process.kill()
        assert process.wait() == -signal.SIGKILL and len(list(tmp_path.glob("out/clip_features/*.npz"))) == before
        process.communicate()
    assert main([str(folder), str(tmp_path / "out")]) == 0
    assert "2 videos encoded, 2 kept, 0 failed; train 2, val 3 queries" in capsys.readouterr().out
    assert files_of(tmp_path / "out") == files_of(written)


def test_after_ctrl_c_it_stops_at_the_next_video_and_goes_on_from_there(folder, written, tmp_path, fake, capsys):
    process = start(folder, tmp_path)
    process.stdout.readline()
    assert main([str(folder), str(tmp_path)]) == 2  # meanwhile
    assert f"shard 0/1 of {tmp_path} is in use by process {process.pid}" in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate("\n", timeout=120)
    assert (process.returncode, output, len(list(tmp_path.glob("clip_features/*.npz")))) == (130, "", 1)
    assert errors.count("\n") == 1 and errors.startswith("stopped after ") and "the same command goes on" in errors
    report = extract(folder, tmp_path, FakeEncoder())
    assert (report.kept, report.encoded) == (1, 3) and files_of(tmp_path) == files_of(written)


def test_processes_of_one_job_share_the_videos(folder, written, tmp_path):
    processes = [start(folder, tmp_path, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for rank, process in enumerate(processes):
        _, errors = process.communicate("\n" * 4, timeout=120)
        assert (process.returncode, errors) == (0, f"shard {rank}/2, as RANK and WORLD_SIZE say\n")
    assert files_of(tmp_path) == files_of(written)


def query_videos(folder: Path) -> Path:
    """A folder whose queries are videos, for `Pixels`, which a worker opens by its name."""
    return own_folder(folder, ("cat,2,6,dog", "bird,4,8,cat", "fish,3,9,dog"), "video,start,end,query_video")


def test_shards_on_an_executor_write_what_one_process_writes(tmp_path):
    folder = query_videos(tmp_path / "in")
    alone = extract(folder, tmp_path / "alone", Pixels())
    with ThreadPoolExecutor(2) as executor:
        report = extract_on(executor, 3, folder, tmp_path / "out", "pixels")
        assert report == alone and report.encoded == 4 and sum(report.splits.values()) == 3
        assert extract_on(executor, 3, folder, tmp_path / "out", "pixels").kept == 4
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")


def test_shards_that_are_lost_are_named_and_the_same_call_goes_on(tmp_path):
    class Dying(ThreadPoolExecutor):
        def submit(self, *arguments):
            if self._work_queue.qsize() or self._threads:
                raise BrokenExecutor("a worker died")
            return super().submit(*arguments)

    folder = query_videos(tmp_path / "in")
    with Dying(1) as executor, pytest.raises(RuntimeError) as failure:
        extract_on(executor, 2, folder, tmp_path / "out", "pixels")
    lines = "1 of 2 shards are done; the same call goes on with the others", "shard 1/2: its worker was lost, Broken"
    assert [line[: len(lines[1])] for line in str(failure.value).splitlines()] == [lines[0][: len(lines[1])], lines[1]]
    with ThreadPoolExecutor(1) as executor:
        report = extract_on(executor, 2, folder, tmp_path / "out", "pixels")
    assert report.kept > 0 and report.kept + report.encoded == 4 and report.splits
    extract(folder, tmp_path / "alone", Pixels())
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")


def test_wrong_arguments_of_shards_are_named_before_anything_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("MRLIB_CLIP", raising=False)
    (tmp_path / "file").touch()
    with ThreadPoolExecutor(1) as executor:
        for arguments, kind, message in (
            ((executor, 0, folder, tmp_path / "out"), ValueError, "shards must be a whole number from 1 to 100000"),
            ((executor, 2, tmp_path / "no", tmp_path / "out"), FileNotFoundError, "no such folder of videos"),
            ((executor, 2, folder, tmp_path / "file"), ValueError, "out must be a folder"),
            ((4, 2, folder, tmp_path / "out", "pixels"), ValueError, "executor must be a concurrent.futures.Executor"),
            ((executor, 1, folder, tmp_path / "out"), RuntimeError, "shard 0/1: ValueError: no encoder is given and"),
        ):
            with pytest.raises(kind, match=message):
                extract_on(*arguments)
            assert not (tmp_path / "out").exists()


def test_the_bar_counts_seconds_of_video(folder, tmp_path, capsys):
    extract(folder, tmp_path, FakeEncoder(), progress=True)
    assert "| 95/95 [" in capsys.readouterr().err
    extract(folder, tmp_path, FakeEncoder())
    assert capsys.readouterr().err == ""


# ---- what goes wrong


def test_videos_that_cannot_be_read_do_not_stop_the_others(tmp_path, fake, capsys):
    videos = {f"v{i}.mp4": 6 for i in range(6)}
    folder = own_folder(tmp_path / "in", [f"v{i},0,4,query {i}" for i in range(6)], videos=videos)
    (folder / "v1.mp4").write_text("no video")
    (folder / "v4.mp4").write_bytes((folder / "v4.mp4").read_bytes()[:100])
    out = tmp_path / "out"
    assert main([str(folder), str(out)]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("4 videos encoded, 0 kept, 2 failed; train ") and told.out.count("\n") == 1
    assert [line.partition(":")[0] for line in told.err.splitlines()] == ["v1", "v4"]
    assert sorted(file.name for file in (out / "failed").iterdir()) == ["v1.txt", "v4.txt"]
    assert check("qvhighlights", out) == []
    small_video(folder / "v1.mp4", 6)
    assert main([str(folder), str(out)]) == 1
    assert capsys.readouterr().out.startswith("1 video encoded, 4 kept, 1 failed; ")
    small_video(folder / "v4.mp4", 6)
    assert main([str(folder), str(out)]) == 0 and not (out / "failed").exists()
    assert len([*_lines(out, "train"), *_lines(out, "val")]) == 6


def test_a_dataset_without_train_or_val_is_noted(folder, tmp_path, fake, capsys):
    table = tmp_path / "moments.csv"
    table.write_text("video,start,end,query,split\nbird.mp4,0,2,a bird,train\n")
    assert main([str(folder), str(tmp_path / "out"), "--annotations", str(table)]) == 0
    told = capsys.readouterr()
    assert "; train 1 queries: " in told.out
    assert (
        told.err.startswith("note: no query is in val, and training needs train and val") and told.err.count("\n") == 1
    )


def test_a_shard_annotates_although_a_video_of_another_failed(tmp_path):
    folder = own_folder(tmp_path / "in")
    (folder / "cat.mp4").write_text("no video")
    reports = [extract(folder, tmp_path / "out", FakeEncoder(), Shard(k, 2)) for k in range(2)]
    assert sum(len(report.failed) for report in reports) == 1 and sum(reports[1].splits.values()) == 3


def test_an_error_while_a_video_is_encoded_is_that_of_the_video(folder, tmp_path):
    class Picky(FakeEncoder):
        def video(self, path, progress=None):
            if Path(path).stem == "dog":
                raise ValueError(f"{path}: no frames")
            return super().video(path, progress)

    report = extract(folder, tmp_path, Picky())
    assert report.failed == {"dog": f"{folder / 'dog.mp4'}: no frames"} and report.encoded == 3


def test_a_sentence_that_an_encoder_does_not_know_is_an_error_of_its_video(folder, tmp_path):
    class Narrow(FakeEncoder):
        def text(self, query):
            if not {"cat", "dog"} & set(query.split()):
                raise ValueError(f"{query!r} names nothing that is known")
            return super().text(query)

    report = extract(folder, tmp_path, Narrow())
    assert report.failed.keys() == {"bird", "fish"} and "'a fish swims' names nothing" in report.failed["fish"]
    assert check("qvhighlights", tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["cat,2,6,a cat"], "movie,start,end,query", "line 1: video: no such column; needed are video, start, end"),
        (["cat,2,6,a cat"], "video,start,end,text", "line 1: query: no such column"),
        (["cat,2,6,a cat", "cow,2,6,a cow"], HEADER, "line 3: video: 'cow' is not in .*; correct the name, or add"),
        (["cat.mkv,2,6,a cat"], HEADER, "line 2: video: 'cat.mkv' is not in .*; there is cat.mp4"),
        (["cat,6,2,a cat"], HEADER, "line 2: start and end: .*ends before it starts; swap"),
        (["cat,2,60,a cat"], HEADER, "line 2: start and end: .*ends a clip or more after the video, 20 s"),
        (["cat,-2,6,a cat"], HEADER, "line 2: start and end: .*starts before the video"),
        (["cat,2,6, "], HEADER, "line 2: query: '' has no word; describe the moment"),
        (["cat,2,1:77,a cat"], HEADER, "line 2: end: is '1:77', not a time; write seconds as 62.5, or 1:02.5"),
        (["cat,,6,a cat"], HEADER, "line 2: start: is '', not a time"),
        (["cat,2,6"], HEADER, "line 2: row: has more or fewer fields"),
        (["cat,2,6,caf\udce9"], HEADER, "line 2: unreadable: bytes that are no text in UTF-8; save the file as CSV"),
        (["cat,2,6,a cat,a/b"], f"{HEADER},split", "line 2: split: is 'a/b', not the name of a split"),
        ([], HEADER, "empty: no row"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_before_work_begins(rows, header, message, folder, tmp_path, fake, capsys):
    table = tmp_path / "moments.csv"
    table.write_text("".join(f"{row}\n" for row in (header, *rows)), errors="surrogateescape")
    assert main([str(folder), str(tmp_path / "out"), "--annotations", str(table)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert told.err.startswith(f"error: {table}")
    with pytest.raises(ValueError, match=message):
        extract(folder, tmp_path / "out", FakeEncoder(), annotations=[table])


def test_bad_lines_are_left_out_if_asked(folder, written, tmp_path):
    table = tmp_path / "moments.csv"
    table.write_text("\n".join([HEADER, *ROWS, "cow,2,6,a cow", "hen,2,6,a hen", "dog,20,90,a dog barks"]))
    with pytest.raises(ValueError, match="line 8: video: 'cow' is not in .*; beside it there is 1 problem"):
        extract(folder, tmp_path / "out", FakeEncoder(), annotations=[table])
    with pytest.warns(UserWarning, match='bad="skip" leaves out 3 of 9 lines') as told:
        extract(folder, tmp_path / "skip", FakeEncoder(), annotations=[table], bad="skip")
    assert len(told) == 1 and files_of(tmp_path / "skip").items() >= files_of(written).items()
    assert check("qvhighlights", tmp_path / "skip") == []


def test_two_videos_of_one_name_are_refused_before_work_begins(tmp_path, fake, capsys):
    folder = own_folder(tmp_path / "in", videos=VIDEOS | {"more/cat.mkv": 4})
    assert main([str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'cat.mp4'} and {folder / 'more/cat.mkv'} have one name" in error
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_named_in_one_line(folder, tmp_path, fake, capsys):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([tmp_path / "none", tmp_path / "out"], "none: missing file: no such folder of videos"),
        ([folder, tmp_path / "file"], "out must be a folder"),
        ([folder, tmp_path / "out", "--shard", "2/2"], "shard must be k/n with k from 0 to n - 1"),
        ([folder, tmp_path / "out", "--annotations", folder / "no.csv"], "no.csv: missing file: no such annotation"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_an_encoder_without_one_joint_space_is_refused(folder, tmp_path):
    class Apart(FakeEncoder):
        def text(self, query):
            return torch.ones(2, 8), torch.ones(8)

    with pytest.raises(ValueError, match=r"clips of width 16 and sentences of \(8,\), but the layout needs one joint"):
        extract(folder, tmp_path / "out", Apart())
