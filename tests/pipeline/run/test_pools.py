"""A tokenizer of images in the plan: clips that wait for it are refused, and its codes' side shapes the frames."""

import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from transformers import JanusVQVAE, JanusVQVAEConfig

from tokenmill.pipeline.config import load
from tokenmill.pipeline.run.pools import PlanError, tokenize_stages
from tokenmill.pipeline.run.tokenizing import check_clips
from tokenmill.stages.tokenize.load_frames import LoadFrames
from tokenmill.storage.identity import content_id


@pytest.fixture
def config(tmp_path):
    """A run with a small random Janus tokenizer, whose codes are 16 px wide."""
    sizes = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 1, 1], "num_res_blocks": 1, "latent_channels": 8}
    JanusVQVAE(JanusVQVAEConfig(num_embeddings=64, num_patches=4, **sizes)).save_pretrained(tmp_path / "janus")
    document = {
        "root": str(tmp_path / "root"),
        "sources": [{"uri": str(tmp_path)}],
        "tokenize": {"frames": {"area_px": 88 * 104}, "model": str(tmp_path / "janus")},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(document))
    return path


def test_clips_stop_a_tokenizer_of_images(config):
    with pytest.raises(PlanError, match=r"2 kept clips, and .*janus codes images only; set tokenize\.model"):
        check_clips(load(config).tokenize.model, ["image", "video", "video"])
    check_clips(load(config).tokenize.model, ["image", "image"])
    check_clips("builtin", ["image", "video"])


def test_frames_fit_the_tokenizers_codes(config, tmp_path):
    Image.fromarray(np.zeros((88, 104, 3), np.uint8)).save(tmp_path / "image.png")
    identity = content_id([(tmp_path / "image.png").read_bytes()])
    row = {"media_id": identity, "kind": "image", "uri": str(tmp_path / "image.png")}
    table = pa.Table.from_pylist([row], schema=LoadFrames.reads)
    for sets, size in (([], (96, 112)), (["tokenize.model=builtin"], (88, 104))):
        stage, arguments = tokenize_stages(load(config, sets)).stages[0]
        (found,) = stage(*arguments)(table).to_pylist()
        assert (found["frames_h"], found["frames_w"]) == size
