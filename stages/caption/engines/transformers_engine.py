"""Engine `transformers`: captions by an image-text-to-text model in the worker, by its own processor and chat template;
where captions are put together, by a language model, too.

Media of about one size are answered together. A batch that does not fit into a GPU's memory is halved; a medium that
the processor refuses is rejected alone. BLIP-2 and Florence-2, older than chat templates, get one picture and the
prompt as it is; Florence-2's are the names of its tasks, such as <MORE_DETAILED_CAPTION>.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from tokenmill.stages.caption.captioners.config import CaptionerConfig, CaptionError, model_identity
from tokenmill.stages.caption.engines.engine import Answer, Request, Result
from tokenmill.stages.table import limits
from tokenmill.stages.table.rows import RowError, words
from tokenmill.stages.tokenize.tokenize import device_of_worker
from tokenmill.storage.cpu import quick_dtype

_WITHOUT_CHAT = ("blip-2", "florence2")
_GREY = np.full((64, 64, 3), 128, np.uint8)


class TransformersEngine:
    """A model in eval mode. Raises CaptionError when it cannot be loaded."""

    stopped: str | None = None

    def __init__(self, config: CaptionerConfig):
        model_identity(config.model)
        self._config, self._device = config, device_of_worker()
        name = str(Path(config.model).expanduser())
        dtype = quick_dtype(self._device == "cuda") if config.dtype == "auto" else config.dtype
        try:
            self._processor, self._model = _opened(name, bool(config.reads), getattr(torch, dtype))
        except (OSError, RuntimeError, KeyError, ValueError, AttributeError) as error:
            raise CaptionError(
                f"{name}: cannot be loaded ({words(error)}); pass a hub name, or a folder that save_pretrained() of an "
                "image-text-to-text model and of its processor wrote"
            ) from error
        self._has_chat = bool(getattr(self._processor, "chat_template", None))
        if not self._has_chat and self._model.config.model_type not in _WITHOUT_CHAT:
            raise CaptionError(f"{name}: its processor has no chat template; take an instruction-tuned model")
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)
        self._tokenizer.padding_side = "right" if self._model.config.is_encoder_decoder else "left"
        self._model.eval().to(self._device)
        ends = self._model.generation_config.eos_token_id or self._tokenizer.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        (result,) = self._batch([Request([] if config.reads else [_GREY], "?")], 1)
        if isinstance(result, RowError):
            raise CaptionError(f"{name}: cannot take a picture ({result.columns['reject_detail']}); take another model")

    def answers(self, requests: Iterator[tuple[int, Request]]) -> Iterator[tuple[int, Result]]:
        """Takes all requests, then answers those of about one size together."""
        waiting = sorted(requests, key=lambda each: (len(each[1].pictures), sum(p.size for p in each[1].pictures)))
        batch = self._config.resources.batch
        for start in range(0, len(waiting), batch):
            some = waiting[start : start + batch]
            started = time.monotonic()
            with limits.call(len(some)):
                results = self._batch([request for _, request in some], self._config.sampling.max_tokens)
            seconds = (time.monotonic() - started) / len(some)
            for (i, _), result in zip(some, results, strict=True):
                yield i, result._replace(seconds=seconds) if isinstance(result, Answer) else result

    def close(self) -> None:
        """Nothing to give back."""

    def _batch(self, requests: list[Request], max_tokens: int) -> list[Result]:
        try:
            return list(self._generate(self._inputs(requests), max_tokens))
        except torch.OutOfMemoryError:
            if len(requests) == 1:
                raise
        except RowError as error:
            if len(requests) == 1:
                return [error]
        middle = len(requests) // 2
        return [*self._batch(requests[:middle], max_tokens), *self._batch(requests[middle:], max_tokens)]

    def _inputs(self, requests: list[Request]) -> Any:
        """Raises RowError: bad_picture, where the processor refuses one of them."""
        is_text = self._tokenizer is self._processor
        try:
            if not self._has_chat:
                pictures = [Image.fromarray(pixels) for request in requests for pixels in request.pictures]
                if len(pictures) != len(requests):
                    raise ValueError(f"{self._model.config.model_type} takes one picture, and not {len(pictures)}")
                prompts = [request.prompt for request in requests]
                return self._processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
            return self._processor.apply_chat_template(
                [_conversation(request, is_text) for request in requests],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **({"padding": True} if is_text else {"processor_kwargs": {"padding": True}}),
            )
        except MemoryError:
            raise
        except Exception as error:  # processors answer odd sizes with a dozen exception types
            raise RowError("bad_picture", words(error)) from error

    @torch.inference_mode()
    def _generate(self, inputs: Any, max_tokens: int) -> Iterator[Answer]:
        sampling = self._config.sampling
        is_text = self._tokenizer is self._processor  # ids alone
        inputs = inputs.to(self._device) if is_text else inputs.to(self._device, dtype=self._model.dtype)
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature > 0:
            how |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            torch.manual_seed(sampling.seed)
        made = self._model.generate(**inputs, max_new_tokens=max_tokens, **how)
        begins_at = 1 if self._model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        written = made[:, begins_at:].tolist()
        for num_in, ids in zip(inputs["attention_mask"].sum(1).tolist(), written, strict=True):
            end = next((at for at, token in enumerate(ids) if token in self._ends), None)
            text = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
            reason, num_out = ("length", len(ids)) if end is None else ("stop", end + 1)
            yield Answer(text.strip(), reason, int(num_in), num_out)


def _opened(name: str, is_text: bool, dtype: torch.dtype) -> tuple[Any, Any]:
    """Processor and model; `is_text`: a tokenizer and a language model, where it is one."""
    import transformers as t

    how: dict[str, Any] = {"use_safetensors": True, "dtype": dtype}
    if is_text and type(t.AutoConfig.from_pretrained(name)) not in t.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return t.AutoTokenizer.from_pretrained(name), cast(Any, t.AutoModelForCausalLM.from_pretrained(name, **how))
    model = t.AutoModelForImageTextToText.from_pretrained(name, **how)
    return t.AutoProcessor.from_pretrained(name), cast(Any, model)


def _conversation(request: Request, is_text: bool) -> list[dict[str, Any]]:
    if is_text:
        return [{"role": "user", "content": request.prompt}]
    pictures = [{"type": "image", "image": Image.fromarray(pixels)} for pixels in request.pictures]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": request.prompt}]}]
