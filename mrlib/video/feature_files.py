"""The folder that `mrlib.video.extract` writes: features in an official layout, which `mrlib.open_dataset` reads.

    encoder.json                         the recipe of the encoder, see `mrlib.data.recipes`
    clip_features/{vid}.npz              `features` (n, D) of a video, and `duration_s` (1,)
    clip_text_features/qid{qid}.npz      `last_hidden_state` (N, D'), `pooler_output` (D,) of a sentence
    highlight_{split}_release.jsonl      annotations, written last
    failed/{video}.txt                   why a video could not be read

This is the layout of Moment-DETR. With videos as queries it is that of MATR: target_vid_clip/, query_vid_clip/qid{qid}
and activitynet_vrl_{split}.jsonl. Features are float32, so that a retriever trained on them meets the same numbers in
`mrlib.video.find`. `made_from` in an .npz file is a digest of the recipe and of what was encoded: the sentence, or the
size of the video file. It tells whether the file can stay. Equal input gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mrlib.arguments import require
from mrlib.data import Sample
from mrlib.data.arrays import read_array
from mrlib.data.layouts import DATASETS, LAYOUTS
from mrlib.data.problems import DataError, Problem
from mrlib.data.recipes import RECORD, differing, read_recipe
from mrlib.files import remove_dead, whole_file, write_jsonl, write_whole

_FAILED = "failed"
_LAYOUTS = {  # by whether queries are sentences: the name for `mrlib.open_dataset`, the layout, the annotation files
    True: ("qvhighlights", "moment_detr", "highlight_{split}_release.jsonl"),
    False: ("activitynet_vrl", "matr", "activitynet_vrl_{split}.jsonl"),
}
_MOST = 1 << 30  # numbers of an array
_ZIP = b"PK\x03\x04"  # the first bytes of an .npz file


class FeatureFolder:
    """A folder of features of one encoder."""

    def __init__(self, root: Path, recipe: Mapping[str, Any], *, words: bool):
        """words  queries are sentences; False: videos

        raises  ValueError, naming the folder, if it holds anything but features of this encoder
        """
        self.root, self.recipe, self.words = root, dict(recipe), words
        self.name, layout, self._annotations = _LAYOUTS[words]
        layout = LAYOUTS[layout]
        self._video, self._query = layout.video["clip"].templates[0], layout.query.templates[0]
        self._beside = (layout.sentence,) if words else ()  # the array of a sentence's vector
        require(not root.exists() or root.is_dir(), "out", str(root), "a folder, which is made if it is not there")
        if (recorded := read_recipe(root)) is None:
            others = [path.name for path in sorted(root.glob("*")) if not path.name.startswith(".")]
            if others:
                message = f"no {RECORD}, but other files, as {others[0]}; give a new or empty folder"
                raise DataError(Problem(str(root), None, "folder", message))
        elif recorded != self.recipe:
            differs = _difference(recorded, self.recipe)
            message = f"features of another encoder are here, {differs}; give another folder"
            raise DataError(Problem(str(root), None, "encoder", message))

    def begin(self) -> None:
        """Write the record of the encoder, and remove what killed processes left half-written."""
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in (self.root, *(path for path in self.root.iterdir() if path.is_dir())):
            remove_dead(folder)
        if not (self.root / RECORD).exists():
            write_whole(self.root / RECORD, json.dumps(self.recipe, indent=1) + "\n")

    # ---- features

    def duration_s(self, vid: str, size: int | None = None) -> float | None:
        """The duration of a video whose features are here; None if they are not, or are not whole.

        size  of the video file, which must be the one that was encoded, and all features are read; None: not compared
        """
        file, key = self._place(self._video, vid=vid)
        try:
            if size is not None and not self._is_made_from(size, file, key, "duration_s"):
                return None
            return float(read_array(file, "duration_s")[0])
        except (DataError, IndexError):
            return None

    def has_query(self, qid: int | str, source: str | int) -> bool:
        """Whether the features of a query are here and whole; source  its sentence, or the size of its video file."""
        return self._is_made_from(source, *self._place(self._query, qid=qid), *self._beside)

    def write_video(self, vid: str, features: Tensor, duration_s: float, size: int) -> None:
        """Write the features (n, D) of a video that is searched in; size  of its file, bytes."""
        self._write(self._video, size, {"vid": vid}, features, duration_s=np.array([duration_s]))

    def write_query(self, qid: int | str, source: str | int, rows: Tensor, vector: Tensor | None = None) -> None:
        """Write the tokens (N, D') of a sentence and its vector (D,), or the features of a query video."""
        vectors = [] if vector is None else [_array(vector)]
        self._write(self._query, source, {"qid": qid}, rows, **dict(zip(self._beside, vectors, strict=True)))

    def _place(self, template: str, **ids: int | str) -> tuple[Path, str]:
        """The file of a template of `mrlib.data.sources`, and the key of its array."""
        ids |= {"query": DATASETS[self.name].query.format(**ids)} if "qid" in ids else {}
        file, _, key = template.partition(":")
        return self.root / file.format(**ids), key.format(**ids)

    def _write(self, template: str, source: str | int, ids: dict, rows: Tensor, **beside: np.ndarray) -> None:
        file, key = self._place(template, **ids)
        arrays = {key: _array(rows), **beside, "made_from": self._made_from(source)}
        with whole_file(file) as out:
            np.savez(out, **arrays)  # entries of a zip file that numpy writes have a fixed time

    def _made_from(self, source: str | int) -> np.ndarray:
        """The digest of the recipe and of what is encoded, uint8 (16,)."""
        text = json.dumps([self.recipe, source], sort_keys=True)
        return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], np.uint8)

    def _is_made_from(self, source: str | int, file: Path, *keys: str) -> bool:
        """Whether a file is there, has these arrays, all whole, and is made from this source with this recipe."""
        with suppress(DataError):
            arrays = [read_array(file, key, _MOST) for key in keys]
            same = np.array_equal(read_array(file, "made_from"), self._made_from(source))
            with file.open("rb") as content:
                zipped = content.read(len(_ZIP)) == _ZIP  # numpy looks at these, the readers here at the end
            return same and zipped and all(np.isfinite(array).all() for array in arrays)
        return False

    # ---- failures and annotations

    def fail(self, video: str, message: str) -> None:
        """Note why a video could not be read."""
        write_whole(self.root / _FAILED / f"{video}.txt", f"{message}\n")

    def succeed(self, video: str) -> None:
        """Remove the note of an earlier failure."""
        (self.root / _FAILED / f"{video}.txt").unlink(missing_ok=True)
        with suppress(OSError):  # other notes are there
            (self.root / _FAILED).rmdir()

    def failed(self) -> set[str]:
        """The videos that could not be read, of this and other processes."""
        return {file.name.removesuffix(".txt") for file in (self.root / _FAILED).glob("*.txt")}

    def write_annotations(self, split: str, samples: Sequence[Sample]) -> None:
        """Write the annotation file of a split, unless the same one is there."""
        file = self.root / self._annotations.format(split=split)
        write_jsonl(file, [sample.as_line() for sample in samples])


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().float().numpy()


def _difference(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """How two recipes differ, as 'encoder "pixels", not "toy"'."""
    names = differing(recorded, wanted)[:3]
    return ", ".join(f"{n} {json.dumps(recorded.get(n))}, not {json.dumps(wanted.get(n))}" for n in names)
