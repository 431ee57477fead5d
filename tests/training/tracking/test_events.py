"""Event files of TensorBoard, read back by a parser of our own from the bytes: every record whole, every step once."""

import io
import struct
from pathlib import Path

import pytest
from PIL import Image

from tokenmill import storage
from tokenmill.training.tracking import events as module
from tokenmill.training.tracking.events import Events


def crc32c(data):
    """Castagnoli, bit by bit, as RFC 3720 says."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data):
    """TFRecords; checksums must fit."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12]) == (masked(data[:8]),)
        found = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked(found),)
        yield found
        data = data[16 + length :]


def varint(data, at):
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def message(data):
    """Protocol buffers' wire format: number of a field -> its values."""
    found, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 2:
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            size, code = {1: (8, "<d"), 5: (4, "<f")}[kind]
            (value,), at = struct.unpack(code, data[at : at + size]), at + size
        found.setdefault(number, []).append(value)
    return found


def read(folder):
    """[(step, tag, number or PNG)] of all files, in their order; each begins with the version."""
    found = []
    for name in sorted(storage.list_names(folder)):
        first, *others = records(storage.read_bytes(storage.join(folder, name)))
        assert message(first)[3] == [b"brain.Event:2"]
        for event in map(message, others):
            for value in map(message, message(event[5][0])[1]):
                [number] = value.get(2) or [message(value[4][0])[4][0]]
                found.append((event[2][0], value[1][0].decode(), number))
    return found


def png(size):
    data = io.BytesIO()
    Image.new("RGB", size).save(data, "png")
    return data.getvalue()


def test_what_is_told_is_read_back(tmp_path):
    folder = str(tmp_path / "tensorboard")
    made = Events(folder)
    made.tell(1, {"train/loss": 2.5, "train/lr": 0.125}, {})
    assert read(folder) == [(1, "train/loss", 2.5), (1, "train/lr", 0.125)], "at once"
    made.tell(300, {"val/loss": 1e-3}, {"samples": lambda: png((6, 4))})
    made.close()
    (step, tag, number), picture = read(folder)[2:]
    assert (step, tag, number) == (300, "val/loss", pytest.approx(1e-3)) and picture == (300, "samples", png((6, 4)))


def test_a_later_start_tells_no_step_twice(tmp_path):
    folder = str(tmp_path / "tensorboard")
    for last in (5, 9):
        made = Events(folder)
        for step in range(1, last + 1):
            made.tell(step, {"train/loss": float(step)}, {})
            if step == 4 or step == last:
                made.tell(step, {"val/loss": float(step)}, {})
        made.close()
    assert [(s, n) for s, tag, n in read(folder) if tag == "train/loss"] == [(n, float(n)) for n in range(1, 10)]
    assert [s for s, tag, _ in read(folder) if tag == "val/loss"] == [4, 5, 9]


def test_what_a_crash_tore_is_told_again(tmp_path):
    folder = str(tmp_path / "tensorboard")
    made = Events(folder)
    for step in (1, 2):
        made.tell(step, {"train/loss": 1.0}, {})
    [path] = Path(folder).iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    again = Events(folder)
    again.tell(1, {"train/loss": 1.0}, {})
    again.tell(2, {"train/loss": 1.0}, {})
    *_, newest = sorted(Path(folder).iterdir())
    assert len(list(records(newest.read_bytes()))) == 2, "the version, and step 2"


def test_on_an_object_store_files_are_put_again_and_stay_small(s3, monkeypatch):
    monkeypatch.setattr(module, "_FILE_BYTES", 2_000)
    monkeypatch.setattr(module, "_PUT_EVERY_S", 0.0)
    folder = f"{s3}/run/tensorboard"
    made = Events(folder)
    for step in range(1, 101):
        made.tell(step, {"train/loss": float(step)}, {})
    made.close()
    assert [(step, number) for step, _, number in read(folder)] == [(n, float(n)) for n in range(1, 101)]
    sizes = [len(storage.read_bytes(storage.join(folder, name))) for name in storage.list_names(folder)]
    assert len(sizes) > 2 and max(sizes) < 2_100
    again = Events(folder)
    again.tell(100, {"train/loss": 0.0}, {})
    again.tell(101, {"train/loss": 101.0}, {})
    again.close()
    assert read(folder)[-1] == (101, "train/loss", 101.0) and len(read(folder)) == 101
