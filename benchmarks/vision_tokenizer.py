"""The vision tokenizer in images/s and clips/s beside transformers' own class, on the same pixels in one run.

    as published     transformers' `encode` as Emu3's prepare_data calls it: one medium at a time, fp32
    batched, bf16    the same call on a batch in bf16
    ours             the same by tokenizer/vision, in fp32 and in bf16 (the nearest code is searched in fp32 in both)
    ours, compiled   in bf16 by torch.compile, in each mode of `--compile` (`reduce-overhead` is CUDA graphs)
    torch's attention    on a GPU: ours in bf16 without its products for wide heads (vision/emu3.py); no goal's

Each rate stands with its share of the machine's rate at multiplying matrices, measured in this run in the same
precision: FLOPs of the call (convolutions and products, counted) over seconds over that rate. fp32 on a GPU is TF32
there, torch's default for convolutions. What bf16 costs is said by the codes that agree with those of true fp32, and
by PSNR where the weights are trained. Goal for stills: 3.8 times the quicker reference, in the dtype that `auto` is.

On a GPU the model has the published size with random weights (256 channels, 512 px); on a CPU a quarter of the channels
at 256 px. The built-in tokenizer is measured on both. `--channels`, `--size` and `--num` choose otherwise.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import corpus
import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from tokenmill.pipeline.reports.terminal import table
from tokenmill.pipeline.vision.media import square
from tokenmill.storage import cpu
from tokenmill.tokenizer.vision import batching
from tokenmill.tokenizer.vision.evaluation.metrics import psnr
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer, load_model, to_pixels
from tokenmill.tokenizer.vision.weights import BUILTIN_FOLDER

GOALS = {"cpu": (0, 3.8, 0), "cuda": (10, 4.5, 0.5)}  # times the published call, times the quicker one, of the matrices
NUM_FRAMES = 8


@dataclass(frozen=True)
class Runner:
    """One way to run the model: how it is called on images and clips, in which precision, how many at once."""

    name: str
    dtype: torch.dtype
    encode_images: Callable[[np.ndarray], object]
    encode_clips: Callable[[np.ndarray], object]
    decode_images: Callable[[np.ndarray], object]
    decode_clips: Callable[[np.ndarray], object]


def reference(model: Emu3VQVAE, name: str, dtype: torch.dtype, device: str, batch: int) -> Runner:
    """transformers' encode and decode, `batch` media at once; clips as rows of four frames, as the authors do."""
    model = model.to(device, dtype)

    def in_batches(call: Callable[[np.ndarray], torch.Tensor]) -> Callable[[np.ndarray], object]:
        def run(items: np.ndarray) -> list[torch.Tensor]:
            with torch.inference_mode():
                return [call(items[at : at + batch]).cpu() for at in range(0, len(items), batch)]

        return run

    def encode(frames: np.ndarray) -> torch.Tensor:
        pixels = to_pixels(torch.from_numpy(frames).to(device)).to(dtype)
        sizes = torch.tensor([frames.shape[-3:-1]] * len(frames))
        return torch.stack(list(model.encode(pixels, image_sizes=sizes).image_tokens))

    def decode(codes: np.ndarray) -> torch.Tensor:
        return model.decode(torch.from_numpy(codes).to(device))

    def groups(clips: np.ndarray) -> np.ndarray:
        return clips.reshape(-1, 4, *clips.shape[2:])

    return Runner(
        name,
        dtype,
        in_batches(encode),
        in_batches(lambda clips: encode(groups(clips))),
        in_batches(decode),
        in_batches(lambda codes: decode(codes.reshape(-1, 1, *codes.shape[2:]))),
    )


def ours(
    model: Emu3VQVAE, name: str, dtype: str, device: str, compile_mode: str | None = None
) -> tuple[Runner, VisionTokenizer]:
    tokenizer = VisionTokenizer(model, "", device, dtype, compile_mode=compile_mode)
    calls = (tokenizer.encode_images, tokenizer.encode_clips, tokenizer.decode_images, tokenizer.decode_clips)
    return Runner(name, getattr(torch, dtype), *calls), tokenizer


def matmul_flops_per_s(dtype: torch.dtype, device: str) -> float:
    """The best of several products of two square matrices; of a GPU in TF32, where `dtype` is fp32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    side = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds(lambda: a @ b, device) for _ in range(6))
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * side**3 / best


def seconds(call: Callable[[], object], device: str) -> float:
    """On a CPU those of this process, per thread: what else the machine does then hardly counts."""
    if device == "cpu":
        start = time.process_time() / torch.get_num_threads()
        call()
        return time.process_time() / torch.get_num_threads() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def small(channels: int) -> Emu3VQVAE:
    """Emu3's architecture (EMU3's published config) with this many base channels and random weights."""
    torch.manual_seed(0)
    config = Emu3VQVAEConfig(base_channels=channels, hidden_size=4 * channels)
    model = Emu3VQVAE(config).eval().requires_grad_(False)
    with torch.no_grad():
        model.quant_conv.conv.weight.mul_(2)  # random latents crowd into a few codes; spread them
    return model


def measure(
    title: str,
    make: Callable[[], Emu3VQVAE],
    images: np.ndarray,
    clips: np.ndarray,
    batch: int,
    modes: list[str],
    is_trained: bool,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = {dtype: matmul_flops_per_s(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    exact, exact_tokenizer = ours(make(), "ours, fp32", "float32", device)
    half, half_tokenizer = ours(make(), "ours, bf16", "bfloat16", device)
    paths = [
        reference(make(), "as published: one by one, fp32", torch.float32, device, 1),
        reference(make(), f"batches of {batch}, bf16", torch.bfloat16, device, batch),
        exact,
        half,
        *(ours(make(), f"ours, bf16, {mode}", "bfloat16", device, mode)[0] for mode in modes),
    ]
    if device == "cuda":
        fused, tokenizer = ours(make(), "with torch's attention", "bfloat16", device)
        setattr(tokenizer._codec, "attend_in_half_precision", lambda num_places: None)  # noqa: B010
        paths.append(fused)
    torch.backends.cudnn.allow_tf32 = False
    image_codes, clip_codes = exact_tokenizer.encode_images(images), exact_tokenizer.encode_clips(clips)
    torch.backends.cudnn.allow_tf32 = True
    for what, items in (
        ("encode_images", images),
        ("decode_images", image_codes),
        ("encode_clips", clips),
        ("decode_clips", clip_codes),
    ):
        made = table(f"{title}: {what}", "path", "a second#", "x batched bf16#", "TFLOP each#", "of matmul#")
        found = {}
        for path in paths:
            call = getattr(path, what)
            work = flops(partial(getattr(path if path in paths[:2] else half, what), items[:1]))
            call(items)  # chooses kernels, and compiles
            best = min(seconds(partial(call, items), device) for _ in range(2))
            found[path.name] = (len(items) / best, work, work * len(items) / best / rates[path.dtype])
        base = found[paths[1].name][0]
        for name, (rate, work, share) in found.items():
            made.add_row(name, f"{rate:.3g}", f"{rate / base:.2f}", f"{work / 1e12:.4f}", f"{share:.0%}")
        CONSOLE.print(made)
        if what == "encode_images":
            auto = cpu.quick_dtype(on_gpu=device == "cuda")
            start = "ours, bf16" if auto == "bfloat16" else "ours, fp32"
            rate, _, share = max(value for name, value in found.items() if name.startswith(start))
            reached = (rate / found[paths[0].name][0], rate / max(found[path.name][0] for path in paths[:2]), share)
            names = ("as published", "the quicker reference", "matrices")
            for of, value, goal in zip(names, reached, GOALS[device], strict=True):
                if goal:
                    verdict = "met" if value >= goal else "MISSED"
                    CONSOLE.print(f"{auto}: {value:.2f} of {of}, goal {goal}: {verdict}", highlight=False)
    for kind, codes, found_codes in (
        ("images", image_codes, half_tokenizer.encode_images(images)),
        ("clips", clip_codes, half_tokenizer.encode_clips(clips)),
    ):
        text = f"{title}: {(codes == found_codes).mean():.2%} of bf16's codes of {kind} are fp32's"
        if is_trained:
            decode = exact_tokenizer.decode_images if kind == "images" else exact_tokenizer.decode_clips
            original = images if kind == "images" else clips
            whole, rounded = psnr(decode(codes), original), psnr(decode(found_codes), original)
            text += f"; PSNR {whole:.3f} dB of fp32's, {rounded:.3f} dB of bf16's"
        CONSOLE.print(text, highlight=False)
    CONSOLE.print(", ".join(f"{dtype}: {rate / 1e12:.3f} TFLOP/s of matmul" for dtype, rate in rates.items()))


def pixels(folder: Path, count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` squares of photos, uint8 (count, side, side, 3), and a quarter as many clips that pan over them."""
    found = [np.asarray(photo) for photo in corpus.photos(folder)[:count]]
    images = np.stack([square(found[at % len(found)], side) for at in range(count)])
    wide = [square(picture, side + NUM_FRAMES * 2) for picture in found[: max(1, count // 4)]]
    clips = np.stack([[frame[at : at + side, 2 * at : 2 * at + side] for at in range(NUM_FRAMES)] for frame in wide])
    return images, clips


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/images"), help="a folder of real photos")
    parser.add_argument("--channels", type=int, default=256 if on_gpu else 64, help="of the random model")
    parser.add_argument("--size", type=int, default=512 if on_gpu else 256, help="side of the squares, px")
    parser.add_argument("--num", type=int, default=64 if on_gpu else 4, help="images; a quarter as many clips")
    parser.add_argument("--batch", type=int, default=16 if on_gpu else 4, help="of the batched reference")
    modes = ["default", "reduce-overhead"] if on_gpu else []
    parser.add_argument("--compile", nargs="*", default=modes, metavar="MODE", help="modes of torch.compile to measure")
    options = parser.parse_args()
    batching.COMPILE_AFTER = 0
    images, clips = pixels(options.photos, options.num, options.size)
    shown = f"{len(images)} images, {len(clips)} clips of {NUM_FRAMES} frames, {options.size} px"
    CONSOLE.print(f"{shown}; {torch.get_num_threads()} thread(s); {cpu.describe()}", highlight=False)
    batch, modes, title = options.batch, options.compile, f"{options.channels} channels, random"
    measure(title, lambda: small(options.channels), images, clips, batch, modes, is_trained=False)

    def builtin() -> Emu3VQVAE:
        model = load_model(BUILTIN_FOLDER)
        assert isinstance(model, Emu3VQVAE)
        return model

    measure("built-in", builtin, images, clips, batch, modes, is_trained=True)


CONSOLE = Console(width=110)

if __name__ == "__main__":
    main()
