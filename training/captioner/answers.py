"""A caption as the tokens that stand behind a question: what a chat template puts around it, and where it ends.

A captioner is asked by its processor's chat template with a generation prompt, and its tokens come after that. So the
question is encoded as an engine encodes it, pictures and all, and the answer behind it: what is learned is what will
be asked, of every class of model, without a list of templates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokenmill.storage.errors import TrainingError
from tokenmill.training.captioner.pairs import Example

IGNORED = -100
_SAMPLE = "a caption"
# What stands beside each token; 0 is the text's type in all of transformers' models that tell types apart.
_BESIDE = ("attention_mask", "token_type_ids", "mm_token_type_ids")


class Answers:
    """Pairs -> inputs of the model and targets, with one processor. Raises TrainingError without a chat template."""

    def __init__(self, processor: Any, ends: set[int], max_tokens: int):
        if not getattr(processor, "chat_template", None):
            raise TrainingError("its processor has no chat template; take an instruction-tuned model")
        self._processor, self._tokenizer = processor, getattr(processor, "tokenizer", processor)
        self._is_text = self._tokenizer is processor  # of a language model: content is a string
        self._max_tokens, self._ends = max_tokens, ends or {self._tokenizer.eos_token_id}
        self._before, self._behind = self._around()

    def ids(self, caption: str) -> list[int]:
        """Tokens of an answer, its end among them; at most `max_tokens`, and then without the end."""
        text = f"{self._before}{caption}{self._behind}"
        found = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        end = next((at for at, token in enumerate(found) if token in self._ends), None)
        whole = [*found, min(self._ends)] if end is None else found[: end + 1]
        return whole[: self._max_tokens]

    def encoded(self, examples: Sequence[Example]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs by name, and targets int64 (B, L): the answers' tokens, IGNORED elsewhere. Padded on the right."""
        self._tokenizer.padding_side = "right"
        inputs = dict(
            self._processor.apply_chat_template(
                [[self._question(example)] for example in examples],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **({"padding": True} if self._is_text else {"processor_kwargs": {"padding": True}}),
            )
        )
        asked, answers = inputs["attention_mask"].sum(1).tolist(), [self.ids(each.caption) for each in examples]
        width = max(num + len(answer) for num, answer in zip(asked, answers, strict=True))
        for name in ("input_ids", *_BESIDE):
            if name in inputs:
                fill = self._tokenizer.pad_token_id if name == "input_ids" else 0
                value = inputs[name]
                wide = torch.full((len(examples), max(width, value.shape[1])), fill, dtype=value.dtype)
                wide[:, : value.shape[1]] = value
                inputs[name] = wide[:, :width]
        targets = torch.full_like(inputs["input_ids"], IGNORED)
        for row, (num, answer) in enumerate(zip(asked, answers, strict=True)):
            span = slice(num, num + len(answer))
            targets[row, span] = inputs["input_ids"][row, span] = torch.tensor(answer)
            inputs["attention_mask"][row, span] = 1
        return inputs, targets

    def _around(self) -> tuple[str, str]:
        """What the template puts before and behind an answer; nothing where it cannot be told apart."""
        question: dict[str, Any] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
        answer: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": _SAMPLE}]}
        if self._is_text:
            question["content"], answer["content"] = "?", _SAMPLE
        template = self._processor.apply_chat_template
        asked = template([question], add_generation_prompt=True, tokenize=False)
        whole = template([question, answer], tokenize=False)
        before, found, behind = whole.removeprefix(asked).partition(_SAMPLE)
        return (before, behind) if found and whole.startswith(asked) else ("", "")

    def _question(self, example: Example) -> dict[str, Any]:
        if self._is_text:
            return {"role": "user", "content": example.prompt}
        pictures = [{"type": "image", "image": Image.fromarray(pixels)} for pixels in example.pictures]
        return {"role": "user", "content": [*pictures, {"type": "text", "text": example.prompt}]}
