"""The command line `python -m mrlib.find`."""

import errno
import json
import re
import subprocess
import sys

import pytest

from mrlib import find
from mrlib.memory import OutOfMemory
from mrlib.video.probe import probe
from tests.support.copies import change, wandering
from tests.support.videos import audio_only, no_frames, repeat

MOMENTS = [
    {"video": 'a "b"\nc.mp4', "start_s": 2.0, "end_s": 75.25, "score": 0.5},
    {"video": 'a "b"\nc.mp4', "start_s": 3661.04, "end_s": 3700.0, "score": 0.25},
]


@pytest.fixture
def answers(monkeypatch):
    """Let the search return what the test puts into the list, and keep its arguments."""
    given, found = {}, list(MOMENTS)
    monkeypatch.setattr(find, "find", lambda video, **options: given.update(options, video=video) or found)
    return given, found


def test_a_table_for_people(answers, capsys):
    assert find.main(["v.mp4", "a dog", "--encoder", "e"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "       start        end  score",
        "1     0:02.0     1:15.2  0.500",
        "2  1:01:01.0  1:01:40.0  0.250",
    ]
    assert err == "" and (answers[0]["query"], answers[0]["encoder"], answers[0]["top"]) == ("a dog", "e", 5)


def test_json_for_programs_and_nothing_else(answers, capsys):
    assert find.main(["v.mp4", "--clip", "q.mp4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == MOMENTS
    answers[1].clear()
    assert find.main(["v.mp4", "a dog", "--json"]) == 1
    assert capsys.readouterr().out == "[]\n"
    assert find.main(["v.mp4", "a dog"]) == 1
    assert capsys.readouterr().out == "not here\n"


def test_wrong_input_takes_one_line_and_ends_with_2(tmp_path, capsys):
    name = str(tmp_path / 'no "such"\nvideo.mp4')
    assert find.main([name, "--clip", name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ") and 'no "such"\\nvideo.mp4' in err


def test_a_folder_to_save_into_that_is_a_file_is_refused_before_the_search(answers, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert find.main(["v.mp4", "a dog", "--save", str(tmp_path / "file")]) == 2
    assert "file is a file; give a folder to --save into" in capsys.readouterr().err and answers[0] == {}


def test_a_folder_to_save_into_that_cannot_be_made_is_named(answers, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert find.main(["v.mp4", "a dog", "--save", str(tmp_path / "file" / "clips")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "clips cannot be made, Not a directory; give another folder to --save into" in err


@pytest.mark.parametrize("module", ["mrlib.find", "mrlib.video.extract"])
def test_without_pyav_commands_take_one_line_and_help_is_there(module, tmp_path):
    """OUT stays as it was."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("not read")
    given = [str(tmp_path / "videos" / "a.mp4"), "--clip", str(tmp_path / "videos" / "a.mp4")]
    if module == "mrlib.video.extract":
        given = [str(tmp_path / "videos"), str(tmp_path / "out"), "--encoder", "pixels"]
        (tmp_path / "videos" / "a.csv").write_text("video,start,end,query\na.mp4,0,1,a dog\n")
    program = f"import sys, runpy; sys.modules['av'] = None; runpy.run_module({module!r}, run_name='__main__')"
    for arguments, status in ((given, 2), (["--help"], 0)):
        run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert (run.returncode, "Traceback" in run.stderr) == (status, False), run.stderr
        if status:
            assert run.stderr.endswith('error: videos are read with PyAV; install it with: pip install -e ".[video]"\n')
    assert not (tmp_path / "out").exists()


def test_a_device_without_memory_takes_one_line_and_ends_with_2(monkeypatch, capsys):
    def fail(video, **options):
        raise OutOfMemory("out of memory: batch size 2, videos of up to 75 clips; try a batch size of 1")

    monkeypatch.setattr(find, "find", fail)
    assert find.main(["video.mp4", "a dog"]) == 2
    assert capsys.readouterr().err.startswith("error: out of memory: batch size 2")


def test_ctrl_c_ends_quietly(monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(find, "find", stop)
    assert find.main(["v.mp4", "a dog"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    return wandering(tmp_path_factory.mktemp("spots") / 'my "spots"\n.mp4')


@pytest.fixture
def piece(spots, tmp_path):
    """The part of the video from 10 to 16 s."""
    return change(spots, 10, 16, tmp_path / "piece.mp4", crop=1.0)


def test_a_clip_is_found_and_saved(spots, piece, tmp_path, capsys):
    """The whole way, without weights; a name with quotes and a line break is safe everywhere."""
    saved = tmp_path / "saved" / "here"
    assert find.main([str(spots), "--clip", str(piece), "--json", "--save", str(saved), "--top", "1"]) == 0
    out, err = capsys.readouterr()
    best = json.loads(out)[0]
    assert best["video"] == str(spots) and abs(best["start_s"] - 10) <= 1 and abs(best["end_s"] - 16) <= 1
    (file,) = saved.iterdir()
    assert re.fullmatch(r"my_spots_01_0m\d\d\.\d-0m\d\d\.\d\.mp4", file.name)
    assert err == f"saved {file}\n"
    assert abs(probe(file).duration_s - (best["end_s"] - best["start_s"])) < 0.3


def test_without_space_nothing_half_written_is_left(spots, piece, tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "no space")

    saved = tmp_path / "saved"
    assert find.main([str(spots), "--clip", str(piece)]) == 0  # the features are in the cache
    monkeypatch.setattr("mrlib.files.os.fsync", full)
    capsys.readouterr()
    assert find.main([str(spots), "--clip", str(piece), "--save", str(saved)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device; free some space" in err
    assert not any(saved.iterdir())


def test_what_is_no_video_takes_one_line(spots, tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "folder").mkdir()
    long = repeat(spots, tmp_path / "long.mp4", 90)
    for name, words in {
        "nothing.mp4": "no such video",
        "text.mp4": "text.mp4",
        str(audio_only(tmp_path / "sound.mp4")): "sound.mp4",
        str(no_frames(tmp_path / "empty.mp4")): "empty.mp4",
        "folder": "is a folder; give one video file",
    }.items():
        path = str(tmp_path / name)
        for arguments in ([path, "--clip", str(spots)], [str(spots), "--clip", path]):
            assert find.main(arguments) == 2
            out, err = capsys.readouterr()
            assert out == "" and err.count("\n") == 1 and words in err, err
    assert find.main([str(spots), "--clip", str(long)]) == 2
    assert "is longer than the video" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a sentence, in quotes after the video, or --clip, a video; neither is given"),
        (["a dog", "--clip", "x.mp4"], "both are given"),
        (["  "], "query must be a sentence"),
        (["a dog", "--encoder", "pixels"], "Pixels cannot read a sentence; ask by clip"),
        (["a dog", "--encoder", "pixels", "--retriever", "."], "no folder of a run: it has no run.json"),
        (["a dog", "--top", "0"], "top must be a whole number of at least 1"),
        (["a dog", "--here", "2"], "here must be a number from 0 to 1"),
    ],
)
def test_wrong_options_take_one_line(arguments, message, spots, capsys):
    assert find.main([str(spots), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_a_signal_ends_the_command_quietly(spots):
    """Ctrl-C in a process of its own, while it encodes or before."""
    code = "import signal, os, mrlib.find as f; f.find = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)"
    code += f"; raise SystemExit(f.main([{str(spots)!r}, 'a dog']))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_a_reader_that_leaves_ends_the_command_as_others(spots, piece):
    command = [sys.executable, "-m", "mrlib.find", str(spots), "--clip", str(piece)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, b"")
