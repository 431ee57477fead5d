"""Captions -> codes, and codes -> captions, from a trained model with a key-value cache.

The grid decides the structure, as in Emu3's code: after w codes comes EOL, after h rows EOF, and only codes are ever
drawn, from the vision slice of the head. Structural tokens ride along with the code before them instead of costing a
forward pass of their own. Classifier-free guidance runs the sequence without caption beside each prompt, in one batch.
Every prompt draws from its own seeded stream, so it gives the same picture whatever stands beside it in the batch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, Emu3ForCausalLM
from transformers.utils import logging

from tokenmill import storage
from tokenmill.storage.errors import DamagedError
from tokenmill.storage.failures import as_damaged
from tokenmill.storage.tensors import check_sizes
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import load_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.published import load_published, text_config

logging.disable_progress_bar()  # a model loads in a moment


class Sampler:
    """A trained model, ready to draw."""

    def __init__(self, lm: Emu3ForCausalLM, layout: SequenceLayout):
        self.lm = lm.eval()
        self.layout = layout

    @classmethod
    def load(cls, uri: str, device: str | torch.device | None = None) -> "Sampler":
        """The model of a training's folder, or of its `model` folder, on `device` (null: a GPU if there is one).

        bfloat16 on a GPU, float32 on a CPU. Raises FileNotFoundError where no finished training stands, DamagedError.
        """
        uri = storage.absolute(uri)
        inner = storage.join(uri, "model")
        uri = inner if storage.exists(storage.join(inner, "config.json")) else uri
        if not storage.exists(storage.join(uri, "vocabulary.json")):
            raise FileNotFoundError(f"{uri}: no trained model; finish the training first, then give its folder")
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with as_damaged(uri), storage.local_folder(uri) as folder:
            layout = SequenceLayout(load_text_tokenizer(folder), Vocabulary.load(folder))
            check_sizes(folder, Emu3ForCausalLM, text_config(str(folder)))
            lm, found = load_published(str(folder), dtype=dtype, attn_implementation="sdpa")
            if lacking := sorted(found["missing_keys"]):  # transformers would draw them at random
                raise DamagedError(uri, f"no weights {', '.join(lacking)}")
        return cls(lm.to(device), layout)

    @torch.inference_mode()
    def draw(
        self,
        prompts: Sequence[str],
        grid_h: int,
        grid_w: int,
        grid_t: int | None = None,
        fps: float | None = None,
        top_k: int = 2048,
        temperature: float = 1.0,
        guidance: float = 3.0,
        seeds: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Codes for each prompt: int64 (B, h, w), or (B, t, h, w) where `grid_t` and `fps` ask for video.

        `guidance` 1 is none; 0 ignores the prompt. `seeds`: one per prompt (null: all 0). Raises ValueError when
        `prompts` and `seeds` differ in length, or for numbers that leave nothing to draw from.
        """
        seeds = [0] * len(prompts) if seeds is None else seeds
        if not prompts or len(seeds) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts and {len(seeds)} seeds; give at least one prompt, and a seed each"
            )
        if top_k < 1 or temperature <= 0:
            raise ValueError(f"top_k {top_k} and temperature {temperature} must be positive")
        grid = (grid_h, grid_w, grid_t, fps)
        captions = [*prompts, *([None] * len(prompts) if guidance != 1 else [])]
        prefixes = [self.layout.prefix(self.layout.caption_ids(text), *grid) for text in captions]
        stream = _Stream(self.lm, prefixes, self.layout.vocabulary.pad)

        v = self.layout.vocabulary
        shape = (grid_t or 1, grid_h, grid_w)
        num_codes = int(np.prod(shape))
        noise_BN = torch.stack([_noise(seed, text, num_codes) for seed, text in zip(seeds, prompts, strict=True)])
        noise_BN = noise_BN.to(self.lm.device)
        head_VD = self.lm.lm_head.weight[v.vision_offset : v.vision_offset + v.codebook_size]
        codes_BN = torch.empty(len(prompts), num_codes, dtype=torch.int64, device=self.lm.device)
        hidden_RD = stream.prefill()
        for n in range(num_codes):
            log_p = torch.log_softmax(hidden_RD @ head_VD.T, dim=-1, dtype=torch.float32)
            if guidance != 1:
                conditional, free = log_p.chunk(2)
                log_p = free + guidance * (conditional - free)
            codes_BN[:, n] = _pick(log_p / temperature, top_k, noise_BN[:, n])
            if n + 1 == num_codes:
                break
            tail = [v.eol] if (n + 1) % grid_w == 0 else []
            tail += [v.eof] if (n + 1) % (grid_h * grid_w) == 0 else []
            ids_R = (codes_BN[:, n] + v.vision_offset).repeat(len(prefixes) // len(prompts))
            hidden_RD = stream.feed(torch.cat([ids_R[:, None], ids_R.new_tensor(tail).expand(len(ids_R), -1)], dim=1))
        codes = codes_BN.reshape(len(prompts), *shape)
        return (codes if grid_t is not None else codes[:, 0]).cpu().numpy()

    @torch.inference_mode()
    def complete_caption(self, codes: np.ndarray, fps: float | None = None, max_tokens: int = 64) -> list[str]:
        """The likeliest caption of each medium, greedily: codes (B, h, w), or (B, t, h, w) with `fps`."""
        v = self.layout.vocabulary
        nothing = self.layout.caption_ids(None)
        prefixes = [self.layout.build(item, nothing, fps, is_caption_last=True).ids[:-1] for item in codes]
        stream = _Stream(self.lm, prefixes, v.pad)
        forbidden = [token for token in v.special_ids if token != v.eos]
        is_done = torch.zeros(len(prefixes), dtype=torch.bool, device=self.lm.device)
        hidden_BD, taken = stream.prefill(), []
        for _ in range(max_tokens):
            logits = hidden_BD @ self.lm.lm_head.weight[: v.vision_offset].T
            logits[:, forbidden] = float("-inf")
            ids_B = torch.where(is_done, v.eos, logits.argmax(-1))
            is_done |= ids_B == v.eos
            taken.append(ids_B)
            if is_done.all():
                break
            hidden_BD = stream.feed(ids_B[:, None])
        rows = torch.stack(taken, dim=1).tolist()
        texts = [row[: row.index(v.eos)] if v.eos in row else row for row in rows]
        return [str(self.layout.tokenizer.decode(ids)) for ids in texts]


class _Stream:
    """Sequences of different lengths that grow together: padded on the left, positions counted from their own start."""

    def __init__(self, lm: Emu3ForCausalLM, prefixes: list[np.ndarray], pad: int):
        longest = max(len(prefix) for prefix in prefixes)
        ids = np.full((len(prefixes), longest), pad, np.int64)
        for row, prefix in zip(ids, prefixes, strict=True):
            row[longest - len(prefix) :] = prefix
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=lm.device)
        self._lm = lm
        self._ids = torch.from_numpy(ids).to(lm.device)
        self._next_R = lengths - longest  # position of the next column
        self._mask = torch.arange(longest, device=lm.device) >= (longest - lengths)[:, None]
        self._cache = DynamicCache(config=lm.config)

    def prefill(self) -> torch.Tensor:
        """The last hidden state of every prefix, (R, D)."""
        mask, self._mask = self._mask, self._mask[:, :0]
        return self._forward(self._ids, mask)

    def feed(self, ids_RK: torch.Tensor) -> torch.Tensor:
        """Append K ids to every sequence; the last hidden state, (R, D)."""
        return self._forward(ids_RK, torch.ones_like(ids_RK, dtype=torch.bool))

    def _forward(self, ids_RK: torch.Tensor, mask_RK: torch.Tensor) -> torch.Tensor:
        self._mask = torch.cat([self._mask, mask_RK], dim=1)
        positions = self._next_R[:, None] + torch.arange(ids_RK.shape[1], device=ids_RK.device)
        self._next_R = self._next_R + ids_RK.shape[1]
        return self._lm.model(
            input_ids=ids_RK,
            attention_mask=self._mask,
            position_ids=positions.clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[:, -1]


def _noise(seed: int, prompt: str, count: int) -> torch.Tensor:
    """float32 (count,) in [0, 1) of a stream of this seed and prompt alone."""
    digest = hashlib.blake2b(f"{seed}:{prompt}".encode(), digest_size=7).digest()
    return torch.rand(count, generator=torch.Generator().manual_seed(int.from_bytes(digest, "little")))


def _pick(scores_BK: torch.Tensor, top_k: int, noise_B: torch.Tensor) -> torch.Tensor:
    """One index per row, int64 (B,): the inverse of the cumulated soft-max of the `top_k` best, at `noise_B`."""
    best, indices = torch.topk(scores_BK, min(top_k, scores_BK.shape[1]), dim=1)
    cumulated = torch.softmax(best, dim=1).cumsum(1)
    chosen = (cumulated < (noise_B * cumulated[:, -1])[:, None]).sum(1, keepdim=True)
    return indices.gather(1, chosen.clamp(max=best.shape[1] - 1)).squeeze(1)
