"""The parts of gpu.py that look at pictures: each takes whether it is small and `tell(what, **figures)`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
import vision_tokenizer as bench
from PIL import Image
from safetensors.torch import save_file

from tokenmill.pipeline.config import load
from tokenmill.stages.embed.score_clip import ClipConfig, ScoreClip
from tokenmill.stages.image.text_area import TextDetector
from tokenmill.tokenizer.vision.training.trainee import Training
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

Tell = Callable[..., None]
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LEAST_EQUAL = 0.99  # share of codes that a GPU and a CPU must have in common, in fp32


class CannotRun(Exception):  # noqa: N818 - it is said in the part's row
    """Something is not here that the part needs."""


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def pictures_of(count: int, side: int) -> np.ndarray:
    """Smooth colours, edges and some noise, no two alike: uint8 (count, side, side, 3)."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
        left, top = rng.integers(0, side // 2, 2)
        smooth[top : top + side // 3, left : left + side // 3] = rng.integers(0, 256, 3)
        made.append((smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(made)


def clips_of(count: int, side: int) -> np.ndarray:
    """Pans over pictures: uint8 (count, 8, side, side, 3)."""
    wide = pictures_of(count, side + 16)
    return np.stack([[frame[at : at + side, 2 * at : 2 * at + side] for at in range(8)] for frame in wide])


def turned(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns, after one of each that does not count."""
    for call in calls.values():
        call()
    spent = [{name: bench.seconds(call, device()) for name, call in calls.items()} for _ in range(rounds)]
    return {name: median(each[name] for each in spent) for name in calls}


def stills(small: bool, tell: Tell) -> None:
    encode(small, tell, "encode_images", pictures_of(2 if small else 64, 64 if small else 512))


def clips(small: bool, tell: Tell) -> None:
    encode(small, tell, "encode_clips", clips_of(1 if small else 8, 32 if small else 512))


def encode(small: bool, tell: Tell, what: str, media: np.ndarray) -> None:
    """Ours beside transformers' own class, in both precisions."""
    channels, batch, rounds = (32, 2, 1) if small else (256, 16, 3)

    def make() -> Any:
        return bench.small(channels)

    codes = {}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        rate = bench.matmul_flops_per_s(dtype, device())
        tell(f"{name}: matrix rate", TFLOPs=rate / 1e12)
        runner, tokenizer = bench.ours(make(), "ours", name, device())
        together = bench.reference(make(), "batched", dtype, device(), batch)
        one_by_one = bench.reference(make(), "one by one", dtype, device(), 1)
        runs = {"ours": runner, "batched": together, "one by one": one_by_one}
        spent = turned({who: lambda run=run: getattr(run, what)(media) for who, run in runs.items()}, rounds)
        work = bench.flops(lambda: getattr(runner, what)(media[:1])) * len(media)  # noqa: B023
        per_s = {who: len(media) / seconds for who, seconds in spent.items()}
        share = work / spent["ours"] / rate
        tell(
            f"{name}, beside batches of {batch}, a second", ours=per_s["ours"], base=per_s["batched"], of_matrices=share
        )
        tell(f"{name}, beside one by one, a second", ours=per_s["ours"], base=per_s["one by one"])
        torch.backends.cudnn.allow_tf32 = False
        codes[name] = getattr(tokenizer, what)(media)
        torch.backends.cudnn.allow_tf32 = True
    on_cpu = getattr(VisionTokenizer(make(), "", "cpu", "float32"), what)(media[:1])
    equal = float((on_cpu == codes["float32"][:1]).mean())
    tell("codes of bfloat16 that are float32's", share=float((codes["bfloat16"] == codes["float32"]).mean()))
    tell("codes of float32 that are the CPU's", share=equal, verdict="met" if equal >= LEAST_EQUAL else "MISSED")


def pictures(small: bool, tell: Tell) -> None:
    """The whole command on JPEGs, and what the tokenizer takes alone for the same squares."""
    count, side, channels = (6, 64, 32) if small else (2000, 512, 256)
    with tempfile.TemporaryDirectory(prefix="tokenmill-gpu-") as name:
        work = Path(name)
        (work / "photos").mkdir()
        shown = pictures_of(min(count, 64), side)
        rng = np.random.default_rng(1)
        for number in range(count):
            noisy = shown[number % len(shown)] ^ rng.integers(0, 8, shown[0].shape, dtype=np.uint8)
            Image.fromarray(noisy).save(work / "photos" / f"{number:05d}.jpg", quality=90)
            (work / "photos" / f"{number:05d}.txt").write_text(f"picture {number}")
        bench.small(channels).save_pretrained(work / "tokenizer")
        config = {
            "root": str(work / "root"),
            "sources": [{"uri": str(work / "photos")}],
            "curate": {"decide": {"image_rules": {"any": "min(width_px, height_px) >= 8"}, "video_rules": {}}},
            "tokenize": {
                "model": str(work / "tokenizer"),
                "frames": {"area_px": side * side},
                "resources": {"num_gpus": 1 if device() == "cuda" else 0},
            },
        }
        (work / "config.yaml").write_text(json.dumps(config))
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}

        def command(*words: str) -> str:
            line = [sys.executable, "-m", "tokenmill", *words]
            done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-300:]}")
            return done.stdout

        for phase in ("curate", "caption"):
            command(phase, str(work / "config.yaml"))
        started = time.perf_counter()
        command("tokenize", str(work / "config.yaml"))
        seconds = time.perf_counter() - started
        status = json.loads(command("status", str(work / "config.yaml"), "--json"))
        steady = status["last_run"]["phases"][0]["rows_per_s"]
        tokenizer = VisionTokenizer.load(str(work / "tokenizer"), device(), "auto")
        alone = len(shown) / turned({"alone": lambda: tokenizer.encode_images(shown)}, 1 if small else 3)["alone"]
        if steady is not None:  # of few pictures it is not told
            tell("pictures a second, from the first to the last commit", ours=float(steady), base=alone)
        tell("pictures a second, with start-up", ours=count / seconds, base=alone)


def scores(small: bool, tell: Tell) -> None:
    """ScoreClip beside open_clip; TextDetector, on one core, beside rapidocr."""
    tiny = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    sizes = {"embed_dim": 32, "vision_cfg": tiny, "text_cfg": text} if small else open_clip.get_model_config("ViT-L-14")
    side, count = sizes["vision_cfg"]["image_size"], 8 if small else 1024
    shown, captions = pictures_of(count, side), [f"a picture of {number} things" for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="tokenmill-gpu-") as name:
        torch.manual_seed(0)
        save_file(open_clip.CLIP(**sizes).state_dict(), f"{name}/open_clip_model.safetensors")
        Path(name, "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": {}}))
        stage = ScoreClip(ClipConfig(model=name, view_px=side))
        model = open_clip.create_model(f"local-dir:{name}").eval().to(device())
        tokens = open_clip.get_tokenizer(f"local-dir:{name}")
    model.to(torch.bfloat16 if device() == "cuda" else torch.float32)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.visual.image_mean, model.visual.image_std))
    rows = {
        "kind": ["image"] * count,
        "source_caption": captions,
        "views": [each.tobytes() for each in shown],
    }
    schema = pa.schema([*(field for field in stage.reads)])
    table = pa.Table.from_pylist(
        [{key: rows[key][i] for key in rows} for i in range(count)], schema=pa.unify_schemas([schema, _missing(stage)])
    )

    @torch.inference_mode()
    def alone() -> None:
        for start in range(0, count, 64):
            part = torch.from_numpy(shown[start : start + 64]).to(device()).permute(0, 3, 1, 2) / 255
            pixels = ((part - mean.to(device())) / std.to(device())).to(next(model.parameters()).dtype)
            model.encode_image(pixels).cpu()
            model.encode_text(tokens(captions[start : start + 64]).to(device())).cpu()

    spent = turned({"ours": lambda: stage(table), "alone": alone}, 1 if small else 3)
    tell("CLIP scores with captions, pictures a second", ours=count / spent["ours"], base=count / spent["alone"])
    pages, detector = pictures_of(2 if small else 16, 512), TextDetector()
    bare = TextDetector()._open()  # rapidocr as it is set there
    calls = {
        "ours": lambda: [detector(page, 512) for page in pages],
        "alone": lambda: [bare(page, use_det=True, use_cls=False, use_rec=False) for page in pages],
    }
    spent = turned(calls, 1 if small else 3)
    tell("text detector on one core, a second", ours=len(pages) / spent["ours"], base=len(pages) / spent["alone"])


def _missing(stage: ScoreClip) -> pa.Schema:
    """Columns that a stage writes and others made before it, as null."""
    return pa.schema([field for field in stage.writes if field.name not in stage.reads.names])


def trainee(small: bool, tell: Tell) -> None:
    """A step of configs/builtin_tokenizer.yaml, compiled (in small not, which takes a minute) and not."""
    given = load(str(CONFIGS / "builtin_tokenizer.yaml")).tokenizer.train
    assert given is not None
    if small:
        given = given.model_copy(update={"batch": 4})
    side = 32 if small else 64
    batch = torch.from_numpy(pictures_of(given.batch, side)).permute(0, 3, 1, 2)[:, None].float() / 127.5 - 1
    pixels = batch.to(device())
    made = {name: Training(given, device(), name == "ours" and not small) for name in ("ours", "eager")}
    steps = dict.fromkeys(made, 0)

    def step(name: str) -> None:
        steps[name] += 1
        made[name].step(pixels, steps[name])

    spent = turned({name: lambda name=name: step(name) for name in made}, 2 if small else 10)
    tell("steps a second, compiled beside eager", ours=1 / spent["ours"], base=1 / spent["eager"])
