"""Damaged files for the tests that fuzz: mutants of small whole ones, the same ones in every run.

A mutant is made from its name and its number alone, so that a failure that names both is repeated by
`mutant(name, number, ...)`. Some edits know structure: integers that are lengths somewhere, values in a tree of JSON,
lines, and checksums that are made right again, so that the damage is met behind them.
"""

import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tokenmill.storage.errors import UserError
from tokenmill.storage.failures import find

FEW, MANY = 300, 20_000
_TIMES = float(os.environ.get("TOKENMILL_FUZZ_TIMES", "1"))
_MAX_EDITS = 4
_HEAD_BYTES = 512  # where headers stand
ODD = [
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", "\u202e".encode(), b"\r", b"\n", b"\r\n\r\n"),
    *(b'"', b"'", b"{", b"}", b"[]", b"[" * 300, b"9" * 40, b"9" * 5000, b"-1", b"1e999", b"NaN", b"null", b"\\ud800"),
    *(b",", b":", b"%s", b"../../x", b"\x00" * 64, b"\xff" * 64),
]
YAML = [b"&a ", b"*a", b"&a [*a]", b"<<: *a", b"!!python/name:os.system ", b"--- ", b"? ", b"- ", b"|", b"%YAML 9.9\n"]
_VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        1 << 31,
        1 << 63,
        1 << 70,
        1.5,
        float("inf"),
        float("nan"),
        "",
        "x",
        "\ud800",
        "\x00",
        "../x",
    ),
    *("x" * 5000, [], [None], {}, {"": None}, [[[[]]]], "2024-01-01", "1", "null"),
]


def count(many: int = MANY, few: int = FEW) -> list[Any]:
    """Parameters of a test: few inputs, and many, TOKENMILL_FUZZ_TIMES as many as said, as a slow test."""
    return [
        pytest.param(few, id="few"),
        pytest.param(max(few, int(many * _TIMES)), id="many", marks=pytest.mark.slow),
    ]


def mutants(
    name: str, contents: Sequence[bytes], num: int, more: Sequence[bytes] = (), repair: Callable | None = None
) -> Iterator[tuple[str, bytes]]:
    """`num` mutants of `contents`, which are files of one format, each with what names it in a failure."""
    for number in range(num):
        yield f"{name}, mutant {number}", mutant(name, number, contents, more, repair)


def mutant(
    name: str, number: int, contents: Sequence[bytes], more: Sequence[bytes] = (), repair: Callable | None = None
) -> bytes:
    """One of them. `more`: texts that mean something in this format; `repair`: makes checksums right."""
    dice = random.Random(f"{name} {number}")
    data = bytearray(dice.choice(contents))
    if dice.random() < 0.4 and (edited := _in_tree(bytes(data), dice)) is not None:
        return edited
    for _ in range(dice.randint(1, _MAX_EDITS)):
        _edit(data, dice, contents, more)
    return repair(bytes(data)) if repair and dice.random() < 0.7 else bytes(data)


def _edit(data: bytearray, dice: random.Random, contents: Sequence[bytes], more: Sequence[bytes]) -> None:
    end = len(data) if dice.random() < 0.6 else min(len(data), _HEAD_BYTES)
    at = dice.randrange(end + 1)
    some = at + int(2 ** dice.uniform(0, 9))
    match dice.randrange(11):
        case 0:
            del data[at:]
        case 1:
            del data[at:some]
        case 2:
            data[at:at] = data[at:some]
        case 3:
            data[at:some] = bytes(len(data[at:some]))
        case 4:
            data[at : at + dice.choice([0, 1, 40])] = dice.choice([*ODD, *more])
        case 5 | 6:
            for place in (dice.randrange(end) for _ in range(dice.randint(1, 8)) if end):
                data[place] ^= 1 << dice.randrange(8)
        case 7:
            data[at:some] = dice.randbytes(len(data[at:some]))
        case 8 | 9:
            number, width = (
                dice.choice([0, 1, -1, 127, 255, 1 << 15, 1 << 31, 1 << 40, len(data), at]),
                dice.choice("BHIQ"),
            )
            packed = struct.pack(dice.choice("<>") + width, number & (1 << 8 * struct.calcsize(width)) - 1)
            data[at : at + len(packed)] = packed
        case 10:
            other = dice.choice(contents)
            start = dice.randrange(len(other) + 1)
            data[at:some] = other[start : start + some - at]


def _in_tree(data: bytes, dice: random.Random) -> bytes | None:
    """Another value at some place of a JSON document, or of one line of a .jsonl; null for what is neither."""
    lines = [data]
    try:
        tree = json.loads(data)
    except ValueError:
        lines = data.split(b"\n")
    at = dice.randrange(len(lines))
    try:
        tree = [json.loads(lines[at])]
    except ValueError:
        return None
    places: list[tuple[Any, Any]] = []
    nodes: list[Any] = [tree]
    while nodes:
        node = nodes.pop()
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            nodes += [node[key]] if isinstance(node[key], dict | list) else []
    for node, key in dice.sample(places, min(len(places), dice.randint(1, 2))):
        if isinstance(node, dict) and dice.random() < 0.3:
            node.pop(key, None)
        else:
            node[key] = dice.choice(_VALUES)
    return b"\n".join([*lines[:at], json.dumps(tree[0]).encode(), *lines[at + 1 :]]) if tree else b""


def repaired_png(data: bytes) -> bytes:
    """Each chunk with the checksum of what it holds."""
    made, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + size]
        made += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + size
    return bytes(made) + data[at:]


def repaired_tar(data: bytes) -> bytes:
    """Each block that looks like a header with its checksum."""
    made = bytearray(data)
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            block = data[at : at + 148] + b" " * 8 + data[at + 156 : at + 512]
            made[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(made)


def check_reader(name: str, path: Path, num: int, read: Callable[[], object], more: Sequence[bytes] = ()) -> int:
    """`read`, which reads the file at `path`, works or ends with a line that is defined, whatever happens to the file;
    how often it did not work.
    """
    content, num_said = path.read_bytes(), 0
    try:
        for what, data in mutants(name, [content], num, more):
            path.write_bytes(data)
            try:
                num_said += not said(read)
            except BaseException as error:
                error.add_note(what)
                raise
    finally:
        path.write_bytes(content)
    return num_said


def said(command: Callable[[], object]) -> bool:
    """Whether `command` works, or ends with one line that is defined: raises what is called a bug."""
    try:
        command()
    except BaseException as error:  # a panic is no Exception
        if not isinstance(error, UserError) and find(error) is None:
            raise
        return False
    return True
