"""Pictures of fixed prompts while a model trains: what the finished model draws at the end, and no change before."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.training.job import Drawing, is_step
from tokenmill.training.resources import Monitor, TrainResources
from tokenmill.training.run.worker import train_worker
from tokenmill.training.sampling import Choice, Grid, Sampler

PROMPTS = ["a red square", "a blue one"]
DRAWING = Drawing("builtin", grid_h=3, grid_w=4, top_k=20, top_p=1.0, temperature=1.0, guidance=2.0)
SAMPLED = Monitor(sample_every_steps=3, prompts=PROMPTS)


def losses(job):
    return [line["loss"] for line in read_log(job.run_uri) if is_step(line)]


def test_they_are_drawn_as_the_finished_model_draws_and_change_nothing(make_job):
    drawn, plain = make_job("drawn", monitor=SAMPLED, drawing=DRAWING), make_job("plain")
    train_worker(drawn, TrainResources(recompute=True))
    train_worker(plain, TrainResources(recompute=True))
    assert losses(drawn) == losses(plain)
    one, other = (load_file(Path(job.run_uri) / "model" / "model.safetensors") for job in (drawn, plain))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    told = [(line["step"], line["samples"]) for line in read_log(drawn.run_uri) if "samples" in line]
    assert told == [(step, f"samples/step_00000{step}.png") for step in (3, 6, 8)]
    codes = Sampler.load(drawn.run_uri).draw(PROMPTS, Grid(3, 4), Choice(20, 1.0, 1.0, 2.0))
    wanted = VisionTokenizer.load("builtin", dtype="auto").decode_images(np.stack(codes))
    with Image.open(drawn.at(told[-1][1])) as picture:
        assert picture.size == (2 * 32 + 4, 24)
        found = np.asarray(picture)
    assert np.array_equal(found[:, :32], wanted[0]) and np.array_equal(found[:, 36:], wanted[1])


def test_who_cannot_draw_says_so_before_the_first_step(make_job):
    with pytest.raises(TrainingError, match=r"monitor.prompts: the job says no `drawing`"):
        train_worker(make_job(monitor=SAMPLED))


def test_prompts_and_how_often_go_together():
    for half in ({"prompts": PROMPTS}, {"sample_every_steps": 3}):
        with pytest.raises(ValueError, match="sample_every_steps and prompts: give both, or neither"):
            Monitor(**half)
