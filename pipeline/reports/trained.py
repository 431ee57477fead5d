"""The newest trained model of a catalog with its vision tokenizer: pixels and words in, pixels and words out."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from tokenmill.pipeline.catalog.models import learned, newest
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.media_file import Medium
from tokenmill.pipeline.reports.sizes import SampleError, Size, num_latent, size_of
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.training.sampling import Choice, Grid, Sampler, Told


class TrainedModel:
    """Asked for several at a time, each with its seed, 0 where none is given. `config.sample` says how it draws, and
    `config.train.only` which stage is meant. `told` hears of tokens done, of how many.

    Raises CatalogError without a finished training. Methods raise SampleError for what the model cannot make, and
    DoesNotFitError for what is longer than its context.
    """

    def __init__(self, config: RunConfig, told: Told | None = None):
        uri = newest(config.root, config.train)
        if uri is None:
            stage = "" if config.train.last is None else f" of stage {config.train.last}"
            raise CatalogError(f"{config.root}: no trained model{stage} yet; run `tokenmill train CONFIG` first")
        self.uri = uri
        self.fps = config.tokenize.frames.clip_fps
        self._config, self._told, self._how = config, told, config.sample
        how = self._how
        self._sampler = Sampler.load(uri, most=how.resources.batch, is_compiled=how.resources.compile)
        self._choice = Choice(how.top_k, how.top_p, how.temperature, how.guidance)
        self._device = str(self._sampler.lm.device)

    def size_of(self, text: str) -> Size:
        """'96x64' in pixels, or an aspect such as '3:2' at the area of the config's grid. Raises SampleError."""
        return size_of(text, self._how, self.factor)

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int] | None = None, sizes: Sequence[Size] | None = None
    ) -> list[np.ndarray]:
        """A picture for each prompt: uint8 (H, W, 3) RGB. `sizes`: one each (null: the config's grid)."""
        self._check_learned("image", "pictures")
        codes = self._sampler.draw(prompts, self._grids(len(prompts), sizes), self._choice, seeds, self._told)
        return _each(self._pixels.decode_images, codes)

    def draw_clips(
        self,
        prompts: Sequence[str],
        seconds: float,
        seeds: Sequence[int] | None = None,
        sizes: Sequence[Size] | None = None,
    ) -> list[np.ndarray]:
        """A clip for each prompt, `seconds` rounded to groups of frames at `fps`: uint8 (T, H, W, 3) RGB."""
        self._check_learned("video", "clips")
        grids = self._grids(len(prompts), sizes, num_latent(seconds, self.fps))
        return self._clips(self._sampler.draw(prompts, grids, self._choice, seeds, self._told))

    def go_on(
        self, clips: Sequence[Medium], seconds: float, captions: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Each clip with `seconds` more, uint8 (T, H, W, 3) RGB; `captions` say what is to be seen ('': no word).
        What was given is as the vision tokenizer shows it.
        """
        self._check_learned("video", "clips")
        if any(clip.fps is None for clip in clips):
            raise SampleError("a picture has no motion to continue; give a video")
        codes = [self._codes(clip) for clip in clips]
        more = num_latent(seconds, self.fps)
        return self._clips(self._sampler.go_on(codes, captions, more, self.fps, self._choice, seeds, self._told))

    def caption(self, media: Sequence[Medium], seeds: Sequence[int] | None = None) -> list[str]:
        """What is seen in each medium."""
        return self._sampler.caption([self._codes(each) for each in media], self.fps, **self._writing(seeds))

    def answer(
        self, questions: Sequence[str], media: Sequence[Medium | None], seeds: Sequence[int] | None = None
    ) -> list[str]:
        """The answer to each question about its medium, or about nothing seen."""
        codes = [None if each is None else self._codes(each) for each in media]
        return self._sampler.answer(questions, codes, self.fps, **self._writing(seeds))

    def write(self, beginnings: Sequence[str], seeds: Sequence[int] | None = None) -> list[str]:
        """What follows each beginning."""
        return self._sampler.write(beginnings, **self._writing(seeds))

    def _writing(self, seeds: Sequence[int] | None) -> dict:
        how = self._how
        choice = Choice(how.top_k, how.top_p, how.text_temperature)
        return {"choice": choice, "max_tokens": how.max_tokens, "seeds": seeds, "told": self._told}

    def _grids(self, count: int, sizes: Sequence[Size] | None, t: int | None = None) -> list[Grid]:
        fps, factor = None if t is None else self.fps, self._pixels.spatial_factor
        if sizes is None:
            return [Grid(self._how.grid_h, self._how.grid_w, t, fps)] * count
        return [Grid(height // factor, width // factor, t, fps) for width, height in sizes]

    def _check_learned(self, kind: str, what: str) -> None:
        """Of a model that began elsewhere nobody knows what it saw."""
        train = self._config.train
        known = learned(self.uri)
        if kind not in known and train.stage(train.last).model.init_from is None:
            raise SampleError(
                f"{self.uri}: trained on {', '.join(sorted(known))}, so it draws no {what}; train on some, or take "
                "another of train.stages with --stage"
            )
        if kind == "video" and not self._pixels.codes_clips:
            raise SampleError(
                f"tokenize.model {self._config.tokenize.model}: codes pictures only; draw no clips with it"
            )

    def _codes(self, medium: Medium) -> np.ndarray:
        if medium.fps is None:
            return self._encoder.encode_images(medium.frames)[0]
        return self._encoder.encode_clips(medium.frames[None])[0]

    def _clips(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        return _each(self._pixels.decode_clips, codes)

    @property
    def factor(self) -> int:
        """Pixels of a code's side."""
        return self._pixels.spatial_factor

    @cached_property
    def _pixels(self) -> VisionTokenizer:
        return VisionTokenizer.load(self._config.tokenize.model, self._device)

    @cached_property
    def _encoder(self) -> VisionTokenizer:
        """In the dtype that made the codes of the training."""
        return VisionTokenizer.load(self._config.tokenize.model, self._device, self._config.tokenize.dtype)


def _each(decode: Callable[[np.ndarray], np.ndarray], codes: list[np.ndarray]) -> list[np.ndarray]:
    """Pixels of each; those of one size together, which fills a GPU."""
    if len({each.shape for each in codes}) == 1:
        return list(decode(np.stack(codes)))
    return [decode(each[None])[0] for each in codes]
