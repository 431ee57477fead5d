"""Numbers and pictures of a training -> TensorBoard's event files, which any reader of them opens.

    run/tensorboard/events.out.tfevents.TIME.HOST.NUMBER    records of tensorboardX' protocol, appended

Each start of a training begins a file, and looks first at what stands in those before: what they hold is not told
again, so no step stands twice, whatever was killed and resumed. An object store cannot append: there a file is put
again at intervals, as log.jsonl is, and at a megabyte the next one begins.
"""

import io
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping

from google.protobuf.message import DecodeError
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from tokenmill import storage

_PREFIX = "events.out.tfevents."
_PUT_EVERY_S = 10.0
_FILE_BYTES = 1 << 20  # on an object store
_HEADER = struct.Struct("<QI")  # length and its checksum; after the data comes theirs
_CHECKSUM = struct.Struct("<I")


class Events:
    """Writes the events of a run; one writer at a time."""

    def __init__(self, folder: str):
        self._folder, self._is_remote = folder, storage.is_remote(folder)
        self._told: dict[str, int] = {}  # tag -> the last step of which it is told
        for event in read_events(folder):
            self._told |= {value.tag: max(event.step, self._told.get(value.tag, -1)) for value in event.summary.value}
        self._number, self._put_at_s = len(_names(folder)), 0.0
        self._data = bytearray()
        self._begin()

    def tell(self, step: int, numbers: Mapping[str, float], pictures: Mapping[str, Callable[[], bytes]]) -> None:
        """Numbers, and what reads PNGs, by tag, of which those that were told before are left out."""
        event = Event(step=step, wall_time=time.time())
        for tag, number in numbers.items():
            if step > self._told.get(tag, -1):
                event.summary.value.add(tag=tag, simple_value=number)
        for tag, read in pictures.items():
            if step > self._told.get(tag, -1):
                png = read()
                width, height = Image.open(io.BytesIO(png)).size
                picture = event.summary.value.add(tag=tag).image
                picture.height, picture.width, picture.colorspace, picture.encoded_image_string = height, width, 3, png
        if event.summary.value:
            self._told |= {value.tag: step for value in event.summary.value}
            self._add(event)

    def flush(self) -> None:
        """Make all that was told visible."""
        if self._data and self._is_remote:
            storage.write_bytes(self._uri, bytes(self._data))
            self._put_at_s = time.monotonic()
        elif self._data:
            with open(self._uri, "ab") as file:
                file.write(self._data)
            self._data.clear()

    def close(self) -> None:
        """Nothing more is told."""
        self.flush()

    def _begin(self) -> None:
        name = f"{_PREFIX}{int(time.time())}.{socket.gethostname()}.{self._number:06d}"
        self._uri, self._number = storage.join(self._folder, name), self._number + 1
        if not self._is_remote:
            storage.write_bytes(self._uri, b"")
        self._data.clear()
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _add(self, event: Event) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._data += length + _CHECKSUM.pack(masked_crc32c(length)) + data + _CHECKSUM.pack(masked_crc32c(data))
        if not self._is_remote or time.monotonic() - self._put_at_s > _PUT_EVERY_S:
            self.flush()
        if self._is_remote and len(self._data) > _FILE_BYTES:
            self.flush()
            self._begin()


def read_events(folder: str) -> Iterator[Event]:
    """What the event files of a folder hold, each up to where it breaks off."""
    for name in _names(folder):
        data, at = storage.read_bytes(storage.join(folder, name)), 0
        while at + _HEADER.size <= len(data):
            length, _ = _HEADER.unpack_from(data, at)
            start = at + _HEADER.size
            at = start + length + _CHECKSUM.size
            if at > len(data):
                break
            try:
                yield Event.FromString(data[start : start + length])
            except DecodeError:
                break


def _names(folder: str) -> list[str]:
    return sorted(name for name in storage.list_names(folder) if name.startswith(_PREFIX))
