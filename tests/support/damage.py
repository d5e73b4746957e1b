"""Damage a valid file in one place: each function changes the file at `path`, by what `random` decides.

`BYTES` fits every file, `JSON` files of JSON or JSON lines, `TABLE` CSV files, `WORDS` files of word vectors,
`GZIP` compressed files. The file
stays nearly valid, because a reader refuses noise at its first byte.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

Damage = Callable[[Path, Random], None]
Text = Callable[[bytes, Random], bytes]

BYTES: list[Damage] = []
JSON: list[Damage] = []
TABLE: list[Damage] = []
WORDS: list[Damage] = []
GZIP: list[Damage] = []

HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Sign in to download.</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"
ODD: list[Any] = [None, True, "", "x", "1", " 3 ", 0, -1, 1, 2.5, 1e-300, 1e308, 1e9, 2**31, 2**63, 10**30, 10**400]
ODD += [
    float("nan"),
    float("inf"),
    -float("inf"),
    [],
    {},
    [[]],
    [1],
    [[1, 2]],
    [None],
    {"a": 1},
    "\0",
    "a\nb",
    "é" * 90,
]
ODD += ["\ud800", "../../x", "/etc/passwd", "con", ".", "x" * 300, [0] * 2000, [[4, 4, 4]] * 500]


def of_bytes(*tables: list[Damage]) -> Callable[[Text], Damage]:
    """Make a function of a file's content a damage, and add it to some tables; a .gz file is damaged inside."""

    def decorate(change: Text) -> Damage:
        def damage(path: Path, random: Random) -> None:
            packed = path.suffix == ".gz" and BYTES not in tables and GZIP not in tables
            content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
            content = change(content, random)
            path.write_bytes(gzip.compress(content) if packed else content)

        damage.__name__ = change.__name__
        for table in tables:
            table.append(damage)
        return damage

    return decorate


# ---- any file


@of_bytes(BYTES)
def flipped_bits(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 8])):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


@of_bytes(BYTES)
def overwritten(content: bytes, random: Random) -> bytes:
    start, length = random.randrange(len(content)), random.randint(1, 64)
    return content[:start] + random.randbytes(length) + content[start + length :]


@of_bytes(BYTES)
def zeroed(content: bytes, random: Random) -> bytes:
    start, length = random.randrange(len(content)), random.randint(1, 4096)
    kept = content[:start]
    return (kept + bytes(length) + content[start + length :])[: len(content)]


@of_bytes(BYTES)
def cut_off(content: bytes, random: Random) -> bytes:
    return content[: random.choice([random.randrange(len(content)), random.randrange(min(len(content), 64)), -1])]


@of_bytes(BYTES)
def with_junk_behind(content: bytes, random: Random) -> bytes:
    return content + random.randbytes(random.randint(1, 100))


@of_bytes(BYTES)
def with_junk_before(content: bytes, random: Random) -> bytes:
    return random.choice([b"\xef\xbb\xbf", b"\n", b"\0", b"\x1f\x8b", random.randbytes(9)]) + content


@of_bytes(BYTES)
def doubled(content: bytes, random: Random) -> bytes:
    return content + content


@of_bytes(BYTES)
def with_a_piece_removed(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content))
    return content[:start] + content[start + random.randint(1, 200) :]


@of_bytes(BYTES)
def with_a_piece_repeated(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content))
    return content[:start] + content[start : start + 200] + content[start:]


@of_bytes(BYTES)
def something_else(content: bytes, random: Random) -> bytes:
    """An empty file, a web page, a Git LFS pointer, the same file compressed or in UTF-16."""
    text = content[:2000].decode("latin-1")
    return random.choice(
        [b"", b"\n", b"null\n", b"[]", HTML, LFS, gzip.compress(content), text.encode("utf-16"), bytes(len(content))]
    )


# ---- JSON and JSON lines


def _documents(content: bytes) -> tuple[list[Any], bool]:
    """The documents of a file, and whether each has a line."""
    try:
        return [json.loads(content)], False
    except ValueError:
        return [json.loads(line) for line in content.splitlines() if line.strip()], True


def _text(documents: list[Any], lines: bool) -> bytes:
    if not lines:
        return json.dumps(documents[0]).encode()
    return "".join(json.dumps(each) + "\n" for each in documents).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place inside nested lists and dicts, as a container and a key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    here = [(value, key) for key in keys]
    return here + [place for key in keys for place in _places(value[key])]


def of_json(change: Callable[[Any, Any, Random], None]) -> Damage:
    """Make a function of one place in a document, given as (container, key), a damage of JSON files."""

    def edited(content: bytes, random: Random) -> bytes:
        documents, lines = _documents(content)
        for _ in range(random.choice([1, 1, 1, 3])):
            places = _places(random.choice(documents))
            shallow = [place for place in places if isinstance(place[1], str)] or places
            if places:
                change(*random.choice(random.choice([places, shallow])), random)
        return _text(documents, lines)

    edited.__name__ = change.__name__
    return of_bytes(JSON)(edited)


@of_json
def an_odd_value(container: Any, key: Any, random: Random) -> None:
    container[key] = random.choice(ODD)


@of_json
def a_missing_field(container: Any, key: Any, random: Random) -> None:
    del container[key]


@of_json
def a_changed_number(container: Any, key: Any, random: Random) -> None:
    if type(container[key]) in (int, float):
        factor = random.choice([-1, 0, 0.5, 2, 1000, 1e12, 1e300])
        container[key] = type(container[key])(container[key] * factor)


@of_json
def a_wrapped_value(container: Any, key: Any, random: Random) -> None:
    value = container[key]
    container[key] = random.choice([[value], [value, value], {"a": value}, str(value)])


@of_json
def a_renamed_field(container: Any, key: Any, random: Random) -> None:
    if isinstance(container, dict):
        container[random.choice(["", "x", key + " ", key.upper(), "__class__"])] = container.pop(key)


@of_bytes(JSON)
def a_broken_text(content: bytes, random: Random) -> bytes:
    """One value as JSON text that is odd to write: too deep, too long, no UTF-8, a key twice."""
    at = content.find(b":", random.randrange(len(content)))
    at = content.find(b":") if at < 0 else at
    odd = random.choice(
        [
            b"[" * 100_000,
            b"[" * 900 + b"]" * 900 + b",",
            b'{"a":' * 50_000,
            b"1" * 5000 + b",",
            b"-" + b"9" * 4400 + b",",
            b"1e999,",
            b"NaN,",
            b'"\xff\xfe",',
            b'"\\ud800",',
            b'"a\0b",',
            b"1, " + content[1:at] + b": 2,",
            b"'x',",
            b",",
            b"//",
        ]
    )
    return content[: at + 1] + odd + content[at + 1 :]


@of_bytes(JSON)
def moved_lines(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    i, j = random.randrange(len(lines)), random.randrange(len(lines))
    match random.randrange(5):
        case 0:
            lines.insert(i, lines[j])
        case 1:
            del lines[i]
        case 2:
            lines[i] = lines[i].rstrip(b"\n")
        case 3:
            lines[i] = lines[i].replace(b"\n", b"\r\n\n")
        case 4:
            lines.insert(i, random.choice([b"[1, 2]\n", b"3\n", b'"text"\n', b"null\n", b"{}\n", b" \t\n"]))
    return b"".join(lines)


# ---- compressed files


@of_bytes(GZIP)
def an_odd_archive(content: bytes, random: Random) -> bytes:
    """A line of 300 MB, two archives in one file, another checksum, another length, a compressed archive."""
    match random.randrange(7):
        case 0:
            return gzip_bomb(random.choice([b" ", b"[", b"0", b"\0", b"\n"]))
        case 1:
            return content + content
        case 2:
            return content[:-8] + random.randbytes(8)
        case 3:
            return gzip.compress(content)
        case 4:
            return content[:10]
        case 5:
            return content + bytes(random.choice([1, 8, 100]))
        case _:
            return gzip.compress(gzip.decompress(content).decode().encode("utf-16"))


@cache
def gzip_bomb(letter: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return b"".join([packer.compress(letter * 1_000_000) for _ in range(300)] + [packer.flush()])


# ---- tables


@of_bytes(TABLE)
def an_odd_cell(content: bytes, random: Random) -> bytes:
    rows = [line.split(b",") for line in content.splitlines()]
    for _ in range(random.choice([1, 1, 4])):
        row = random.choice(rows)
        odd = [b"", b"x", b"nan", b"-1", b"1e999", b"9" * 5000, b'"', b'"a\nb"', b"\xff", b"\0", b"inf", b"1_0", b" "]
        row[random.randrange(len(row))] = random.choice([*odd, b"x" * 200_000, b"=1+1", b"2.5", b"True", b"../../x"])
    return b"\n".join(b",".join(row) for row in rows) + b"\n"


@of_bytes(TABLE)
def other_cells(content: bytes, random: Random) -> bytes:
    """A row or a column too many, twice, too few."""
    rows = [line.split(b",") for line in content.splitlines()]
    i, column = random.randrange(len(rows)), random.randrange(len(rows[0]))
    match random.randrange(6):
        case 0:
            rows.insert(i, rows[i])
        case 1:
            rows = [row[:column] + row[column + 1 :] for row in rows]
        case 2:
            rows = [row[:column] + row[column : column + 1] + row[column:] for row in rows]
        case 3:
            rows[i] = rows[i][:column]
        case 4:
            rows[i] = rows[i] + rows[i]
        case 5:
            rows = random.choice([rows[:1], rows[1:]])
    return b"\n".join(b",".join(row) for row in rows) + b"\n"


# ---- word vectors


@of_bytes(WORDS)
def other_words(content: bytes, random: Random) -> bytes:
    lines = content.splitlines()
    i = random.randrange(len(lines))
    word, *numbers = lines[i].split(b" ")
    odd = [b"nan", b"inf", b"1e999", b"x", b"", b"0x10", b"\xff", b"1e38 1e38"]
    match random.randrange(4):
        case 0:
            numbers[random.randrange(len(numbers))] = random.choice(odd)
        case 1:
            numbers = numbers[: random.randrange(len(numbers))]
        case 2:
            word = random.choice([b"", b"a b", b"\0", word + b" " + word])
        case 3:
            numbers = numbers * 20_000
    lines[i] = b" ".join([word, *numbers])
    return b"\n".join(lines) + b"\n"
