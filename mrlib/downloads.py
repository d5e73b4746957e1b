"""Say what a file is whose content does not fit its name: a web page, a pointer of Git LFS, an unfinished download."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path

_BEGINNING = 2048  # bytes that are looked at
_END = 256
_POINTERS = {  # what stands in a repository for a large file
    b"version https://git-lfs.github.com/spec": "a pointer of Git LFS",
    b"version https://hawser.github.com/spec": "a pointer of Git LFS",
    b"/annex/objects/": "a pointer of git-annex",
    b"../.git/annex/objects/": "a pointer of git-annex",
}
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title", b"<meta", b"<!--")
_SIGNATURES = {
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"PK\x05\x06": "an empty zip file",
    b"\x93NUMPY": "an .npy file",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"7z\xbc\xaf\x27\x1c": "a 7z file",
    b"Rar!\x1a\x07": "a rar file",
    b"%PDF-": "a PDF document",
    b"\x89PNG\r\n\x1a\n": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x00\x05\x16\x07": "a resource fork of macOS",
    b"\x00\x05\x16\x00": "a resource fork of macOS",
    b"\x7fELF": "a program",
}
_WRITTEN_AS = {  # what a file of this ending may be; of other endings nothing is known
    ".npz": ("a zip file", "an empty zip file"),
    ".npy": ("an .npy file",),
    ".hdf5": ("an HDF5 file",),
    ".h5": ("an HDF5 file",),
    ".pt": ("a zip file",),
    ".pth": ("a zip file",),
    ".ckpt": ("a zip file",),
    ".gz": ("a gzip file",),
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def what_it_is(path: str | os.PathLike) -> str | None:
    """What a file is if it is not what its name says, as "a web page"; None if nothing speaks against its name.

    Only the first and last bytes are read, and only of regular files, so a pipe does not block. A file that begins as
    its name says may still be cut off or damaged. A file that is missing or cannot be opened gives None as well.
    """
    path = Path(path)
    try:
        status = path.stat()
        if (kind := next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), None)) is not None:
            return kind
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING)
            file.seek(max(0, status.st_size - _END))
            end = file.read(_END)
    except (OSError, ValueError):
        return None
    suffix = path.suffix.lower()
    if suffix == ".gz" and beginning.startswith(b"\x1f\x8b"):
        if len(end) == _END and not any(end):
            return "a gzip file that ends in zero bytes"  # a gzip reader skips them one by one
        beginning, suffix = _unpacked(beginning), Path(path.stem).suffix.lower()
        if not beginning:
            return None  # of a damaged gzip file nothing can be said
    return _kind(beginning, suffix)


def wrong_download(path: str | os.PathLike) -> str | None:
    """What is wrong with a file whose content does not fit its name, and what to do; None as in `what_it_is`.

    The text continues a sentence about the file: "is a web page, not the file of that name; download it again".
    """
    kind = what_it_is(path)
    if kind is None:
        return None
    if kind.endswith("Git LFS"):
        return f"is {kind}, not the file itself; fetch it by `git lfs pull`, or download it again"
    if any(kind == name for _, name in _KINDS):
        return f"is {kind}, not a regular file; copy the file itself there, or download it again"
    if "empty" in kind or "zero" in kind:
        return f"is {kind}, as an unfinished download leaves it; download it again"
    return f"is {kind}, not the file of that name; download it again"


def _kind(beginning: bytes, suffix: str) -> str | None:
    """What a file is that begins like this, unless a file of this ending may be that."""
    if not beginning:
        return "an empty file"
    if len(beginning) >= 64 and not any(beginning):
        return "a file of zero bytes" if suffix not in (".hdf5", ".h5") else None  # HDF5 may begin with a user block
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if (pointer := next((name for start, name in _POINTERS.items() if text.startswith(start)), None)) is not None:
        return pointer
    if text[:32].lower().startswith(_PAGES):
        return "a web page"
    if text.startswith(b"<?xml"):
        return "a web page" if b"<html" in text.lower() else "an XML document"
    signature = next((name for start, name in _SIGNATURES.items() if beginning.startswith(start)), None)
    if signature is not None:
        return None if signature in _WRITTEN_AS.get(suffix, ()) else signature
    if suffix in _WRITTEN_AS and suffix != ".gz" and _is_text(beginning):
        return f"a text that begins with {_first_words(text)}"
    return None


def _unpacked(beginning: bytes) -> bytes:
    """The first bytes inside a gzip file that begins like this; empty if it is damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(beginning, _BEGINNING)
    except zlib.error:
        return b""


def _is_text(beginning: bytes) -> bool:
    try:
        text = beginning.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3:  # else a character is cut in two
            return False
        text = beginning[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n" for character in text)


def _first_words(text: bytes) -> str:
    words = " ".join(text[:200].decode("utf-8", "replace").split())
    return repr(words if len(words) <= 40 else words[:37] + "...")
