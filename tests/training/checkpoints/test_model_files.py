"""A model's weights in as many files as they need, as transformers writes and reads them."""

import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.storage.checksums import checksum
from tokenmill.training.checkpoints.model_files import write_weights

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def small_model(**config):
    return Emu3ForCausalLM(Emu3TextConfig(**SIZES, **IDS, num_key_value_heads=1, **config))


def test_a_small_model_is_the_file_that_transformers_writes(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path / "theirs")
    known = write_weights(model, str(tmp_path / "ours"), 0)
    name = "model.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert known == {name: checksum(str(tmp_path / "theirs" / name))}


def test_a_large_one_stands_in_several_files(tmp_path):
    model = small_model(tie_word_embeddings=True)
    known = write_weights(model, str(tmp_path), 0, file_bytes=20_000)
    assert sorted(known) == sorted(path.name for path in tmp_path.iterdir())
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(sizes) == 4 and max(sizes) < 24_000
    model.config.save_pretrained(tmp_path)
    read = Emu3ForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name


def test_only_the_first_worker_writes(tmp_path):
    assert write_weights(small_model(), str(tmp_path / "ours"), 1) == {}
    assert not (tmp_path / "ours").exists()
