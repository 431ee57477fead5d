"""Drawing: equal to the slow way without a cache, alike in any batch, and obedient after training."""

import hashlib

import numpy as np
import pytest
import torch

from tokenmill.tokenizer.dialogue import Turn, build_dialogue
from tokenmill.tokenizer.sequence import meta_text
from tokenmill.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from tokenmill.training.run.worker import train_worker
from tokenmill.training.sampling import Choice, Grid, Sampler, batches, words
from tokenmill.training.sampling.choose import noise
from tokenmill.training.sampling.sampler import DoesNotFitError

PROMPTS = ["a", "a red circle left of a blue square", "12 stars"]
GRIDS = [Grid(3, 4), Grid(2, 3, 2, 8.0), Grid(1, 1)]
FEW = Choice(top_k=20, temperature=0.9)


def slowly(lm, layout, prompt, seed, grid, choice):
    """One prompt, the whole sequence again for every code."""
    h, w = grid.h, grid.w
    v = layout.vocabulary
    prefixes = [layout.prefix(layout.caption_ids(text), h, w, grid.t, grid.fps).tolist() for text in (prompt, None)]
    numbers = noise(seed, prompt, grid.num_codes)
    taken, codes = [], []
    for n in range(grid.num_codes):
        log_p = []
        for prefix in prefixes:
            logits = lm(torch.tensor([prefix + taken])).logits[0, -1, v.vision_offset :]
            log_p.append(torch.log_softmax(logits, -1))
        mixed = log_p[1] + choice.guidance * (log_p[0] - log_p[1])
        codes.append(int(choice.pick(mixed[None], numbers[n : n + 1])))
        taken.append(codes[-1] + v.vision_offset)
        taken += [v.eol] if (n + 1) % w == 0 else []
        taken += [v.eof] if (n + 1) % (h * w) == 0 else []
    return np.array(codes).reshape(grid.shape)


def write_slowly(lm, layout, prefix, max_tokens, may_be_empty=False):
    """The likeliest words after a prefix, the whole sequence again for every token."""
    v, ids = layout.vocabulary, prefix.tolist()
    for n in range(max_tokens):
        logits = lm(torch.tensor([ids])).logits[0, -1, : v.vision_offset]
        logits[[token for token in v.special_ids if token != v.eos or (n == 0 and not may_be_empty)]] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == v.eos:
            break
    return layout.tokenizer.decode([token for token in ids[len(prefix) :] if token != v.eos])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_equals_the_slow_way_without_cache_whatever_the_batch(parts, grid, guidance):
    lm, layout = parts
    choice = Choice(20, temperature=0.9, guidance=guidance)
    drawn = Sampler(lm, layout).draw(PROMPTS, grid, choice, seeds=[5, 6, 7])
    for codes, prompt, seed in zip(drawn, PROMPTS, (5, 6, 7), strict=True):
        assert codes.dtype == np.int64
        with torch.inference_mode():
            np.testing.assert_array_equal(codes, slowly(lm, layout, prompt, seed, grid, choice))


def test_grids_of_several_sizes_in_one_call_and_in_small_batches(parts):
    """In their order, as each alone; all of it reads as what was asked for."""
    lm, layout = parts
    prompts, grids = [*PROMPTS, "a"], [Grid(2, 5), Grid(5, 2), Grid(2, 5), Grid(2, 2, 2, 6.0)]
    drawn = Sampler(lm, layout).draw(prompts, grids, FEW, seeds=range(4))
    for most in (1, 2):
        for codes, again in zip(drawn, Sampler(lm, layout, most).draw(prompts, grids, FEW, range(4)), strict=True):
            np.testing.assert_array_equal(codes, again)
    for codes, prompt, grid in zip(drawn, prompts, grids, strict=True):
        read = layout.parse(layout.build(codes, layout.caption_ids(prompt), grid.fps).ids)
        assert read.codes.shape == grid.shape and read.fps == grid.fps


def test_batches_fit_the_memory(parts, monkeypatch):
    sampler = Sampler(*parts)
    row_bytes = sampler._decoder.column_bytes * 32
    assert row_bytes == 2 * 2 * 2 * 8 * 4 * 32
    for free_bytes, expected in ((0, 1), (10 * row_bytes, 3), (1 << 40, 64)):
        monkeypatch.setattr(batches, "_free_bytes", lambda device, free=free_bytes: free)
        assert batches.num_at_once(sampler._decoder, 20, 2, None) == expected
    assert batches.num_at_once(sampler._decoder, 20, 2, 7) == 7


def test_progress_is_told(parts):
    told = []
    sampler = Sampler(*parts)
    sampler.draw(PROMPTS, Grid(5, 5), FEW, told=lambda *count: told.append(count))
    assert told[0] == (0, 75) and told[1] == (48, 75) and told[-1] == (75, 75)
    told.clear()
    sampler.write(PROMPTS, max_tokens=20, told=lambda *count: told.append(count))
    assert told[0] == (0, 60) and told[-1][0] == told[-1][1]


def test_seed_and_prompt_decide_and_the_batch_does_not(parts):
    sampler, grid = Sampler(*parts), Grid(3, 3)
    together = sampler.draw([*PROMPTS, PROMPTS[0]], grid, seeds=[1, 1, 1, 2])
    for i, (prompt, seed) in enumerate([(PROMPTS[2], 1), (PROMPTS[0], 1)]):
        np.testing.assert_array_equal(sampler.draw([prompt], grid, seeds=[seed])[0], together[2 - 2 * i])
    assert (together[0] != together[3]).any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_clip_goes_on_as_it_did(parts, guidance):
    """What is given stays; the rest is what the same seed drew, for the text before it says the whole duration."""
    lm, layout = parts
    choice, grid = Choice(20, guidance=guidance), Grid(2, 3, 4, 8.0)
    whole = Sampler(lm, layout).draw(PROMPTS, grid, choice, seeds=[1, 2, 3])
    for num_given in (1, 3):
        given = [clip[:num_given].astype(np.uint16) for clip in whole]
        again = Sampler(lm, layout).go_on(given, PROMPTS, 4 - num_given, 8.0, choice, seeds=[1, 2, 3])
        np.testing.assert_array_equal(again, whole)
    other = Sampler(lm, layout).go_on(given, PROMPTS, 1, 8.0, choice, seeds=[4, 5, 6])
    assert [(a[:3] == b[:3]).all() for a, b in zip(other, whole, strict=True)] == [True] * 3
    assert any((a[3] != b[3]).any() for a, b in zip(other, whole, strict=True))
    assert meta_text(2, 3, 4, 8.0) in layout.tokenizer.decode(layout.prefix(np.empty(0, int), 2, 3, 4, 8.0).tolist())


def test_the_likeliest(parts):
    sampler, grid = Sampler(*parts), Grid(3, 3)
    greedy = [sampler.draw(PROMPTS, grid, Choice(1), seeds=[seed] * 3) for seed in (0, 9)]
    np.testing.assert_array_equal(*greedy)
    for choice in (Choice(temperature=1e-4), Choice(temperature=0), Choice(top_p=1e-6)):
        np.testing.assert_array_equal(sampler.draw(PROMPTS, grid, choice, seeds=[3] * 3), greedy[0])


def test_wrong_arguments(parts):
    sampler, grid = Sampler(*parts), Grid(2, 2)
    with pytest.raises(ValueError, match="a seed each"):
        sampler.draw(PROMPTS, grid, seeds=[1])
    with pytest.raises(ValueError, match="at least one prompt"):
        sampler.draw([], grid)
    with pytest.raises(ValueError, match="a grid each"):
        sampler.draw(PROMPTS, [grid])
    with pytest.raises(ValueError, match="t and fps"):
        Grid(2, 2, 4)
    with pytest.raises(ValueError, match=r"clips of codes \(t, h, w\)"):
        sampler.go_on([np.zeros((2, 2), int)], ["a"], 1, 8.0)
    with pytest.raises(ValueError, match="codebook"):
        sampler.go_on([np.full((1, 2, 2), 50)], ["a"], 1, 8.0)
    with pytest.raises(DoesNotFitError, match="context of 128"):
        sampler.draw(PROMPTS, Grid(16, 16))


def test_words_equal_the_slow_way(parts):
    """Captions of pictures and clips, answers, and texts that go on, in batches of different lengths."""
    lm, layout = parts
    rng, sampler, none = np.random.default_rng(0), Sampler(lm, layout), layout.caption_ids(None)
    pictures = [rng.integers(0, 50, shape) for shape in ((2, 3), (4, 2), (2, 2))]
    clips = list(rng.integers(0, 50, (2, 2, 2, 3)))
    with torch.inference_mode():

        def expected(prefixes, **how):
            return [write_slowly(lm, layout, prefix, 6, **how) for prefix in prefixes]

        asked = [layout.build(codes, none, is_caption_last=True).ids[:-1] for codes in pictures]
        assert sampler.caption(pictures, max_tokens=6) == expected(asked)
        asked = [layout.build(codes, none, 8.0, is_caption_last=True).ids[:-1] for codes in clips]
        assert sampler.caption(clips, 8.0, max_tokens=6) == expected(asked)
        media = [layout.build(clips[0], none, 8.0), None]
        asked = [build_dialogue(layout, [Turn("what?")], medium).ids for medium in media]
        assert sampler.answer(["what?"] * 2, [clips[0], None], 8.0, max_tokens=6) == expected(asked)
        beginnings = ["a red", "12", ""]
        asked = [np.array([layout.vocabulary.bos, *layout.caption_ids(text)]) for text in beginnings]
        assert sampler.write(beginnings, max_tokens=6) == expected(asked, may_be_empty=True)


def test_words_are_never_structure(parts):
    lm, layout = parts
    sampler, hot = Sampler(lm, layout), Choice(None, temperature=50.0)
    texts = sampler.write(["a"] * 20, hot, 30, seeds=range(20))
    assert len(set(texts)) == 20 and texts == sampler.write(["a"] * 20, hot, 30, seeds=range(20))
    known = [layout.tokenizer.decode([token]) for token in layout.vocabulary.special_ids]
    assert not [text for text in texts for special in known if special in text]


@pytest.mark.parametrize("looks_every", [1, 16])
def test_words_end_where_all_have_ended(make_lm, looks_every, monkeypatch):
    """A model that sees nothing and always says EOS, or SOV, which is no word."""
    lm, layout = make_lm()
    v = layout.vocabulary
    with torch.no_grad():
        lm.model.embed_tokens.weight.fill_(1)
        lm.model.norm.weight.fill_(1)
        lm.lm_head.weight.zero_()
        lm.lm_head.weight[v.eos], lm.lm_head.weight[v.sov] = 1, 2
        for layer in lm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    monkeypatch.setattr(words, "_LOOKS_EVERY", {"cpu": looks_every})
    told = []
    assert Sampler(lm, layout).caption([np.zeros((2, 2), int)], max_tokens=4) != [""]
    assert Sampler(lm, layout).write(PROMPTS, max_tokens=40, told=lambda *count: told.append(count)) == [""] * 3
    assert told[-1] == (3 * looks_every, 3 * looks_every)


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
    captions, grid, choice = [row["caption"] for row in rows], Grid(4, 3), Choice(top_k=8, guidance=1.5)
    codes = np.stack(sampler.draw(captions, grid, choice))
    truth = np.array([row["codes"] for row in rows]).reshape(8, 4, 3)
    assert (codes == truth).mean() > 0.95
    assert sampler.caption(truth) == captions
    again = np.stack(Sampler.load(f"{job.run_uri}/model", "cpu").draw(captions, grid, choice))
    assert hashlib.sha256(codes).digest() == hashlib.sha256(again).digest()


def test_no_model_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="finish the training"):
        Sampler.load(str(tmp_path))
