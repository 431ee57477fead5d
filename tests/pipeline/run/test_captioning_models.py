"""Captions end to end by real models: in the workers, and behind `transformers serve`."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import tiny_models
from world import World

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.reports.video_file import write_video
from tokenmill.pipeline.run.workers import Workers

pytestmark = pytest.mark.service

ANY = "{not_empty: words >= 1}"
SAMPLING = "{max_tokens: 12, temperature: 1.5}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save("qwen2_5_vl", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    small = np.random.default_rng(0).integers(0, 256, (9, 24, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    write_video(made.photos / "clip.mp4", [np.ascontiguousarray(small[:64, 2 * i : 2 * i + 64]) for i in range(48)], 12)
    made.sets += [
        "tokenize.frames.clip_fps=2",
        "curate.decide.video_rules={}",
        "caption.use=[tiny]",
        "caption.resources.commit_every_s=0.5",
    ]
    return made


def captions(world: World) -> dict[str, dict]:
    return {row["media_id"]: row for row in Catalog(str(world.folder / "root")).captions.scan().to_pylist()}


def test_pictures_and_a_clip_by_a_model_in_the_workers(world, model, monkeypatch):
    tiny = f"engine: transformers, model: {model}, video_prompt: dense, sampling: {SAMPLING}, rules: {ANY}"
    world.run(f"caption.captioners.tiny={{{tiny}, dtype: float32}}")
    first = captions(world)
    assert len(first) == 5 and {row["captioner"] for row in first.values()} == {"tiny"}
    assert all(row["tokens_out"] == 12 or row["finish_reason"] == "stop" for row in first.values())
    assert sum(row["reject_reason"] is None for row in first.values()) >= 3  # noise may hold no word
    tokens = Catalog(str(world.folder / "root")).tokens.scan(["media_id", "kind", "caption"])
    assert sorted(tokens["kind"].to_pylist()) == ["image"] * 4 + ["video"]
    assert {row["media_id"]: row["caption"] for row in tokens.to_pylist()} == {
        media_id: row["caption"] if row["reject_reason"] is None else None for media_id, row in first.items()
    }
    (clip,) = tokens.filter(pc.equal(tokens["kind"], "video"))["media_id"].to_pylist()
    images = [row["tokens_in"] for media_id, row in first.items() if media_id != clip]
    assert first[clip]["tokens_in"] > max(images) + 11 * 3  # twelve frames for one picture, under the same prompt

    with monkeypatch.context() as without:
        without.setattr(Workers, "run", None)  # a run that asks nothing starts no workers
        world.run("caption.captioners.tiny.resources.batch=1", "caption.resources.batch_rows=2")
    # The same model in another place is the same one; other weights are not.
    moved = world.folder / "moved"
    moved.mkdir()
    for path in Path(model).iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    with monkeypatch.context() as without:
        without.setattr(Workers, "run", None)
        world.run(f"caption.captioners.tiny.model={moved}")
    tiny_models.save("qwen2_5_vl", moved, seed=1)
    world.run()
    second = captions(world)
    assert second.keys() == first.keys() and second != first


@pytest.fixture(scope="module")
def served(model: str) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="`transformers serve` needs transformers[serving]")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.service
def test_pictures_and_a_clip_by_transformers_serve(world, model, served):
    resources = f"{{urls: ['{served}'], timeout_s: 60.0}}"
    tiny = f"{{engine: openai, model: {model}, sampling: {SAMPLING}, rules: {ANY}, resources: {resources}}}"
    run = world.run(f"caption.captioners.tiny={tiny}")
    found = captions(world)
    assert len(found) == 5 and not {"bad_picture", "bad_answer"} & {row["reject_reason"] for row in found.values()}
    assert all(re.fullmatch("stop|length", row["finish_reason"]) for row in found.values())
    assert run.reports[1].numbers["captioners"]["tiny"]["tokens_out"] > 0
