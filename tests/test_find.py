"""The command line `python -m mrlib.find`."""

import json

import pytest

from mrlib import find
from tests.support.videos import real_video

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


def test_ctrl_c_ends_quietly(monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(find, "find", stop)
    assert find.main(["v.mp4", "a dog"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_clip_is_found_in_a_real_video(capsys, tmp_path):
    """The whole way, without weights."""
    video = real_video("videos/mmaction_demo.mp4")
    assert find.main([str(video), "--clip", str(video), "--json", "--cache", str(tmp_path)]) == 0
    best = json.loads(capsys.readouterr().out)[0]
    assert best["video"] == str(video) and best["start_s"] <= 0.5 and best["end_s"] >= 9.5
