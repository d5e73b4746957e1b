"""One process at a time holds a lock, and a dead one holds none."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from mrlib import locks

HOLD = """
import sys, time
from pathlib import Path
from mrlib import locks
with locks.hold(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock `tmp_path/a/.lock` until its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_refused_with_its_name(holder, tmp_path):
    with (
        pytest.raises(
            locks.InUse, match=rf"^the run is in use by process {holder.pid} on {socket.gethostname()} since"
        ),
        locks.hold(tmp_path / "a" / ".lock", "the run"),
    ):
        pass


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "a" / ".lock").is_file()
    with locks.hold(tmp_path / "a" / ".lock", "the run"):
        pass
    assert not any((tmp_path / "a").iterdir())


def test_who_waits_is_told_for_whom_and_then_holds_the_lock(holder, tmp_path, capsys):
    threading.Timer(0.3, holder.stdin.close).start()
    with locks.hold(tmp_path / "a" / ".lock", "the run", wait=True):
        assert holder.wait() == 0
    assert capsys.readouterr().err.startswith(f"the run is in use by process {holder.pid} on ")


def test_a_thread_does_not_wait_for_itself(tmp_path):
    with (
        locks.hold(tmp_path / ".lock", "the run"),
        pytest.raises(locks.InUse, match="by the same thread"),
        locks.hold(tmp_path / ".lock", "the run", wait=True),
    ):
        pass


def test_a_lock_is_free_again_and_its_file_removed_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), locks.hold(tmp_path / ".lock", "the run"):
            assert (tmp_path / ".lock").is_file()
            raise RuntimeError
    assert not any(tmp_path.iterdir())


def test_a_lock_that_cannot_be_made_names_what_it_is_for(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match="cannot lock the run: Not a directory; choose a folder"),
        locks.hold(tmp_path / "file" / "a" / ".lock", "the run"),
    ):
        pass


def test_only_one_of_many_holds_a_lock_that_is_made_and_removed_again_and_again(tmp_path):
    """Threads lock as processes do. Each adds to a number in two steps; together they lose none."""
    (tmp_path / "number").write_text("0")

    def add() -> None:
        for _ in range(10):
            with locks.hold(tmp_path / ".lock", "the number", wait=True):
                number = int((tmp_path / "number").read_text())
                time.sleep(0.001)
                (tmp_path / "number").write_text(str(number + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "number").read_text() == "40" and os.listdir(tmp_path) == ["number"]


def test_on_a_full_disk_a_lock_is_held_without_a_name(tmp_path, monkeypatch):
    """An empty file can still be made there; what is written under the lock says that there is no space."""

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr("mrlib.locks.os.write", full)
        with locks.hold(tmp_path / ".lock", "the run"):
            assert (tmp_path / ".lock").read_bytes() == b""
    assert not any(tmp_path.iterdir())
