"""A model and its vision tokenizer in one folder: plain transformers opens it and writes what we write."""

import json
import os
import re
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Emu3ForConditionalGeneration,
    Emu3VQVAE,
    Emu3VQVAEConfig,
)

from tokenmill.pipeline.serving.server import ModelServer, ServerSpec
from tokenmill.storage.checksums import damaged_file
from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import load_text_tokenizer, train_text_tokenizer
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.tokenizer.vision.weights import codebook_size
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import ModelConfig
from tokenmill.training.model.model import build_model
from tokenmill.training.sampling import Choice, Grid, Sampler
from tokenmill.training.whole import WholeModelError, write_whole

TEXTS = ["a red circle left of a blue square", "12 stars", "what is it? a house"]
SMALL = ModelConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=96, rope_theta=2e4)
AREA_PX = 64 * 64


def write_model(folder: Path, num_codes: int) -> None:
    tokenizer = train_text_tokenizer(TEXTS, 300)
    vocabulary = Vocabulary.of(tokenizer, num_codes)
    lm = build_model(SMALL, vocabulary, 256, seed=0)
    with torch.no_grad():  # random weights hardly depend on what was said; make them
        for parameter in lm.parameters():
            parameter.mul_(4.0 if parameter.ndim == 2 else 1.0)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vocabulary.save(folder)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    write_model(folder, codebook_size("builtin"))
    return folder


@pytest.fixture(scope="module")
def whole(ours, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    lm_size = Sampler.load(str(ours), "cpu").lm.config.vocab_size
    assert write_whole(str(ours), "builtin", AREA_PX, "# a card", str(folder)) == lm_size + 1
    return folder


@pytest.fixture(scope="module")
def theirs(whole) -> tuple[Emu3ForConditionalGeneration, AutoProcessor]:
    model = AutoModelForImageTextToText.from_pretrained(whole)
    assert type(model) is Emu3ForConditionalGeneration
    return model, AutoProcessor.from_pretrained(whole)


def test_transformers_draws_the_same_codes(ours, theirs):
    model, processor = theirs
    sampler, (h, w) = Sampler.load(str(ours), "cpu"), (4, 6)
    v = sampler.layout.vocabulary
    asked = processor(
        text=TEXTS[0], return_for_image_generation=True, ratio="6:4", image_area=64 * h * w, return_tensors="pt"
    )
    assert list(asked.pop("image_sizes")[0]) == [h, w]
    begin = asked["input_ids"].shape[1]

    def allowed(_, ids):
        at = len(ids) - begin
        ends = {h * (w + 1): [v.eof], h * (w + 1) + 1: [v.eov], h * (w + 1) + 2: [v.eos]}
        return ends.get(at) or ([v.eol] if at % (w + 1) == w else model.vocabulary_mapping.image_tokens)

    made = model.generate(**asked, max_new_tokens=h * (w + 1) + 3, do_sample=False, prefix_allowed_tokens_fn=allowed)
    codes = sampler.draw([TEXTS[0]], Grid(h, w), Choice(top_k=1, guidance=1.0))[0]
    assert made[0].tolist() == sampler.layout.build(codes, sampler.layout.caption_ids(TEXTS[0])).ids.tolist()
    assert len(np.unique(codes)) > 3
    pixels = model.decode_image_tokens(image_tokens=made[:, begin:], height=h, width=w)
    picture = processor.postprocess(list(pixels.float()), return_tensors="PIL.Image.Image")["pixel_values"][0]
    of_ours = VisionTokenizer.load("builtin").decode_images(codes[None])[0]
    assert picture.size == (8 * w, 8 * h)
    assert np.abs(np.asarray(picture).astype(int) - of_ours).max() <= 1  # one rounds, one cuts off


def test_transformers_tells_what_a_picture_shows_in_the_same_words(ours, theirs):
    model, processor = theirs
    sampler, tokenizer = Sampler.load(str(ours), "cpu"), VisionTokenizer.load("builtin")
    rng = np.random.default_rng(0)
    frames = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64)))
    conversation = [{"role": "user", "content": [{"type": "image"}]}]
    asked = processor(images=[Image.fromarray(frames)], text=[processor.apply_chat_template(conversation)])
    asked = asked.convert_to_tensors("pt")
    made = model.generate(**asked, max_new_tokens=12, do_sample=False)[:, asked["input_ids"].shape[1] :]
    codes = tokenizer.encode_images(frames[None])
    assert 65 < (asked["input_ids"] == processor.image_token_id).sum() == 8 * 9
    v = sampler.layout.vocabulary
    sequence = sampler.layout.build(codes[0], np.empty(0, np.int32), is_caption_last=True).ids[:-1]
    stands = asked["input_ids"][0].numpy() == processor.image_token_id
    assert (np.where(stands, sequence, asked["input_ids"][0]) == sequence).all()
    text = torch.from_numpy(sequence)[None].long()
    for _ in range(12):  # the likeliest of all ids, as they take it
        text = torch.cat([text, sampler.lm(text).logits[:, -1:].argmax(-1)], dim=1)
        if text[0, -1] == v.eos:
            break
    assert made[0].tolist() == text[0, len(sequence) :].tolist()


def test_written_read_and_written_again_it_is_the_same(whole, tmp_path):
    write_whole(str(whole), "builtin", AREA_PX, "# a card", str(tmp_path))
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir()) and damaged_file(str(tmp_path)) is None
    for name in names:
        assert (whole / name).read_bytes() == (tmp_path / name).read_bytes(), name


def published_by_baai(whole: Path, folder: Path) -> None:
    """Names and config of BAAI/Emu3-Gen, which has code of its own."""
    lm = build_model(ModelConfig(init_from=str(whole)), Vocabulary.load(whole), 256, seed=0)
    lm.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config |= {"model_type": "Emu3", "rope_scaling": None, "image_area": 518400, "z_loss": 0.0}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("layout", ["hf", "baai"])
def test_a_training_begins_with_a_published_layout(ours, whole, tmp_path, layout):
    if layout == "baai":
        published_by_baai(whole, tmp_path)
    folder = whole if layout == "hf" else tmp_path
    vocabulary = Vocabulary.of(load_text_tokenizer(whole), codebook_size("builtin"))
    assert vocabulary == Vocabulary.load(ours)
    lm = build_model(ModelConfig(init_from=str(folder), dropout=0.0), vocabulary, 256, seed=1)
    expected = Sampler.load(str(ours), "cpu").lm
    assert lm.config.rope_parameters["rope_theta"] == 2e4
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, lm.state_dict()[name][: len(tensor)]), name


def test_a_published_layout_that_lacks_weights_is_refused(whole, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(whole, tmp_path / "whole")
    weights = load_file(whole / "model.safetensors")
    lacking = next(name for name in weights if re.search(r"text_model.*layers\.1.*q_proj", name))
    del weights[lacking]
    save_file(weights, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="no weights model.layers.1.self_attn.q_proj.weight"):
        build_model(ModelConfig(init_from=str(tmp_path / "whole")), Vocabulary.load(whole), 256, seed=0)


@pytest.mark.slow
def test_vllm_draws_the_same_codes(ours, whole, tmp_path, monkeypatch):
    """TOKENMILL_VLLM names its command; a CPU build needs no GPU. It has modeling code of transformers for Emu3."""
    program = os.environ.get("TOKENMILL_VLLM")
    if not program:
        pytest.skip("TOKENMILL_VLLM names no command of a real vLLM")
    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    how = ["--served-model-name", "whole", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    command = (program, "serve", str(whole), *how, "--gpu-memory-utilization", "0.2")
    server = ModelServer(ServerSpec("vllm", command, str(tmp_path / "log"), 300, 0), "127.0.0.1")
    sampler, (h, w) = Sampler.load(str(ours), "cpu"), (4, 6)
    v, caption = sampler.layout.vocabulary, sampler.layout.caption_ids(TEXTS[0])
    codes = sampler.draw([TEXTS[0]], Grid(h, w), Choice(top_k=1, guidance=1.0))[0]
    expected = sampler.layout.build(codes, caption).ids.tolist()
    begin, drawable = len(sampler.layout.prefix(caption, h, w)), range(v.vision_offset, v.size)
    asked = {"model": "whole", "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    asked |= {"allowed_token_ids": list(drawable)}
    try:
        url = f"{server.ready()}/completions"
        for at in range(begin, begin + h * (w + 1)):
            if expected[at] == v.eol:  # given, as our sampler gives it
                continue
            body = json.dumps(asked | {"prompt": expected[:at]}).encode()
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as reply:
                assert json.load(reply)["choices"][0]["token_ids"] == [expected[at]], at
    finally:
        server.end()


def test_what_makes_no_emu3_is_said(tmp_path):
    write_model(tmp_path / "model", 64)
    with pytest.raises(WholeModelError, match=r"builtin has 4608 codes, the model 64; set tokenize\.model to the one"):
        write_whole(str(tmp_path / "model"), "builtin", AREA_PX, "", str(tmp_path / "out"))
    sizes = {"base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [2]}
    Emu3VQVAE(Emu3VQVAEConfig(**sizes, hidden_size=64, codebook_size=64)).save_pretrained(tmp_path / "vision")
    with pytest.raises(WholeModelError, match="a code is 4 pixels wide, and Emu3Processor takes it for 8"):
        write_whole(str(tmp_path / "model"), str(tmp_path / "vision"), AREA_PX, "", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_text_of_a_caption_is_as_before(ours, whole):
    """A token for each code changes no word's ids."""
    before, after = (SequenceLayout(load_text_tokenizer(each), Vocabulary.load(ours)) for each in (ours, whole))
    for text in [*TEXTS, "<image> <|visual token 000001|> <|image end|>", "64*64 ünï"]:
        assert before.caption_ids(text).tolist() == after.caption_ids(text).tolist(), text
