"""The demo's corpus: exact captions, honest hold-out, the same bytes for the same seed, and bad files that are bad."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence
from scenedetect import ContentDetector, ThresholdDetector, detect

from tokenmill.pipeline.demo.scenes import (
    COLOURS,
    RELATIONS,
    SEGMENT_FRAMES,
    SHAPES,
    Corpus,
    Scene,
    draw,
    split,
    write_corpus,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Corpus]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_corpus(folder, num_images=60, num_videos=8, seed=3)


def _mean_luma(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.array([frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)])


def test_captions():
    assert Scene("circle", "red").caption == "a red circle"
    assert Scene("circle", "red", "left of", "square", "blue").caption == "a red circle left of a blue square"


@pytest.mark.parametrize("parts", [("circle", "red", "above"), ("circle", "red", "above", "square", "red")])
def test_scenes_that_cannot_be_said_are_refused(parts):
    with pytest.raises(ValueError):
        Scene(*parts)


@pytest.mark.parametrize("relation", RELATIONS)
def test_drawing_obeys_the_relation_and_keeps_a_gap(relation):
    scene = Scene("square", "red", relation, "triangle", "blue")
    for seed in range(10):
        pixels = np.asarray(draw(scene, 64, np.random.default_rng(seed))).astype(int)
        boxes = []
        for colour in ("red", "blue"):
            rows, columns = np.where(np.abs(pixels - COLOURS[colour]).sum(axis=-1) < 8)
            boxes.append((rows.min(), rows.max(), columns.min(), columns.max()))
        (top1, bottom1, left1, right1), (top2, bottom2, left2, right2) = boxes
        gap = {"above": top2 - bottom1, "left of": left2 - right1}
        assert gap[relation] >= 8


@pytest.mark.parametrize("size_px", [32, 64, 128])
def test_shapes_stand_on_the_lattice(size_px):
    cell = size_px // 8
    pixels = np.asarray(draw(Scene("square", "green"), size_px, np.random.default_rng(4)))
    assert pixels.shape == (size_px, size_px, 3)
    rows, columns = np.where((pixels == COLOURS["green"]).all(axis=-1))
    assert rows.min() % cell == columns.min() % cell == 0
    assert len(rows) == (3 * cell) ** 2


def test_few_distinct_patches():
    train, _ = split(0, 400, 0)
    rng = np.random.default_rng(0)
    pictures = np.stack([np.asarray(draw(scene, 64, rng)) for scene in train])
    patches = pictures.reshape(-1, 8, 8, 8, 8, 3).swapaxes(2, 3).reshape(-1, 192)
    assert len(np.unique(patches, axis=0)) < 220


def test_draw_refuses_a_size_off_the_lattice():
    with pytest.raises(ValueError, match="multiple of 8"):
        draw(Scene("circle", "red"), 60)


def test_split_holds_out_combinations_only():
    train, held_out = split(seed=1, num_train=24, num_held_out=270)
    assert {s.caption for s in train}.isdisjoint(s.caption for s in held_out)
    assert len({s.caption for s in held_out}) == 270
    objects = [one for scene in train for one in scene.objects]
    assert {shape for shape, _ in objects} == set(SHAPES)
    assert {colour for _, colour in objects} == set(COLOURS)
    assert {scene.relation for scene in train} == {None, *RELATIONS}
    many, held_out = split(seed=1, num_train=3000, num_held_out=50)
    assert {s.caption for s in many}.isdisjoint(s.caption for s in held_out)
    assert len({s.caption for s in many}) == 18 + 540 - 50
    assert max(Counter(s.caption for s in many).values()) < 50
    assert split(2, 24, 5) != split(1, 24, 5)


@pytest.mark.parametrize(("num_train", "num_held_out"), [(23, 5), (24, 271), (24, -1)])
def test_split_refuses_what_it_cannot_cover(num_train, num_held_out):
    with pytest.raises(ValueError, match="num_train"):
        split(0, num_train, num_held_out)


def test_images_are_captioned_and_all_different(corpus):
    folder, summary = corpus
    names = sorted(path.name for path in (folder / "images").glob("*.png"))
    assert names == [f"scene_{number:04d}.png" for number in range(1, 61)]
    rows = [json.loads(line) for line in (folder / "images" / "captions.jsonl").read_text().splitlines()]
    captions = {row["file"]: row["caption"] for row in rows}
    sidecars = {path.stem + ".png": path.read_text().strip() for path in (folder / "images").glob("*.txt")}
    assert len(captions) == len(sidecars) == 30
    assert captions | sidecars == {n: s.caption for n, s in zip(names, split(3, 60, 48)[0], strict=True)}
    assert len({(folder / "images" / name).read_bytes() for name in names}) == 60
    assert len(summary.held_out) == 48
    assert (summary.num_images, summary.num_videos) == (60, 8)


def test_same_seed_same_bytes(corpus, tmp_path):
    folder, summary = corpus
    assert write_corpus(tmp_path, num_images=60, num_videos=8, seed=3) == summary
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_same_bytes_whatever_memory_held_before(tmp_path):
    """In new processes, whose memory glibc fills with one byte and another: encoders read some before they write it."""
    found = []
    for fill in ("1", "170"):
        folder = tmp_path / fill
        code = "import sys, pathlib; from tokenmill.pipeline.demo.scenes import write_corpus; "
        code += "write_corpus(pathlib.Path(sys.argv[1]), num_images=24, num_videos=8)"
        environment = os.environ | {"MALLOC_PERTURB_": fill}
        subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
        found.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert found[0].keys() == found[1].keys()
    assert [path for path in found[0] if found[0][path] != found[1][path]] == []


def test_too_many_images_for_the_places_there_are(tmp_path):
    with pytest.raises(ValueError, match="fewer"):
        write_corpus(tmp_path, num_images=4000, num_videos=0)


def test_videos_cut_and_fade_where_they_say(corpus):
    folder, _ = corpus
    kinds: Counter[tuple[str, int]] = Counter()
    for path in sorted((folder / "videos").glob("*.mp4")):
        kind = path.name.split("_")[0]
        caption = path.with_suffix(".txt").read_text()
        assert caption.startswith("a ") and " moves " in caption
        luma = _mean_luma(path)
        cuts = [start.frame_num for start, _ in detect(str(path), ContentDetector())[1:]]
        fades = detect(str(path), ThresholdDetector())
        if kind == "fade":
            assert luma.min() < 2 and len(fades) == 2
        else:
            assert luma.min() > 100
            assert cuts == [SEGMENT_FRAMES * number for number in range(1, len(luma) // SEGMENT_FRAMES)]
            assert (kind == "cut") == bool(cuts)
        kinds[kind, len(cuts) if kind == "cut" else 0] += 1
    assert kinds == {("moving", 0): 4, ("cut", 1): 2, ("cut", 2): 1, ("fade", 0): 1}


def test_bad_files_are_bad(corpus):
    folder, summary = corpus
    bad = folder / "bad"
    assert set(summary.bad) == {path.name for path in bad.iterdir()}
    assert (bad / "empty.png").stat().st_size == 0
    assert (bad / "exact_duplicate.png").read_bytes() == (folder / "images" / "scene_0001.png").read_bytes()
    near = np.asarray(Image.open(bad / "near_duplicate.jpg")).astype(int)
    assert 0 < np.abs(near - np.asarray(Image.open(folder / "images" / "scene_0002.png"))).mean() < 4
    assert Image.open(bad / "jpeg_inside.png").format == "JPEG"
    assert len(list(ImageSequence.Iterator(Image.open(bad / "animated.gif")))) == 2
    assert Image.open(bad / "tiny_0.png").size == (16, 16)
    grey = np.asarray(Image.open(bad / "grey_0.png"))
    assert (grey == grey[..., :1]).all() and grey.std() > 5
    for name, reason in summary.bad.items():
        if reason == "unreadable" and not name.endswith(".mp4"):
            with pytest.raises(OSError):
                Image.open(io.BytesIO((bad / name).read_bytes())).load()
        elif reason == "unreadable":
            with pytest.raises(av.FFmpegError):
                _mean_luma(bad / name)
    assert np.ptp(_mean_luma(bad / "static.mp4")) < 0.5
    assert np.abs(np.diff(_mean_luma(bad / "flashing.mp4"))).min() > 200
