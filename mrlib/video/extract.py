"""Write the features of a folder of videos in an official layout: `python -m mrlib.video.extract FOLDER OUT`.

    python -m mrlib.video.extract my_videos my_data --encoder clip-vit-base-patch32
    python -m mrlib.video.extract my_videos my_data --encoder clip-vit-base-patch32 --shard 0/4
    python -m mrlib.train qd_detr --dataset qvhighlights --root my_data --out runs/mine

FOLDER has the videos and their annotations, see `mrlib.video.annotated`; OUT is described in
`mrlib.video.feature_files`. The same command goes on where it was stopped or killed, and keeps whatever is whole and
made with the same recipe from the same input. A video that cannot be read does not stop the others.

Several processes share the work by --shard k/n, or as torchrun or an array of SLURM numbers them: a video belongs to
shard hash(name) mod n. The one that ends last writes the annotation files. Together they write what one alone writes,
byte for byte. `extract_on` starts them on an executor.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from mrlib.arguments import has_terminal, printing, require
from mrlib.data.lenient import Mode, mode_of
from mrlib.data.problems import counted
from mrlib.jobs import Job, JobError, submitted
from mrlib.training import stopping
from mrlib.video.annotated import Annotated, read_folder
from mrlib.video.encode import Encoder
from mrlib.video.feature_files import FeatureFolder
from mrlib.video.index import fresh_index, plain_recipe
from mrlib.video.read import Progress, probe
from mrlib.video.shards import MOST, Shard, parse_shard, shard_of_process

EXTRACT = "mrlib.video.extract.extract_shard"  # what encodes a shard at its worker


@dataclass
class Report:
    """What an extraction did."""

    name: str  # of the dataset, for `mrlib.open_dataset`
    encoded: int = 0  # videos
    kept: int = 0  # videos that were there already
    failed: dict[str, str] = field(default_factory=dict)  # video of this shard -> why it could not be read
    splits: dict[str, int] = field(default_factory=dict)  # queries in every annotation file, if they were written
    waiting: int = 0  # videos of other shards that are not there yet

    def add(self, other: Report) -> None:
        """Add what another shard did; the last one has the splits."""
        self.name, self.encoded, self.kept = other.name, self.encoded + other.encoded, self.kept + other.kept
        self.failed |= other.failed
        self.splits = self.splits or other.splits
        self.waiting = 0 if self.splits else other.waiting

    def __str__(self) -> str:
        text = f"{counted(self.encoded, 'video')} encoded, {self.kept} kept, {len(self.failed)} failed"
        if self.waiting:
            return f"{text}; {self.waiting} of other shards are not there yet; the last process writes the annotations"
        return f"{text}; {', '.join(f'{split} {n}' for split, n in self.splits.items()) or 'no'} queries"


def extract(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    encoder: Encoder,
    shard: Shard | None = None,
    annotations: Sequence[str | os.PathLike] = (),
    bad: Mode = "error",
    progress: bool = False,
) -> Report:
    """Write the features and annotations of a folder of videos.

    folder       of videos, with annotations
    out          folder of a dataset: a new or empty one, or one that was begun with the same encoder
    shard        which videos to encode; None: all
    annotations  files, see `mrlib.video.annotated`; none: those of the folder
    bad          what to do with annotated lines that are not right, see `mrlib.data.lenient`
    progress     show a bar of seconds of video

    ValueError, FileNotFoundError  before anything is written: a folder, an annotated line or an option is wrong
    OSError                        something cannot be written
    KeyboardInterrupt              after Ctrl-C, SystemExit after SIGTERM: when the video in work is done
    """
    mode_of(bad)
    recipe, shard = plain_recipe(encoder), shard or Shard()
    annotated = read_folder(Path(folder), annotations)
    files = FeatureFolder(Path(out), recipe, words=annotated.words)
    annotated.check({}, (), recipe["clip_s"], bad)  # what needs no video first
    sentences = annotated.sentences()
    if annotated.words and not _check_sentences(encoder, (text for of in sentences.values() for text in of.values())):
        sentences = {}
    work = _Work(annotated, files, encoder, shard, sentences)
    work.look()
    annotated.check(work.durations, work.report.failed, recipe["clip_s"], bad)
    from mrlib.locks import hold  # filelock is imported only where something is written

    with hold(files.root / f".shard-{shard.k}-of-{shard.n}.lock", f"shard {shard} of {files.root}"):
        files.begin()
        with stopping.at_next_step(files.root):
            work.encode_all(progress)
        work.annotate(bad)
    return work.report


def extract_on(
    executor: Executor,
    shards: int,
    folder: str | os.PathLike,
    out: str | os.PathLike,
    encoder: str | None = None,
    annotations: Sequence[str | os.PathLike] = (),
    bad: Mode = "error",
) -> Report:
    """Write the features of a folder of videos in shards on an executor, see `mrlib.jobs`; returns what all did.

    executor  whose workers see `folder`, `out` and, if it is a folder, the encoder; it stays open
    shards    into how many the videos are split; more than workers, so that none waits long for the last one
    encoder   of `mrlib.video.encode.open_encoder`; every worker opens it

    the others as `extract` has them

    ValueError, FileNotFoundError  before anything is written: a folder or an option is wrong, or the executor is none
    RuntimeError                   shards that failed or were lost with their workers, when all others are done; the
                                   same call goes on
    """
    require(type(shards) is int and 1 <= shards <= MOST, "shards", shards, f"a whole number from 1 to {MOST}")
    read_folder(Path(folder), annotations)  # what is wrong with it is told here, once
    name, out = encoder or os.environ.get("MRLIB_CLIP"), Path(out)
    require(out.is_dir() or not out.exists(), "out", str(out), "a folder, which is made if it is not there")
    arguments = {"folder": os.path.abspath(folder), "out": os.path.abspath(out), "bad": mode_of(bad)}
    arguments["encoder"] = os.path.abspath(name) if name and Path(name).is_dir() else name
    arguments["annotations"] = [os.path.abspath(file) for file in annotations]
    jobs = {}
    for shard in (Shard(k, shards) for k in range(shards)):
        lock = out / f".job-{shard.k}-of-{shards}.lock"
        jobs[shard] = Job(f"shard {shard}", EXTRACT, arguments | {"shard": str(shard)}, lock)
    total, failed = Report(""), []
    with _made(out), submitted(jobs, executor, out) as ended:
        for shard, answer in ended:
            if isinstance(answer, JobError):
                failed.append(f"shard {shard}: {answer}")
            else:
                total.add(Report(**answer))
    if failed:
        done = f"{shards - len(failed)} of {shards} shards are done; the same call goes on with the others"
        raise RuntimeError("\n".join([done, *failed]))
    return total


def extract_shard(
    folder: str, out: str, encoder: str | None, shard: str, annotations: Sequence[str], bad: Mode
) -> dict[str, Any]:
    """`extract` in the process of a worker; the fields of its report."""
    from mrlib.video.encode import open_encoder

    return asdict(extract(folder, out, open_encoder(encoder), parse_shard(shard), annotations, bad))


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder for a block; if it is empty at the end, remove it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def _check_sentences(encoder: Encoder, sentences: Iterable[str]) -> bool:
    """Whether an encoder reads any of these sentences, with a warning if it reads none.

    raises  ValueError if sentences are not in the space of clips
    """
    name, width, reason = encoder.recipe["encoder"], encoder.recipe["width"], "there is none"
    for sentence in sentences:
        try:
            _, vector = encoder.text(sentence)
        except ValueError as error:
            reason = error
            continue
        if vector.shape == (width,):
            return True
        raise ValueError(
            f"encoder {name} gives clips of width {width} and sentences of {tuple(vector.shape)}, but the layout needs "
            "one joint space; take an encoder that has one"
        )
    warnings.warn(f"no features of sentences are written, and no model of sentences trains: {reason}", stacklevel=3)
    return False


class _Work:
    """The videos of one process: which are there, which are to be encoded, which cannot be."""

    def __init__(
        self,
        annotated: Annotated,
        files: FeatureFolder,
        encoder: Encoder,
        shard: Shard,
        sentences: Mapping[str, Mapping[int | str, str]],
    ):
        """sentences  to be encoded, by the name of their video and their qid"""
        self.annotated, self.files, self.encoder, self.sentences = annotated, files, encoder, sentences
        self.paths = {**annotated.queries, **annotated.videos}
        self.names = [name for name in self.paths if shard.has(name)]
        self.pending: list[str] = []
        self.durations: dict[str, float] = {}  # of videos, in seconds
        self.report = Report(files.name)

    def look(self) -> None:
        """Find out which videos of this shard are there, and the durations of all of them."""
        for name in self.names:
            size = self.paths[name].stat().st_size
            duration_s = self.files.duration_s(name, size) if name in self.annotated.videos else None
            whole = duration_s is not None or name not in self.annotated.videos
            whole = whole and (name not in self.annotated.queries or self.files.has_query(name, size))
            if whole and all(self.files.has_query(*each) for each in self.sentences.get(name, {}).items()):
                self.report.kept += 1
            else:
                with self._collecting(name):
                    duration_s = float(probe(self.paths[name]).duration_s)
                    self.pending.append(name)
            if duration_s is not None:
                self.durations[name] = duration_s

    def encode_all(self, progress: bool) -> None:
        """Encode the videos that are not there yet, one after the other."""
        for name, reason in self.report.failed.items():
            self.files.fail(name, reason)
        done_s, total_s = 0.0, sum(self.durations[name] for name in self.pending)
        with tqdm(total=round(total_s), unit="s", desc="video", disable=not progress) as bar:

            def show(video_s: float, _: float) -> None:
                bar.update(round(done_s + video_s) - bar.n)

            for name in self.pending:
                self._encode(name, show)
                done_s += self.durations[name]
                show(0, 0)
                if number := stopping.requested(torch.device("cpu")):
                    raise stopping.Stopped(number, f"after {self.paths[name]}")

    def _encode(self, name: str, progress: Progress) -> None:
        """Write the features of a video and of the sentences about it, or why there are none."""
        with self._collecting(name):
            index = fresh_index(self.paths[name], self.encoder, progress)
            texts = {qid: self._text(sentence) for qid, sentence in self.sentences.get(name, {}).items()}
        if name in self.report.failed:
            self.files.fail(name, self.report.failed[name])
            return
        size = self.paths[name].stat().st_size
        for qid, (tokens, vector) in texts.items():
            self.files.write_query(qid, self.sentences[name][qid], tokens, vector)
        if name in self.annotated.queries:
            self.files.write_query(name, size, index.features)
        if name in self.annotated.videos:
            self.files.write_video(name, index.features, index.duration_s, size)
        self.files.succeed(name)
        self.report.encoded += 1

    def _text(self, sentence: str) -> tuple[Tensor, Tensor]:
        tokens, vector = self.encoder.text(sentence)
        if not (torch.isfinite(tokens).all() and torch.isfinite(vector).all()):
            raise ValueError(f"{sentence!r}: the encoder gave features that are NaN or infinite; check its weights")
        return tokens, vector

    @contextmanager
    def _collecting(self, name: str) -> Iterator[None]:
        """Note the error of a video that cannot be read."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.report.failed[name] = str(error)

    def annotate(self, bad: Mode) -> None:
        """Write the annotation files, if the videos of all shards are there or have failed."""
        failed = self.files.failed() & self.paths.keys()
        for name in self.paths.keys() - failed - self.durations.keys():
            if name in self.annotated.queries and not self.files.has_query(name, self.paths[name].stat().st_size):
                self.report.waiting += 1
            elif name in self.annotated.videos:
                duration_s = self.files.duration_s(name)
                self.report.waiting += duration_s is None
                self.durations[name] = duration_s or 0.0
        if self.report.waiting:
            return
        splits = self.annotated.samples(self.durations, failed, self.files.recipe["clip_s"], bad)
        for split, samples in sorted(splits.items()):
            self.files.write_annotations(split, samples)
            self.report.splits[split] = len(samples)


@printing()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, 1 if a video could not be read or a file not be written, 2 if nothing was done."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.video.extract", description=(__doc__ or "").split(":")[0])
    add = parser.add_argument
    add("folder", help="of videos, with a .csv file of the columns video,start,end,query, or .jsonl files")
    add("out", help="folder to write, then: python -m mrlib.train PAPER --dataset qvhighlights --root OUT")
    add(
        "--encoder",
        metavar="NAME",
        help="folder or hub name of CLIP, folder that mrlib.video.Toy saved, or pixels (for videos as queries only); "
        "default $MRLIB_CLIP",
    )
    add("--annotations", nargs="+", default=[], metavar="FILE", help="default: those of the folder")
    add("--bad", choices=get_args(Mode), default="error", help="lines that are not right; default error")
    shards = "encode shard k of n, from 0; default: as RANK and WORLD_SIZE or an array of SLURM say, or all"
    add("--shard", metavar="k/n", help=shards)
    args = parser.parse_args(arguments)
    try:
        with stopping.with_status():
            shard, source = (parse_shard(args.shard), "") if args.shard else shard_of_process()
            if source:
                print(f"shard {shard}, as {source} say", file=sys.stderr)
            from mrlib.video.encode import open_encoder  # here, so that --help and a wrong shard take no time

            encoder = open_encoder(args.encoder)
            report = extract(args.folder, args.out, encoder, shard, args.annotations, args.bad, progress=has_terminal())
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, reason in report.failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(f"{report}: {args.out}")
    if report.splits and (lacking := [split for split in ("train", "val") if split not in report.splits]):
        advice = "training needs train and val; annotate more videos, or set the column split"
        print(f"note: no query is in {' or '.join(lacking)}, and {advice}", file=sys.stderr)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
