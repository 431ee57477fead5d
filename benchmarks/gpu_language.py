"""The parts of gpu.py that read and write tokens: each takes whether it is small and `tell(what, **figures)`."""

import gc
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import captions as caption_bench
import numpy as np
import sampling as sampling_bench
import torch
import train_step as bench
from gpu_vision import CannotRun, Tell, device
from turns import Turn, in_turns
from vision_tokenizer import matmul_flops_per_s

from tokenmill.pipeline.config import load
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.job import TrainJob
from tokenmill.training.model.flops import Flops, peak_of
from tokenmill.training.model.model import PackLoss, build_model, config_of, tensors
from tokenmill.training.parallel.memory import needed
from tokenmill.training.resources import TrainResources
from tokenmill.training.sampling import Choice, Grid, Sampler

EMU3_8B = {  # its layers; how many of them, each part says
    "hidden_size": 4096,
    "num_heads": 32,
    "num_kv_heads": 8,
    "intermediate_size": 14336,
    "rope_theta": 1e6,
}
SMALL = {"hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 128}
EMU3_CODES = 32_768
TOLERANCES = {"float32": (1e-4, 0.999), "bfloat16": (2e-2, 0.99)}  # of the loss, relative; cosine of the gradients


def captions(small: bool, tell: Tell) -> None:
    """Engine transformers beside a loop, in batches; a Qwen2.5-VL of random weights."""
    sys.path.insert(0, str(caption_bench.HELPERS))
    import tiny_models

    count, batch = (4, 2) if small else (256, 32)
    with tempfile.TemporaryDirectory(prefix="tokenmill-gpu-") as name:
        folder = tiny_models.save("qwen2_5_vl", Path(name))
        if not small:
            enlarge(folder)
        shown = caption_bench.pictures(count, 112)
        dtype = "float32" if device() == "cpu" else "bfloat16"
        loop, engine = caption_bench.beside_loop(folder, shown, batch, 1 if small else 3, dtype, device())
    tell(f"engine transformers, batches of {batch}, answers a second", ours=engine, base=loop)
    if small or shutil.which("vllm") is None:
        tell("vLLM", why="not measured in small" if small else "it is not installed: pip install vllm")
        return
    caption_bench.vllm("vllm", 800, 2)
    tell("vLLM", why="its figures stand in the lines that it printed")


def enlarge(folder: str) -> None:
    """Put a model of 1.7 billion weights in the place of the small one, with its processor and ids."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 24, "num_attention_heads": 16}
    for key, value in (text | {"num_key_value_heads": 2, "rope_parameters": rope}).items():
        setattr(config.text_config, key, value)
    for key, value in {"depth": 12, "hidden_size": 1280, "num_heads": 16, "out_hidden_size": 2048}.items():
        setattr(config.vision_config, key, value)
    with torch.device(device()):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    model.bfloat16().save_pretrained(folder)


def losses(small: bool, tell: Tell) -> None:
    """The demo's model on one pack: loss and gradients here beside those of a CPU in float32."""
    with tempfile.TemporaryDirectory(prefix="tokenmill-gpu-") as name:
        course = course_of(name, {}, 8, None, 1024, 2, "float32")
        lm = build_model(course.job.config.model, course.vocabulary, 512, seed=1)
    pack, weights = course.steps[0][0], course.job.config.optimizer.weights

    def found(where: str, dtype: str) -> tuple[float, torch.Tensor]:
        model = PackLoss(lm, weights).to(where).train()
        model.zero_grad()
        with torch.autocast(where, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss, _ = model(*tensors(pack, torch.device(where)))
        loss.backward()
        grads = [weight.grad.flatten().float().cpu() for weight in lm.parameters() if weight.grad is not None]
        return float(loss.detach()), torch.cat(grads).double()

    loss, grads = found("cpu", "float32")
    for dtype, (tolerance, least) in TOLERANCES.items():
        other, moved = found(device(), dtype)
        away = abs(other / loss - 1)
        direction = float(torch.nn.functional.cosine_similarity(moved, grads, dim=0))
        verdict = "met" if away <= tolerance and direction >= least else "MISSED"
        tell(f"{dtype}: loss", ours=other, base=loss, away=away, gradients_cosine=direction, verdict=verdict)


def course_of(
    folder: str, sizes: dict[str, Any], side: int, classes: int | None, pack_tokens: int, steps: int, dtype: str
) -> bench.Course:
    """One document of side x side codes a pack, or as many as it holds."""
    given = load(bench.CONFIG).train.what
    data = {"context_tokens": min(pack_tokens, side * (side + 1) + 80), "pack_tokens": pack_tokens}
    data |= {"batch_packs": 1 if sizes else 2, "understanding_share": 0.0}
    update = {
        "dtype": dtype,
        "data": given.data.model_copy(update=data),
        "optimizer": given.optimizer.model_copy(update={"steps": steps, "muon_lr": None}),
        "model": given.model.model_copy(update=sizes),
    }
    count = max(4, 40 * pack_tokens // (side * side)) if side < 100 else 3
    uri = bench.shard(Path(folder) / f"part-{side}.parquet", min(count, 2000), side)
    return bench.Course.of(TrainJob(given.model_copy(update=update), [uri], bench.CODEBOOK, f"{folder}/run"), classes)


def num_layers_that_fit(pack_tokens: int, recompute: bool, most: int) -> int:
    """Of Emu3-8B's layers, by what the product says that a step needs, with room for the plain loop's logits."""
    if device() == "cpu":
        return 1
    given = load(bench.CONFIG).train.what
    data = given.data.model_copy(update={"pack_tokens": pack_tokens})
    free = torch.cuda.mem_get_info()[0] * 0.9 - (0 if recompute else 12.0 * pack_tokens * bench.EMU3_CLASSES)
    ids = Vocabulary(
        pad=0, eol=1, eof=2, bos=3, eos=4, sot=5, sov=6, eov=7, vision_offset=400, codebook_size=EMU3_CODES
    )
    for layers in range(most, 0, -1):
        model = given.model.model_copy(update=EMU3_8B | {"num_layers": layers})
        update = {"model": model, "data": data, "dtype": auto()}
        lm = config_of(model, ids, pack_tokens)
        lm.vocab_size = bench.EMU3_CLASSES
        if needed(lm, given.model_copy(update=update), resources(recompute), 1).total <= free:
            return layers
    raise CannotRun(f"of {free / 1e9:.0f} GB not one of Emu3-8B's layers can be trained with its ends")


def training(small: bool, tell: Tell) -> None:
    sizes = SMALL if small else EMU3_8B
    pack_tokens, side, steps = (256, 8, 1) if small else (5_120, 64, 8)
    layers = num_layers_that_fit(pack_tokens, False, 32)
    classes = None if small else bench.EMU3_CLASSES
    with tempfile.TemporaryDirectory(prefix="tokenmill-gpu-") as name:
        course = course_of(name, sizes | {"num_layers": layers}, side, classes, pack_tokens, steps + 4, auto())
        runs = {
            "ours": partial(bench.ours, course, None, resources(False)),
            "plain": partial(bench.plain, course, bench.packed, not small, device=device()),
        }
        rates = {}
        for who, run in runs.items():  # one after the other: memory holds one
            rates[who], peak = alone(run, steps)
            tell(f"{who}: peak memory, GB", peak=peak)
        per_token = flops_per_token(course)
        tell(
            f"{layers} layers, {pack_tokens:,} tokens a step, tokens a second",
            ours=rates["ours"],
            base=rates["plain"],
            **shares(rates["ours"] * per_token),
        )


def long(small: bool, tell: Tell) -> None:
    sizes = SMALL if small else EMU3_8B
    pack_tokens, side, steps = (1024, 30, 1) if small else (131_072, 350, 2)
    layers = num_layers_that_fit(pack_tokens, True, 4)
    classes = None if small else bench.EMU3_CLASSES
    with tempfile.TemporaryDirectory(prefix="tokenmill-gpu-") as name:
        course = course_of(name, sizes | {"num_layers": layers}, side, classes, pack_tokens, steps + 4, auto())
        rate, peak = alone(partial(bench.ours, course, None, resources(True)), steps)
        what = f"{layers} layers, one document of {course.num_tokens(0):,} tokens, recomputed, tokens a second"
        tell(what, ours=rate, peak_GB=peak, **shares(rate * flops_per_token(course)))


def auto() -> str:
    return "bfloat16" if device() == "cuda" else "float32"


def resources(recompute: bool) -> TrainResources:
    on_gpu = device() == "cuda"
    return TrainResources(use_gpu=on_gpu, threads=1, recompute=recompute, checkpoint_every_steps=10**9)


def alone(run: Callable[[Turn], None], steps: int) -> tuple[float, float]:
    """Tokens a second, and the most memory in GB; of a CPU that is not asked."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    rates = in_turns({"it": run}, steps)["it"]
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else float("nan")
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return median(rates), peak


def flops_per_token(course: bench.Course) -> float:
    """Of a mean token of the course's documents, forward and backward."""
    with torch.device("meta"):
        flops = Flops(course.make())
    num_tokens = sum(pack.num_tokens for packs in course.steps for pack in packs)
    num_pairs = sum(pack.num_pairs for packs in course.steps for pack in packs)
    return flops.of(num_tokens, num_pairs) / num_tokens


def shares(flops_per_s: float) -> dict[str, float]:
    """Of the peak that the maker names, MFU, where it is known, and of the matrix rate measured here."""
    measured = matmul_flops_per_s(getattr(torch, auto()), device())
    peak = peak_of(torch.cuda.get_device_name()) if device() == "cuda" else float("nan")
    return {"mfu": flops_per_s / peak, "of_matrices": flops_per_s / measured}


def drawing(small: bool, tell: Tell) -> None:
    """Guidance and cache, top-k 2,048, beside generate with equal processors."""
    words = train_text_tokenizer([" ".join(sampling_bench.WORDS)], 400)
    layout = SequenceLayout(words, Vocabulary.of(words, bench.CODEBOOK if small else EMU3_CODES))
    sizes = load(bench.CONFIG).train.what.model.model_copy(
        update=(SMALL | {"num_layers": 1}) if small else EMU3_8B | {"num_layers": 8}
    )
    lm = build_model(sizes, layout.vocabulary, 2048, 0).eval().to(device())
    lm.set_attn_implementation("sdpa")
    if device() == "cuda":
        lm = lm.bfloat16()
    grid, rng = Grid(4, 4) if small else Grid(24, 24), np.random.default_rng(0)
    for count in (1,) if small else (1, 8, 32):
        prompts = [" ".join(rng.choice(sampling_bench.WORDS, 8)) for _ in range(count)]
        choice = Choice(top_k=2048, guidance=3.0)
        sampler = Sampler(lm, layout, is_compiled=device() == "cuda")
        rates, _ = sampling_bench.beside(lm, layout, sampler, prompts, grid, choice, 1 if small else 3)
        what = f"{count} sequences with guidance, {sizes.num_layers} layers, tokens a second"
        tell(what, ours=rates["Sampler"], base=rates["generate"])
