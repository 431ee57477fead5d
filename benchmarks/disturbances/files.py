"""A small corpus in a bucket, and what befalls its files: all changes are drawn from one seed."""

import io
import json
import random
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus

from tokenmill.pipeline.demo.scenes import write_corpus

PHOTOS, TARS = "photos", "tars"  # prefixes in the bucket, and sources
CAPTIONS = f"{PHOTOS}/captions.jsonl"
NUM_IMAGES, NUM_VIDEOS, NUM_IN_TAR = 200, 4, 24
_POOL_IMAGES, _POOL_VIDEOS = 600, 8
_MEGAPIXELS = 0.03
_MAX_VIDEO_BYTES = 200_000
_SUBJECTS = ("a lake", "two dogs", "an old door", "rain", "a market", "the moon")


@dataclass
class Pool:
    """Contents to draw from; none of `images` twice."""

    images: list[tuple[str, bytes]]  # with the extension
    videos: list[tuple[str, bytes]]
    broken: list[tuple[str, bytes]]


def pool(data: Path | None) -> Pool:
    """Drawn scenes and clips, or crops of the photos below `data`, made small, and its smallest videos."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, num_images=24 if data else _POOL_IMAGES, num_videos=1 if data else _POOL_VIDEOS)
        broken = [(path.suffix, path.read_bytes()) for path in sorted((folder / "bad").iterdir())]
        images = [(path.suffix, path.read_bytes()) for path in sorted((folder / "images").glob("*.png"))]
        videos = [(path.suffix, path.read_bytes()) for path in sorted((folder / "videos").glob("*.mp4"))]
    if data:
        photos = corpus.photos(data / "images")
        images = [(".jpg", content) for content in corpus.variants(photos, _POOL_IMAGES, _MEGAPIXELS)]
        found = sorted((data / "videos").iterdir(), key=lambda path: path.stat().st_size)
        small = [path for path in found if path.stat().st_size <= _MAX_VIDEO_BYTES][:_POOL_VIDEOS]
        videos = [(path.suffix, path.read_bytes()) for path in small] or videos
    return Pool(images, videos, broken)


class Files:
    """What stands in the bucket, and its changes."""

    def __init__(self, client: Any, bucket: str, contents: Pool, chance: random.Random):
        self._client, self._bucket, self._pool, self._chance = client, bucket, contents, chance
        self._held: dict[str, bytes] = {}
        self._away: dict[str, bytes] = {}
        self._number = 0
        self.changed: Counter[str] = Counter()

    def fill(self) -> None:
        """The corpus that there is at the start."""
        lines = []
        for number in range(NUM_IMAGES):
            key = self._add_image()
            if number % 3 == 0:
                lines.append({"file": key.removeprefix(f"{PHOTOS}/"), "caption": self._words()})
            elif number % 3 == 1:
                self._put(self._beside(key), self._words().encode())
        self._put(CAPTIONS, "".join(json.dumps(line) + "\n" for line in lines).encode())
        for _ in range(NUM_VIDEOS):
            self._add_video()
        for extension, content in self._pool.broken:
            self._put(self._name("bad", extension), content)
        self._put(f"{TARS}/samples.tar", self._tar())

    def change(self) -> str:
        """One change at random; its name."""
        if self._away and self._chance.random() < 0.5:
            which = "put back"
            self.put_back()
        else:
            which = self._chance.choices(list(_CHANGES), [weight for weight, _ in _CHANGES.values()])[0]
            _CHANGES[which][1](self)
        self.changed[which] += 1
        return which

    def put_back(self) -> None:
        """Files that were taken away come back as they were."""
        for key, content in self._away.items():
            if key not in self._held:
                self._put(key, content)
        self._away.clear()

    def _put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=key, Body=content)
        self._held[key] = content

    def _delete(self, key: str) -> bytes:
        self._client.delete_object(Bucket=self._bucket, Key=key)
        return self._held.pop(key)

    def _name(self, kind: str, extension: str) -> str:
        self._number += 1
        return f"{PHOTOS}/{self._chance.choice('abc')}/{kind}{self._number:05d}{extension}"

    def _some(self, *kinds: str) -> str:
        return self._chance.choice([key for key in self._held if key.rpartition("/")[2].startswith(kinds)])

    def _some_medium(self) -> str:
        while (key := self._some("image", "video")).endswith(".txt"):
            continue
        return key

    def _beside(self, key: str) -> str:
        return f"{key.rpartition('.')[0]}.txt"

    def _words(self) -> str:
        self._number += 1
        return f"{self._chance.choice(_SUBJECTS)}, number {self._number}"

    def _add_image(self) -> str:
        extension, content = self._chance.choice(self._pool.images)
        key = self._name("image", extension)
        self._put(key, content)
        return key

    def _add_video(self) -> None:
        extension, content = self._chance.choice(self._pool.videos)
        key = self._name("video", extension)
        self._put(key, content)
        self._put(self._beside(key), self._words().encode())

    def _overwrite(self) -> None:
        key = self._some_medium()
        contents = self._pool.videos if "/video" in key else self._pool.images
        self._put(key, self._chance.choice(contents)[1])

    def _rename(self) -> None:
        key = self._some("image", "video", "bad")
        if key.endswith(".txt"):
            return
        content = self._delete(key)
        kind = next(kind for kind in ("image", "video", "bad") if f"/{kind}" in key)
        self._put(self._name(kind, self._extension(key)), content)

    def _take_away(self) -> None:
        key = self._some("image", "video")
        self._away[key] = self._delete(key)

    def _remove(self) -> None:
        """Not below two thirds of what there was; then one is added."""
        if len(self._held) > NUM_IMAGES * 4 // 3:
            self._delete(self._some("image"))
        else:
            self._add_image()

    def _add(self) -> None:
        """Not above twice of what there was; then one is removed."""
        if len(self._held) < NUM_IMAGES * 2:
            self._add_image()
        else:
            self._delete(self._some("image"))

    def _recaption(self) -> None:
        self._put(self._beside(self._some("image", "video")), self._words().encode())

    def _rewrite_captions(self) -> None:
        lines = self._held[CAPTIONS].decode().splitlines()
        which = self._chance.randrange(len(lines))
        lines[which] = json.dumps(json.loads(lines[which]) | {"caption": self._words()})
        self._put(CAPTIONS, "".join(f"{line}\n" for line in lines).encode())

    def _copy(self) -> None:
        key = self._some("image")
        if not key.endswith(".txt"):
            self._put(self._name("image", self._extension(key)), self._held[key])

    def _extension(self, key: str) -> str:
        """That of the key; of some another one, which may not fit."""
        return self._chance.choice([f".{key.rpartition('.')[2]}"] * 3 + [self._chance.choice(self._pool.images)[0]])

    def _spoil(self) -> None:
        key = self._some_medium()
        self._put(key, self._held[key][: len(self._held[key]) // 2])

    def _rewrite_tar(self) -> None:
        self._put(f"{TARS}/samples.tar", self._tar())

    def _tar(self) -> bytes:
        """Of contents from the pool, of which a part comes again from tar to tar."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for number in range(NUM_IN_TAR):
                extension, image = self._pool.images[number if number % 4 else self._chance.randrange(_POOL_IMAGES)]
                caption = f"{_SUBJECTS[number % len(_SUBJECTS)]} in a tar, number {number}"
                for name, content in ((f"{number:04d}{extension}", image), (f"{number:04d}.txt", caption.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return stream.getvalue()


_CHANGES = {
    "added": (4, Files._add),
    "video added": (1, Files._add_video),
    "overwritten": (3, Files._overwrite),
    "renamed": (3, Files._rename),
    "taken away": (3, Files._take_away),
    "deleted": (4, Files._remove),
    "recaptioned": (2, Files._recaption),
    "captions.jsonl": (1, Files._rewrite_captions),
    "copied": (1, Files._copy),
    "spoilt": (1, Files._spoil),
    "tar": (1, Files._rewrite_tar),
}
