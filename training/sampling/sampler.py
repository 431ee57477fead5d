"""What can be asked of a trained model: pictures, clips, the rest of a clip, captions, answers, texts.

Equal seeds give equal results for equal calls. Every sequence draws from its own seeded stream of random numbers, so
it is the same whatever stands beside it in the batch, up to the last bits of sums that another batch size rounds
otherwise. A clip of which only the first frames are given goes on, with the seed and caption that drew it, as it did.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from transformers import Emu3ForCausalLM

from tokenmill.storage.errors import UserError
from tokenmill.tokenizer.dialogue import Turn, build_dialogue
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.training.sampling.batches import Count, Told, groups, num_at_once, parts
from tokenmill.training.sampling.choose import Choice
from tokenmill.training.sampling.decoder import Decoder, Product
from tokenmill.training.sampling.media import NO_TEXT, Grid, Wanted, draw_codes, num_tokens
from tokenmill.training.sampling.words import write_ids
from tokenmill.training.trained import load_trained

AS_EMU3 = Choice()
LIKELIEST = Choice(temperature=0)


class DoesNotFitError(UserError, ValueError):
    """A sequence is longer than the model's context."""


class Sampler:
    """A trained model, ready to draw and to write. `most`: sequences at once (null: what fits the free memory).

    `is_compiled`: steps as graphs, on a GPU; the first ones take a minute.
    """

    def __init__(self, lm: Emu3ForCausalLM, layout: SequenceLayout, most: int | None = None, is_compiled: bool = False):
        self.lm = lm.eval()
        self.layout = layout
        self._most, self._is_compiled = most, is_compiled
        self._heads: dict[tuple[int, int], Product] = {}

    @classmethod
    def load(
        cls,
        uri: str,
        device: str | torch.device | None = None,
        most: int | None = None,
        is_compiled: bool = False,
    ) -> "Sampler":
        """The model of a training's folder, as `load_trained` reads it and with what that raises."""
        return cls(*load_trained(uri, device), most, is_compiled)

    @cached_property
    @torch.inference_mode(False)  # the model's own weights become views of the decoder's
    def _decoder(self) -> Decoder:
        return Decoder(self.lm, self._is_compiled and self.lm.device.type == "cuda")

    def draw(
        self,
        prompts: Sequence[str],
        grids: Grid | Sequence[Grid],
        choice: Choice = AS_EMU3,
        seeds: Sequence[int] | None = None,
        told: Told | None = None,
    ) -> list[np.ndarray]:
        """Codes for each prompt, int64, (h, w), or (t, h, w) of a clip. `grids`: one for all, or one each; `seeds`: one
        each (null: all 0).

        Raises ValueError where these differ in number, DoesNotFitError.
        """
        grids = [grids] * len(prompts) if isinstance(grids, Grid) else grids
        seeds = _seeds(prompts, seeds)
        if len(grids) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(grids)} grids; give one for all, or a grid each")
        wanted = [Wanted(*each) for each in zip(prompts, grids, seeds, strict=True)]
        return self._draw(wanted, choice, told)

    def go_on(
        self,
        clips: Sequence[np.ndarray],
        captions: Sequence[str],
        num_more: int,
        fps: float,
        choice: Choice = AS_EMU3,
        seeds: Sequence[int] | None = None,
        told: Told | None = None,
    ) -> list[np.ndarray]:
        """Each clip, codes (t0, h, w) of frames at `fps`, with `num_more` latent frames behind: int64 (t, h, w).

        Raises ValueError as `draw`, and for codes outside the codebook; DoesNotFitError.
        """
        if len(captions) != len(clips) or any(clip.ndim != 3 or not clip.size for clip in clips) or num_more < 1:
            raise ValueError("give clips of codes (t, h, w), a caption each ('' for none), and a frame more at least")
        wanted = [
            Wanted(caption, Grid(clip.shape[1], clip.shape[2], len(clip) + num_more, fps), seed, clip.astype(np.int64))
            for clip, caption, seed in zip(clips, captions, _seeds(clips, seeds), strict=True)
        ]
        return self._draw(wanted, choice, told)

    def caption(
        self,
        media: Sequence[np.ndarray],
        fps: float | None = None,
        choice: Choice = LIKELIEST,
        max_tokens: int = 64,
        seeds: Sequence[int] | None = None,
        told: Told | None = None,
    ) -> list[str]:
        """What is seen in each medium, a word at least: codes (h, w), or (t, h, w) with `fps`.

        Raises ValueError, DoesNotFitError.
        """
        prefixes = [self.layout.build(codes, NO_TEXT, fps, is_caption_last=True).ids[:-1] for codes in media]
        return self._write(prefixes, ["caption"] * len(media), choice, max_tokens, seeds, told)

    def answer(
        self,
        questions: Sequence[str],
        media: Sequence[np.ndarray | None],
        fps: float | None = None,
        choice: Choice = LIKELIEST,
        max_tokens: int = 64,
        seeds: Sequence[int] | None = None,
        told: Told | None = None,
    ) -> list[str]:
        """The answer to each question about its medium, codes as in `caption`, or about nothing seen (None)."""
        prefixes = []
        for question, codes in zip(questions, media, strict=True):
            medium = None if codes is None else self.layout.build(codes, NO_TEXT, fps)
            prefixes.append(build_dialogue(self.layout, [Turn(question)], medium).ids)
        return self._write(prefixes, questions, choice, max_tokens, seeds, told)

    def write(
        self,
        beginnings: Sequence[str],
        choice: Choice = LIKELIEST,
        max_tokens: int = 64,
        seeds: Sequence[int] | None = None,
        told: Told | None = None,
    ) -> list[str]:
        """What follows each beginning of a text document; '' begins with the first word."""
        prefixes = [self.layout.build_text(self.layout.caption_ids(text), True, False).ids for text in beginnings]
        return self._write(prefixes, beginnings, choice, max_tokens, seeds, told, may_be_empty=True)

    @torch.inference_mode()
    def _draw(self, wanted: list[Wanted], choice: Choice, told: Told | None) -> list[np.ndarray]:
        lengths = [num_tokens(self.layout, each) for each in wanted]
        self._check_fits(lengths)
        v = self.layout.vocabulary
        head = self._head(v.vision_offset, v.size)
        count = Count(told, sum(each.num_drawn for each in wanted), self._decoder.device)
        drawn: dict[int, np.ndarray] = {}
        for places in groups([(each.grid, each.num_given) for each in wanted]):
            longest, rows_each = max(lengths[place] for place in places), 1 + (choice.guidance != 1)
            for part in parts(places, num_at_once(self._decoder, longest, rows_each, self._most)):
                batch = [wanted[place] for place in part]
                codes = draw_codes(self._decoder, head, self.layout, batch, choice, count)
                drawn |= zip(part, codes, strict=True)
        count.end()
        return [drawn[place] for place in range(len(wanted))]

    @torch.inference_mode()
    def _write(
        self,
        prefixes: list[np.ndarray],
        names: Sequence[str],
        choice: Choice,
        max_tokens: int,
        seeds: Sequence[int] | None,
        told: Told | None,
        may_be_empty: bool = False,  # most media end a sequence, which does not say that this one shows nothing
    ) -> list[str]:
        streams = list(zip(_seeds(prefixes, seeds), names, strict=True))
        lengths = [len(prefix) + max_tokens for prefix in prefixes]
        self._check_fits([len(prefix) + 1 for prefix in prefixes])
        head = self._head(0, self.layout.vocabulary.vision_offset)
        count = Count(told, max_tokens * len(prefixes), self._decoder.device)
        texts = []
        for part in parts(list(range(len(prefixes))), num_at_once(self._decoder, max(lengths), 1, self._most)):
            mine = [prefixes[place] for place in part], [streams[place] for place in part]
            texts += write_ids(self._decoder, head, self.layout, *mine, choice, max_tokens, may_be_empty, count)
        count.end()
        return [str(self.layout.tokenizer.decode(ids)) for ids in texts]

    @torch.inference_mode(False)
    def _head(self, first: int, end: int) -> Product:
        """The head's rows of these ids."""
        if (first, end) not in self._heads:
            self._heads[first, end] = Product(self.lm.lm_head.weight[first:end])
        return self._heads[first, end]

    def _check_fits(self, lengths: Sequence[int]) -> None:
        room = self.lm.config.max_position_embeddings
        if (longest := max(lengths)) > room:
            raise DoesNotFitError(
                f"a sequence of {longest:,} tokens does not fit the model's context of {room:,}; ask for a smaller "
                "picture or fewer seconds, or give a shorter clip (tokenize.frames.max_frames cuts it)"
            )


def _seeds(asked: Sequence, seeds: Sequence[int] | None) -> Sequence[int]:
    seeds = [0] * len(asked) if seeds is None else seeds
    if not len(asked) or len(seeds) != len(asked):
        raise ValueError(f"{len(asked)} prompts and {len(seeds)} seeds; give at least one prompt, and a seed each")
    return seeds
