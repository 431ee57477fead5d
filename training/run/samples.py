"""A model in the middle of its training -> pictures of fixed prompts, as one PNG.

    run/samples/step_000500.png    a picture for each of monitor.prompts, side by side

They are drawn from a copy: the training's model may be spread over workers, its attention knows packs alone, and a
sampler may do with its model as it likes. The copy is gathered a tensor at a time, bfloat16 on a GPU, and let go;
numbers are drawn from streams of their own, so the training goes on as if nothing had been drawn.
"""

import io
from copy import deepcopy

import numpy as np
import torch
from PIL import Image
from transformers import Emu3ForCausalLM

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.training.job import Drawing, TrainJob
from tokenmill.training.lora import plain_weights, put_together
from tokenmill.training.sampling import Choice, Grid, Sampler

_GAP_PX = 4


class Samples:
    """Of one run. Raises TrainingError where nobody knows how to draw."""

    def __init__(self, job: TrainJob, layout: SequenceLayout, rank: int, device: torch.device):
        if job.drawing is None:
            raise TrainingError("monitor.prompts: the job says no `drawing`, which decodes pictures; leave them out")
        self._job, self._drawing, self._prompts = job, job.drawing, job.monitor.prompts
        self._layout, self._rank = layout, rank
        self._vision = VisionTokenizer.load(job.drawing.tokenizer, str(device), "auto") if rank == 0 else None
        if self._vision is not None and not self._vision.decodes:
            raise TrainingError(f"monitor.prompts: {job.drawing.tokenizer} decodes nothing; leave them out")

    def draw(self, lm: Emu3ForCausalLM, step: int) -> str | None:
        """Write the pictures after `step` steps; returns where they stand in the run's folder, of the first worker,
        which draws. Every worker must call it.
        """
        copy = _copied(lm, self._rank)
        if copy is None or self._vision is None:
            return None
        name = f"samples/step_{step:06d}.png"
        with torch.random.fork_rng(_devices(lm)):
            codes = _drawn(copy, self._layout, self._drawing, self._prompts)
            pictures = self._vision.decode_images(codes)
        storage.write_bytes(self._job.at(name), _png(pictures))
        return name


def _drawn(lm: Emu3ForCausalLM, layout: SequenceLayout, how: Drawing, prompts: list[str]) -> np.ndarray:
    """Codes, int64 (B, h, w)."""
    choice = Choice(how.top_k, how.top_p, how.temperature, how.guidance)
    return np.stack(Sampler(lm, layout).draw(prompts, Grid(how.grid_h, how.grid_w), choice))


def _copied(lm: Emu3ForCausalLM, rank: int) -> Emu3ForCausalLM | None:
    """The whole model on the first worker, ready to generate; None on the others, which give their parts."""
    copy = None
    if rank == 0:
        with torch.device("meta"):
            copy = Emu3ForCausalLM(deepcopy(lm.config))
        copy.set_attn_implementation("sdpa")
    weights = {}
    for name, parts in plain_weights(lm).items():
        whole = put_together(parts)
        if rank == 0:
            dtype = torch.bfloat16 if whole.is_cuda else torch.float32
            weights[name] = whole.detach().to(dtype, copy=True)
    if copy is None:
        return None
    copy.load_state_dict(weights, assign=True)
    for name, buffer in lm.named_buffers():  # those of positions are in no state
        place, _, own = name.rpartition(".")
        copy.get_submodule(place).register_buffer(own, buffer.clone(), persistent=False)
    return copy.requires_grad_(False).eval()


def _devices(lm: Emu3ForCausalLM) -> list[torch.device]:
    return [lm.device] if lm.device.type == "cuda" else []


def _png(pictures: np.ndarray) -> bytes:
    num, height, width, _ = pictures.shape
    row = np.full((height, num * (width + _GAP_PX) - _GAP_PX, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        row[:, place * (width + _GAP_PX) :][:, :width] = picture
    png = io.BytesIO()
    Image.fromarray(row).save(png, "png")
    return png.getvalue()
