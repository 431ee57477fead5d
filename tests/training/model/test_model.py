"""Packing changes no loss and no gradient; the block mask of the GPU path says the same as the rows of the CPU path."""

import json
import resource

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention.flex_attention import create_block_mask
from transformers import Emu3ForCausalLM

from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import LossWeights, ModelConfig
from tokenmill.training.model import attention
from tokenmill.training.model.attention import DocumentRows, attend_documents, attend_mask
from tokenmill.training.model.model import PackLoss, build_model
from tokenmill.training.pack import PADDING

WEIGHTS = LossWeights(text=1.0, vision=0.5)
VOCABULARY = Vocabulary(pad=0, eol=1, eof=2, bos=3, eos=4, sot=5, sov=6, eov=7, vision_offset=40, codebook_size=60)


def make(dropout=0.0, **changes):
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 48}
    return build_model(ModelConfig(**(sizes | {"dropout": dropout} | changes)), VOCABULARY, 64, seed=1)


def packed(lengths, num_tokens, seed=0):
    """ids, kinds, positions, documents, each (1, num_tokens), of random documents and padding."""
    rng = np.random.default_rng(seed)
    pad = num_tokens - sum(lengths)
    positions = np.concatenate([*(np.arange(n) for n in lengths), np.zeros(pad)])
    documents = np.concatenate([*(np.full(n, i) for i, n in enumerate(lengths)), np.full(pad, PADDING)])
    ids = np.where(documents < 0, 0, rng.integers(8, 100, num_tokens))
    kinds = rng.integers(0, 4, num_tokens)
    arrays = (ids.astype(np.int32), kinds.astype(np.uint8), positions.astype(np.int32), documents.astype(np.int32))
    return [torch.from_numpy(array)[None] for array in arrays]


@pytest.mark.parametrize("plain_max_tokens", [512, 8])
def test_a_pack_has_the_loss_and_gradient_of_its_documents_one_by_one(plain_max_tokens, monkeypatch):
    """Against transformers' own attention; both CPU paths."""
    monkeypatch.setattr(attention, "_PLAIN_MAX_TOKENS", plain_max_tokens)
    lengths = [7, 1, 19, 12, 3]
    batch = packed(lengths, 50)
    model = PackLoss(make(), WEIGHTS)
    loss, sums = model(*batch)
    loss.backward()

    alone = PackLoss(make(), WEIGHTS)
    alone.lm.set_attn_implementation("sdpa")
    total, start = torch.zeros(()), 0
    all_sums = torch.zeros_like(sums)
    for length in lengths:
        ids, kinds, positions, _ = (part[:, start : start + length] for part in batch)
        hidden = alone.lm.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        nll = torch.nn.functional.cross_entropy(alone.lm.lm_head(hidden)[0, :-1], ids[0, 1:].long(), reduction="none")
        weights = torch.where(kinds[0, 1:] == 0, 1.0, 0.5)
        total = total + (nll * weights).sum()
        all_sums.index_add_(1, kinds[0, 1:].long(), torch.stack([nll.detach(), torch.ones_like(nll)]))
        start += length
    total.backward()
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums, all_sums, rtol=1e-5, atol=1e-5)
    for (name, one), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_padding_changes_nothing():
    model = PackLoss(make(), WEIGHTS)
    short = model(*packed([7, 5], 12))
    fillers = (0, 0, 0, PADDING)
    padded = [
        torch.nn.functional.pad(part, (0, 9), value=filler)
        for part, filler in zip(packed([7, 5], 12), fillers, strict=True)
    ]
    torch.testing.assert_close(model(*padded)[0], short[0], rtol=1e-6, atol=1e-6)


def test_a_pack_of_padding_alone_has_zero_loss_and_zero_gradient():
    model = PackLoss(make(), WEIGHTS)
    loss, sums = model(*packed([], 3))
    loss.backward()
    assert loss == 0 and (sums == 0).all()
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("rows", "num_tokens"),
    [([[5, 300, 40]], 400), ([[128, 128, 128]], 384), ([[130], [1, 2, 3]], 131), ([[600]], 640), ([[]], 130)],
)
def test_block_mask_equals_the_plain_rule(rows, num_tokens):
    documents = torch.cat([packed(lengths, num_tokens)[3] for lengths in rows])
    mask = attend_mask(documents, is_flex=True)

    def rule(b, h, q, kv):
        return (q >= kv) & (documents[b, q] == documents[b, kv])

    plain = create_block_mask(rule, len(rows), None, num_tokens, num_tokens, device="cpu")
    torch.testing.assert_close(mask.to_dense(), plain.to_dense())
    num_full = mask.full_kv_num_blocks
    assert (num_full >= plain.full_kv_num_blocks).all(), "a full block needs no rule, so it is faster"
    for b, _, block in torch.nonzero(num_full).tolist():
        q = torch.arange(128 * block, min(128 * block + 128, num_tokens))[:, None]
        for kv_block in mask.full_kv_indices[b, 0, block, : num_full[b, 0, block]].tolist():
            assert rule(b, 0, q, torch.arange(128 * kv_block, 128 * kv_block + 128)).all()


def test_rows_and_block_mask_attend_alike():
    documents = torch.cat([packed([5, 150, 40], 256)[3], packed([256], 256)[3]])
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 256, 16), torch.randn(2, 2, 256, 16), torch.randn(2, 2, 256, 16)
    module = torch.nn.Identity()
    rows = attend_mask(documents)
    assert isinstance(rows, DocumentRows)
    by_rows = attend_documents(module, query, key, value, None, 0.25, rows)[0]
    by_blocks = attend_documents(module, query, key, value, None, 0.25, attend_mask(documents, is_flex=True))[0]
    real = documents >= 0
    torch.testing.assert_close(by_rows[real], by_blocks[real], rtol=1e-5, atol=1e-5)


def test_a_page_among_small_pictures_leaves_few_rows_empty(monkeypatch):
    """Documents laid out by length attend, and learn, as in rows of one length."""
    documents = torch.cat([packed([600, *[20] * 30, 1], 1300)[3], packed([7] * 100, 1300)[3]])
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, 1300, 16, requires_grad=True) for heads in (4, 2, 2)]
    found = []
    for max_empty in (6, 1_000):
        monkeypatch.setattr(attention, "_MAX_EMPTY", max_empty)
        rows = attend_mask(documents)
        out = attend_documents(torch.nn.Identity(), *inputs, None, 0.25, rows)[0]
        found.append([out.detach(), *torch.autograd.grad((out * torch.arange(1300.0)[:, None, None]).sum(), inputs)])
        if max_empty == 6:
            assert isinstance(rows, tuple) and sorted(part.longest for part in rows) == [1, 7, 20, 600]
            tokens = torch.cat([part.tokens for part in rows])
            assert sorted(tokens.tolist()) == torch.nonzero(documents.flatten() >= 0).flatten().tolist()
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-3)


def test_dropout_falls_in_training_only():
    model = PackLoss(make(dropout=0.3), WEIGHTS)
    batch = packed([20, 20], 40)
    model.eval()
    assert model(*batch)[0] == model(*batch)[0]
    model.train()
    assert model(*batch)[0] != model(*batch)[0]
    torch.manual_seed(3)
    first = model(*batch)[0]
    torch.manual_seed(3)
    assert model(*batch)[0] == first


def test_seeded_weights_and_export(tmp_path):
    one, two = make(), make()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    one.save_pretrained(tmp_path)
    again = Emu3ForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation != attention.NAME, "others load it without this project"
    assert again.config.rope_parameters["rope_theta"] == 1e6


def test_continues_from_a_model(tmp_path):
    one = make()
    one.save_pretrained(tmp_path)
    again = build_model(ModelConfig(init_from=str(tmp_path), dropout=0.2), VOCABULARY, 64, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert again.config.attention_dropout == 0.2 and again.config._attn_implementation == attention.NAME
    larger = VOCABULARY.model_copy(update={"codebook_size": 61})
    with pytest.raises(ValueError, match="100 ids"):
        build_model(ModelConfig(init_from=str(tmp_path)), larger, 64, seed=0)


@pytest.mark.parametrize("change", ["lacks", "has more", "other size"])
def test_a_model_to_continue_from_that_is_not_whole_is_one_error_with_the_tensors(tmp_path, change):
    make().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    given = tensors.pop(name)
    if change == "has more":
        tensors |= {name: given, "model.layers.9.x": given.clone()}
    if change == "other size":
        tensors[name] = torch.cat([given, given])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainingError) as raised:
        build_model(ModelConfig(init_from=str(tmp_path)), VOCABULARY, 64, seed=0)
    said = str(raised.value)
    assert str(tmp_path) in said and "\n" not in said
    what = {"lacks": "no", "has more": "unknown", "other size": "other sizes of"}[change]
    assert f"{what} weights {'model.layers.9.x' if change == 'has more' else name}" in said


@pytest.mark.parametrize("number", [10**7, 10**9, 2**40])
@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_a_config_of_absurd_sizes_is_refused_before_memory_is_taken(tmp_path, key, number):
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: number}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TrainingError, match=r"config\.json"):
        build_model(ModelConfig(init_from=str(tmp_path)), VOCABULARY, 64, seed=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"
