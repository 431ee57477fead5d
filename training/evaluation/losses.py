"""Sequences -> the mean loss of their tokens by modality, without dropout or gradients.

A medium with its caption goes through in both orders of Emu3: its codes count where the caption stands before them,
the words where they stand behind, for that is how a model draws and describes. A medium without a caption counts
alone, and its codes are apart from those that words describe. Each document sees itself only, whatever stands beside
it in a pack.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Emu3ForCausalLM

from tokenmill.tokenizer.sequence import Kind, Sequence, SequenceLayout
from tokenmill.training.config import LossWeights
from tokenmill.training.model import attention
from tokenmill.training.model.model import PackLoss, tensors
from tokenmill.training.pack import Pack

_PACK_TOKENS = 8_192
_NO_TEXT = np.empty(0, np.int32)
_CODES = {"image": Kind.IMAGE, "video": Kind.VIDEO}


@dataclass(frozen=True)
class Document:
    """A medium by its codes, int (h, w) or, with `fps`, (t, h, w), and its caption; without codes a text document."""

    codes: np.ndarray | None
    fps: float | None
    text: str | None

    @property
    def modality(self) -> str:
        if self.codes is None:
            return "text"
        return "image" if self.codes.ndim == 2 else "video"


@dataclass(frozen=True)
class Loss:
    """Nats of a token in the mean, over so many tokens of so many documents."""

    mean: float
    num_tokens: int
    num_documents: int


def losses(lm: Emu3ForCausalLM, layout: SequenceLayout, documents: list[Document]) -> tuple[dict[str, Loss], int]:
    """`image` and `video` (codes below a caption), `image alone` and `video alone` (without one), `caption` (of a
    medium before it) and `text` (as far as the context goes), as there are any; and how many media are longer than the
    context.

    The model attends as training does afterwards. Raises ValueError for codes outside its codebook.
    """
    lm.set_attn_implementation(attention.NAME)
    model = PackLoss(lm, LossWeights(1.0, 1.0)).eval()
    room, num_long = lm.config.max_position_embeddings, 0
    by_name: dict[str, tuple[Kind, list[Sequence]]] = {}
    for document in documents:
        found = list(_sequences(document, layout, room))
        if any(len(sequence.ids) > room for _, _, sequence in found):
            num_long += 1
            continue
        for name, kind, sequence in found:
            by_name.setdefault(name, (kind, []))[1].append(sequence)
    return {name: _loss(model, layout, *each) for name, each in by_name.items()}, num_long


def _sequences(document: Document, layout: SequenceLayout, room: int) -> Iterator[tuple[str, Kind, Sequence]]:
    """What is measured, the kind of token that counts, and where it stands."""
    words = layout.caption_ids(document.text)
    if document.codes is None:
        yield "text", Kind.DOCUMENT, layout.build_text(words[: room - 2], True, is_last=len(words) <= room - 2)
        return
    name = document.modality
    if not len(words):
        yield f"{name} alone", _CODES[name], layout.build(document.codes, _NO_TEXT, document.fps)
        return
    yield name, _CODES[name], layout.build(document.codes, words, document.fps)
    yield "caption", Kind.TEXT, layout.build(document.codes, words, document.fps, is_caption_last=True)


@torch.no_grad()
def _loss(model: PackLoss, layout: SequenceLayout, kind: Kind, sequences: list[Sequence]) -> Loss:
    sums = np.zeros(model.num_sums)
    for pack in _packs(sequences, layout.vocabulary.pad):
        sums += model(*tensors(pack, model.lm.device))[1].double().flatten().cpu().numpy()
    total, count = sums[kind], int(sums[len(Kind) + kind])
    return Loss(float(total / count), count, len(sequences))


def _packs(sequences: Iterable[Sequence], pad: int) -> Iterator[Pack]:
    """In their order, as many as fit, one at least."""
    waiting, used = list[Sequence](), 0
    for sequence in sequences:
        if waiting and used + len(sequence.ids) > _PACK_TOKENS:
            yield Pack.of(waiting, max(used, _PACK_TOKENS), pad)
            waiting, used = [], 0
        waiting.append(sequence)
        used += len(sequence.ids)
    if waiting:
        yield Pack.of(waiting, max(used, _PACK_TOKENS), pad)
