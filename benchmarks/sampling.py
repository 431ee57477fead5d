"""Drawing in tokens/s beside transformers' `generate` with equal logits processors, on the demo's model, in one run.

    generate  Emu3ForCausalLM.generate: what may follow by a mask of each step, top-k, guidance by its own processor
    Sampler   training/sampling: the same pictures' tokens, top-k and guidance

Random weights of the demo's sizes; 8x8 codes, so 73 tokens from the first code to EOF. The two take turns, so that
other work on the machine slows both; medians, and the ratio counts. It must be 3 for 8 sequences and more; a single
one waits for weights to be read, in both. With `--compiled` on a GPU the Sampler's steps are graphs.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from transformers import Emu3ForCausalLM, LogitsProcessor, LogitsProcessorList

from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.storage import cpu
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.model.model import build_model
from tokenmill.training.sampling import Choice, Grid, Sampler

CODEBOOK = 4608  # of the built-in tokenizer
WORDS = ("red", "green", "blue", "circle", "square", "left", "right", "above", "of", "a", "the", "two")
GOAL = 3.0


class Structure(LogitsProcessor):
    """Codes where the grid has them, EOL and EOF where they belong; every sequence is at the same place of its own."""

    def __init__(self, vocabulary: Vocabulary, grid: Grid, start: int, device: torch.device):
        self._start, self._grid = start, grid
        self._masks = {}
        for kind in ("codes", "eol", "eof"):
            mask = torch.full((vocabulary.size,), float("-inf"), device=device)
            if kind == "codes":
                mask[vocabulary.vision_offset :] = 0
            else:
                mask[getattr(vocabulary, kind)] = 0
            self._masks[kind] = mask

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        at, width = input_ids.shape[1] - self._start, self._grid.w + 1
        kind = "eof" if at == self._grid.h * width else "eol" if at % width == self._grid.w else "codes"
        return scores + self._masks[kind]


def padded(prefixes: list[np.ndarray], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prefixes))
    ids = torch.full((len(prefixes), longest), pad)
    for row, prefix in zip(ids, prefixes, strict=True):
        row[longest - len(prefix) :] = torch.from_numpy(prefix)
    lengths = torch.tensor([len(prefix) for prefix in prefixes])
    return ids.to(device), (torch.arange(longest) >= (longest - lengths)[:, None]).long().to(device)


def generate(lm: Emu3ForCausalLM, layout: SequenceLayout, prompts: list[str], grid: Grid, choice: Choice) -> np.ndarray:
    """Ids after the prefixes, (B, h * (w + 1) + 1)."""
    v = layout.vocabulary
    ids, mask = padded([layout.prefix(layout.caption_ids(text), grid.h, grid.w) for text in prompts], v.pad, lm.device)
    how = {}
    if choice.guidance != 1:
        free = [layout.prefix(layout.caption_ids(None), grid.h, grid.w)] * len(prompts)
        free_ids, free_mask = padded(free, v.pad, lm.device)
        how = {
            "guidance_scale": choice.guidance,
            "negative_prompt_ids": free_ids,
            "negative_prompt_attention_mask": free_mask,
        }
    made = lm.generate(
        input_ids=ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList([Structure(v, grid, ids.shape[1], lm.device)]),
        max_new_tokens=grid.h * (grid.w + 1) + 1,
        do_sample=True,
        top_k=choice.top_k,
        temperature=choice.temperature,
        **how,
    )
    return made[:, ids.shape[1] :].cpu().numpy()


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def beside(
    lm: Emu3ForCausalLM,
    layout: SequenceLayout,
    sampler: Sampler,
    prompts: list[str],
    grid: Grid,
    choice: Choice,
    rounds: int,
) -> tuple[dict[str, float], float]:
    """Tokens per second of both, in turns, and how many times `generate` ours is."""
    calls = {
        "generate": lambda: generate(lm, layout, prompts, grid, choice),
        "Sampler": lambda: sampler.draw(prompts, grid, choice),
    }
    for call in calls.values():
        call()
    spent = {name: [seconds(call)] for name, call in calls.items()}
    for _ in range(rounds - 1):
        for name, call in calls.items():
            spent[name].append(seconds(call))
    num_tokens = len(prompts) * (grid.h * (grid.w + 1) + 1)
    rates = {name: num_tokens / median(times) for name, times in spent.items()}
    return rates, median(a / b for a, b in zip(spent["generate"], spent["Sampler"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top-k", type=int, default=20, help="the demo's; Emu3's is 2048")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(cpu.describe() if options.device == "cpu" else torch.cuda.get_device_name())
    tokenizer = train_text_tokenizer([" ".join(WORDS)], 400)
    layout = SequenceLayout(tokenizer, Vocabulary.of(tokenizer, CODEBOOK))
    sizes = load(CONFIG).train.what.model
    lm = Emu3ForCausalLM(build_model(sizes, layout.vocabulary, 512, 0).config).eval().to(options.device)
    if lm.device.type == "cuda":
        lm = lm.bfloat16()
    lm.set_attn_implementation("sdpa")
    sampler = Sampler(lm, layout, is_compiled=options.compiled)
    grid, rng, missed = Grid(8, 8), np.random.default_rng(0), False
    for count in (1, 8, 32):
        prompts = [" ".join(rng.choice(WORDS, 8)) for _ in range(count)]
        for guidance in (1.0, 3.0):
            choice = Choice(top_k=options.top_k, guidance=guidance)
            rates, ratio = beside(lm, layout, sampler, prompts, grid, choice, options.rounds)
            missed |= count >= 8 and ratio < GOAL
            shown = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
            print(f"{count:2} sequences, guidance {guidance:g}: tokens/s: {shown}; {ratio:.2f} times", flush=True)
    print(f"{'MISSED' if missed else 'met'}: at least {GOAL:g} times for 8 sequences and more")


if __name__ == "__main__":
    main()
