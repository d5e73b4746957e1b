"""`python -m mrlib.train` under torchrun, with two workers that are killed: one in a step, one while it saves."""

from __future__ import annotations

import os
import signal

from mrlib import files, train
from mrlib.training.trainer import Trainer

PLACE = (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"])


def kill_in_step(step: int) -> None:
    """Let this process be killed after the training step of that number, before the next one."""
    train_step = Trainer._train_step

    def killed(self: Trainer, batch, where: str):
        values = train_step(self, batch, where)
        if where.endswith(f"step {step}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return values

    Trainer._train_step = killed


def kill_in_save(number: int) -> None:
    """Let this process be killed in its save of that number, before the new state replaces the old one."""
    rename, saved = os.replace, []

    def killed(source: str, target: str) -> None:
        if os.fspath(target).endswith("resume.safetensors"):
            saved.append(target)
            if len(saved) == number:
                os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    files.os.replace = killed


if __name__ == "__main__":
    if PLACE == ("0", "1"):
        kill_in_step(7)  # in the second epoch, of five steps
    if PLACE == ("1", "0"):
        kill_in_save(2)  # at the end of the third
    train.main()
