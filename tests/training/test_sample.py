"""Drawing: equal to the slow way without a cache, alike in any batch, and obedient after training."""

import hashlib

import numpy as np
import pytest
import torch

from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from tokenmill.training.model.model import build_model
from tokenmill.training.run.worker import train_worker
from tokenmill.training.sample import Sampler, _noise, _pick

PROMPTS = ["a", "a red circle left of a blue square", "12 stars"]


@pytest.fixture(scope="module")
def parts():
    tokenizer = train_text_tokenizer(PROMPTS, 300)
    layout = SequenceLayout(tokenizer, Vocabulary.of(tokenizer, 50))
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48)
    lm = build_model(config, layout.vocabulary, 128, seed=0)
    lm.set_attn_implementation("sdpa")
    with torch.no_grad():  # random weights hardly depend on what was said; make them
        for parameter in lm.parameters():
            parameter.mul_(4.0 if parameter.ndim == 2 else 1.0)
    return lm.eval(), layout


def slowly(lm, layout, prompt, seed, grid, guidance, top_k, temperature):
    """One prompt, the whole sequence again for every code."""
    h, w, t, _ = grid
    v = layout.vocabulary
    prefixes = [layout.prefix(layout.caption_ids(text), *grid).tolist() for text in (prompt, None)]
    noise = _noise(seed, prompt, (t or 1) * h * w)
    taken, codes = [], []
    for n in range((t or 1) * h * w):
        log_p = []
        for prefix in prefixes:
            logits = lm(torch.tensor([prefix + taken])).logits[0, -1, v.vision_offset :]
            log_p.append(torch.log_softmax(logits, -1))
        mixed = log_p[1] + guidance * (log_p[0] - log_p[1])
        codes.append(int(_pick(mixed[None] / temperature, top_k, noise[n : n + 1])))
        taken.append(codes[-1] + v.vision_offset)
        taken += [v.eol] if (n + 1) % w == 0 else []
        taken += [v.eof] if (n + 1) % (h * w) == 0 else []
    return np.array(codes).reshape((t, h, w) if t else (h, w))


@pytest.mark.parametrize("grid", [(3, 4, None, None), (2, 3, 2, 8.0), (1, 1, None, None)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_equals_the_slow_way_without_cache_whatever_the_batch(parts, grid, guidance):
    lm, layout = parts
    h, w, t, fps = grid
    drawn = Sampler(lm, layout).draw(
        PROMPTS, h, w, t, fps, top_k=20, temperature=0.9, guidance=guidance, seeds=[5, 6, 7]
    )
    assert drawn.dtype == np.int64
    for codes, prompt, seed in zip(drawn, PROMPTS, (5, 6, 7), strict=True):
        with torch.inference_mode():
            np.testing.assert_array_equal(codes, slowly(lm, layout, prompt, seed, grid, guidance, 20, 0.9))


def test_seed_and_prompt_decide_and_the_batch_does_not(parts):
    sampler = Sampler(*parts)
    together = sampler.draw([*PROMPTS, PROMPTS[0]], 3, 3, seeds=[1, 1, 1, 2])
    for i, (prompt, seed) in enumerate([(PROMPTS[2], 1), (PROMPTS[0], 1)]):
        np.testing.assert_array_equal(sampler.draw([prompt], 3, 3, seeds=[seed])[0], together[2 - 2 * i])
    assert (together[0] != together[3]).any()


def test_top_k_of_one_is_greedy(parts):
    sampler = Sampler(*parts)
    greedy = [sampler.draw(PROMPTS, 3, 3, top_k=1, seeds=[seed] * 3) for seed in (0, 9)]
    np.testing.assert_array_equal(*greedy)
    cold = sampler.draw(PROMPTS, 3, 3, temperature=1e-4, seeds=[3] * 3)
    np.testing.assert_array_equal(cold, greedy[0])


def test_pick_follows_the_distribution():
    scores = torch.log(torch.tensor([[0.1, 0.5, 0.3, 0.1]])).expand(20_000, -1)
    shares = torch.bincount(_pick(scores, 3, torch.rand(20_000)), minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.1 / 0.9, 0.5 / 0.9, 0.3 / 0.9, 0], abs=0.02) or shares.tolist() == (
        pytest.approx([0, 0.5 / 0.9, 0.3 / 0.9, 0.1 / 0.9], abs=0.02)
    )
    edges = _pick(scores[:2], 4, torch.tensor([0.0, 1.0]))
    assert edges[0] == 1 and edges[1] in (0, 3)


def test_wrong_arguments(parts):
    sampler = Sampler(*parts)
    with pytest.raises(ValueError, match="a seed each"):
        sampler.draw(PROMPTS, 2, 2, seeds=[1])
    with pytest.raises(ValueError, match="at least one prompt"):
        sampler.draw([], 2, 2)
    with pytest.raises(ValueError, match="top_k"):
        sampler.draw(PROMPTS, 2, 2, top_k=0)


def test_captions_equal_the_slow_way(parts):
    lm, layout = parts
    v = layout.vocabulary
    codes = np.random.default_rng(0).integers(0, 50, (3, 2, 3))
    expected = []
    for grid in codes:
        ids = layout.build(grid, layout.caption_ids(None), is_caption_last=True).ids[:-1].tolist()
        length = len(ids)
        for _ in range(6):
            logits = lm(torch.tensor([ids])).logits[0, -1, : v.vision_offset]
            logits[[token for token in v.special_ids if token != v.eos]] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == v.eos:
                break
        expected.append(layout.tokenizer.decode([token for token in ids[length:] if token != v.eos]))
    assert Sampler(lm, layout).complete_caption(codes, max_tokens=6) == expected


def test_a_trained_model_draws_what_it_is_told_and_says_what_it_sees(tmp_path, make_job, token_row, write_shard):
    """Eight captions, eight pictures; after a short training each caption gives its own picture and back."""
    rng = np.random.default_rng(0)
    rows = [token_row(2 * n, rng, caption=f"picture {n}", grid_t=1, grid_h=4, grid_w=3, kind="image") for n in range(8)]
    rows = [row | {"codes": rng.integers(0, 64, 12).tolist(), "fps": None} for row in rows]
    config = TrainConfig(
        model=ModelConfig(
            hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=128, dropout=0.0
        ),
        data=DataConfig(
            context_tokens=64, pack_tokens=256, text_vocab_size=280, understanding_share=0.4, null_caption_share=0.1
        ),
        optimizer=OptimizerConfig(steps=150, lr=5e-3, warmup_steps=10),
        dtype="float32",
    )  # fmt: skip
    job = make_job(config=config, shard_uris=[write_shard(tmp_path / "part.parquet", rows)])
    train_worker(job)
    sampler = Sampler.load(job.run_uri)
    codes = sampler.draw([row["caption"] for row in rows], 4, 3, top_k=8, guidance=1.5)
    truth = np.array([row["codes"] for row in rows]).reshape(8, 4, 3)
    assert (codes == truth).mean() > 0.95
    assert sampler.complete_caption(truth) == [row["caption"] for row in rows]
    assert (
        hashlib.sha256(codes).digest()
        == hashlib.sha256(
            Sampler.load(f"{job.run_uri}/model", "cpu").draw(
                [row["caption"] for row in rows], 4, 3, top_k=8, guidance=1.5
            )
        ).digest()
    )


def test_no_model_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="finish the training"):
        Sampler.load(str(tmp_path))
