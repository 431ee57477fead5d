"""From prompts to pictures: the newest trained model of a catalog draws codes, the vision tokenizer decodes them."""

from pathlib import Path

import numpy as np
from rich.console import Console

from tokenmill.pipeline.catalog.models import newest
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.sheet import image_grid
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.training.sample import Sampler


def draw(config: RunConfig, prompts: list[str], seeds: list[int]) -> np.ndarray:
    """Pictures for `prompts`, each with its seed: uint8 (B, H, W, 3). Raises CatalogError."""
    model = newest(config.root, config.train)
    if model is None:
        raise CatalogError(f"{config.root}: no trained model yet; run `tokenmill train CONFIG` first")
    how = config.sample
    sampler = Sampler.load(model)
    codes = sampler.draw(
        prompts,
        grid_h=how.grid_h,
        grid_w=how.grid_w,
        top_k=how.top_k,
        temperature=how.temperature,
        guidance=how.guidance,
        seeds=seeds,
    )
    return VisionTokenizer.load(config.tokenize.model).decode_images(codes)


def sample_grid(config: RunConfig, prompts: list[str], seeds: list[int], out: Path, console: Console) -> None:
    """Draw every prompt with every seed: one row a prompt, one column a seed; write a PNG."""
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    pictures = draw(config, [prompt for prompt, _ in pairs], [seed for _, seed in pairs])
    out.parent.mkdir(parents=True, exist_ok=True)
    image_grid(list(pictures), columns=len(seeds)).save(out)
    console.print(f"{len(pairs)} pictures of {pictures.shape[2]}x{pictures.shape[1]} px in {out}", highlight=False)
