"""Find a moment in a video from the command line: `python -m mrlib.find VIDEO "a sentence"`, or VIDEO --clip CLIP.

    python -m mrlib.find match.mp4 "a man opens the door" --encoder clip-vit-base-patch32
    python -m mrlib.find match.mp4 --clip replay.mp4 --save clips
    python -m mrlib.find match.mp4 "a man opens the door" --encoder clip-vit-base-patch32 --retriever runs/first --json

Without --retriever the answer needs no training. The exit status is 0 if something is found, 1 if nothing is here, 2
for wrong input. Only the answer goes to standard output; notes and progress go to standard error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mrlib.arguments import has_terminal, printing
from mrlib.video.cut import cut
from mrlib.video.search import HERE_CLIP, HERE_PIXELS, HERE_SHOWN, HERE_WORDS, TOP, find

FOUND, NOT_HERE, WRONG = 0, 1, 2


@printing()
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the moments; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        moments = _answer(args)
        print(json.dumps(moments) if args.json else _table(moments))
        for number, moment in enumerate(moments, 1) if args.save else ():
            _save(args.save, number, moment)
    except BrokenPipeError:  # `printing` ends the command
        raise
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        return 130
    return FOUND if moments else NOT_HERE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mrlib.find",
        description=(__doc__ or "").split(":")[0] + ": by a sentence, or by a clip.",
        epilog="Exit status: 0 if something is found, 1 if nothing is here, 2 for wrong input. A score ranks the "
        "moments of one search: cosine with the sentence, likeness to the clip (at most 1), or the retriever's own.",
    )
    add = parser.add_argument
    add("video", help="the video to search in")
    add("query", nargs="?", help="a sentence, in quotes")
    add("--clip", help="a shorter video to search for, instead of a sentence")
    encoders = "a folder or hub name of CLIP; a folder that mrlib.video.Toy saved; pixels, for --clip only"
    add("--encoder", help=f"{encoders}; default $MRLIB_CLIP, for --clip pixels")
    retrievers = "a run's folder, a checkpoint, or the file of an official release, with the encoder of its training"
    add("--retriever", help=f"{retrievers}; default none")
    add("--top", type=int, default=TOP, metavar="K", help=f"the most moments; default {TOP}")
    usual = f"{HERE_WORDS} for a sentence, {HERE_SHOWN} with Toy; {HERE_CLIP} for a clip, {HERE_PIXELS} with pixels"
    least = "answer if the existence score, 0 to 1, which is not the score of a moment, is this or more; 0: always"
    add("--here", type=float, metavar="SCORE", help=f"{least}; default {usual}")
    add("--save", type=Path, metavar="FOLDER", help="write every moment as a video into this folder")
    add("--cache", help="folder for the features; default .mrlib_cache beside the video")
    add("--json", action="store_true", help="print the moments as JSON")
    return parser


def _answer(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The moments that the options ask for; a bar shows the seconds that are encoded."""
    if (args.query is None) == (args.clip is None):
        which = "neither is" if args.query is None else "both are"
        raise ValueError(f"give either a sentence, in quotes after the video, or --clip, a video; {which} given")
    if args.save is not None and args.save.exists() and not args.save.is_dir():
        raise ValueError(f"{args.save} is a file; give a folder to --save into")
    with tqdm(unit="s", desc="encoding", leave=False, disable=not has_terminal()) as bar:

        def show(done_s: float, total_s: float) -> None:
            bar.total = round(total_s)
            bar.update(round(done_s) - bar.n)

        names = ("query", "clip", "retriever", "encoder", "top", "here", "cache")
        return find(args.video, **{name: getattr(args, name) for name in names}, progress=show)


def _table(moments: Sequence[dict[str, Any]]) -> str:
    """The moments in columns."""
    if not moments:
        return "not here"
    rows = [("", "start", "end", "score")]
    for number, moment in enumerate(moments, 1):
        rows.append((str(number), _clock(moment["start_s"]), _clock(moment["end_s"]), f"{moment['score']:.3f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def _clock(seconds: float) -> str:
    """Seconds as m:ss.s, from an hour on as h:mm:ss.s."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def _save(folder: Path, number: int, moment: dict[str, Any]) -> None:
    """Cut one moment into the folder, and say where."""
    start, end = (_clock(moment[name]).replace(":", "m", 1).replace(":", "") for name in ("start_s", "end_s"))
    stem = re.sub(r"[^\w.-]+", "_", Path(moment["video"]).stem).strip("._")[:60] or "video"
    file = folder / f"{stem}_{number:02}_{start}-{end}.mp4"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{folder} cannot be made, {error.strerror}; give another folder to --save into"
        raise OSError(error.errno, reason) from None
    written = cut(moment["video"], moment["start_s"], moment["end_s"], file)
    print(f"saved {_one_line(str(file))}{f': {written.note}' if written.note else ''}", file=sys.stderr)


def _one_line(text: str) -> str:
    """A text in one line; characters that would break it, as in the name of a file, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    raise SystemExit(main())
