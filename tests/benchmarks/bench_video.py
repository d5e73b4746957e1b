"""Decoding speed and memory on an hour of 640 x 360, against the ffmpeg program.

    python tests/benchmarks/bench_video.py [VIDEO]

The hour repeats the packets of a short video, VIDEO or one that is made here, 25 frames a second. Peaks are those of
fresh processes, Python and its libraries included; seconds are of one run each.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mrlib.video.probe import probe
from tests.support.videos import make_video, repeat

HOUR_S = 3600
OURS = """
import resource, sys
from mrlib.video.read import pictures
print(sum(1 for _ in pictures(sys.argv[1])), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds and output of a command."""
    start = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, run.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
        short = given or make_video(Path(folder, "short.mp4"), seconds=20, fps=25, size=(640, 360), gop=125)
        path = repeat(short, Path(folder, "hour.mp4"), HOUR_S)
        start = time.perf_counter()
        facts = probe(path)
        measured = time.perf_counter() - start
        print(f"{facts.duration_s:.0f} s of {facts.width} x {facts.height}, {path.stat().st_size / 1e6:.0f} MB")
        print(f"facts       {measured:6.2f} s")
        seconds, printed = timed([sys.executable, "-c", OURS, str(path)])
        count, megabytes = printed.split()
        print(
            f"pictures    {seconds:6.1f} s  {count} clips, {facts.duration_s / seconds:.0f} x real time, {megabytes} MB"
        )
        if (program := shutil.which("ffmpeg")) is None:
            print("the ffmpeg program is not installed")
            return
        size = f"{int(facts.width * 224 / facts.height)}:224"
        recipe = ["-vf", f"fps=0.5,scale={size},crop=224:224", "-f", "rawvideo", "-pix_fmt", "rgb24", "-y", "/dev/null"]
        baseline, _ = timed([program, "-v", "error", "-nostdin", "-i", str(path), *recipe])
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        print(f"ffmpeg      {baseline:6.1f} s  ratio {seconds / baseline:.2f}, largest process so far {peak} MB")


if __name__ == "__main__":
    main()
