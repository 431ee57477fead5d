"""`Emu3ForCausalLM` of any size, and one forward pass over a pack that ends in its loss.

The model stays the class of `transformers`, so what is trained loads in the ecosystem as it is. Dropout falls on the
embeddings, as in Emu3's code (the class of transformers leaves that out), and on both residual branches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import Emu3ForCausalLM, Emu3TextConfig
from transformers.utils import logging

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.failures import find
from tokenmill.storage.tensors import check_sizes
from tokenmill.tokenizer.sequence import Kind
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import LossWeights, ModelConfig
from tokenmill.training.model import attention
from tokenmill.training.model.flops import Flops
from tokenmill.training.model.loss import linear_cross_entropy, next_tokens, sums_by_kind
from tokenmill.training.model.products import quicken
from tokenmill.training.model.split import Split, whole_weight
from tokenmill.training.pack import PADDING, Pack
from tokenmill.training.published import load_published, text_config

_NAMED = 5  # tensors in a message
_UNFIT = {"missing_keys": "no", "unexpected_keys": "unknown", "mismatched_keys": "other sizes of"}

logging.disable_progress_bar()  # loading and saving take a moment; the training has a progress of its own


def build_model(config: ModelConfig, vocabulary: Vocabulary, context_tokens: int, seed: int) -> Emu3ForCausalLM:
    """A model in float32 with seeded random weights, or the one of `config.init_from`: a hub name, a folder, an s3://
    prefix. It is told of `context_tokens` positions at least.

    Raises TrainingError when that model has no room for the vocabulary, or is not whole.
    """
    if config.init_from is not None:
        model = _given(config.init_from, config.dropout)
        model.config.max_position_embeddings = max(model.config.max_position_embeddings, context_tokens)
        if model.config.vocab_size < vocabulary.size:
            raise TrainingError(
                f"init_from = {config.init_from!r} has {model.config.vocab_size} ids, text and codes take "
                f"{vocabulary.size}; give its own text_tokenizer and vision tokenizer"
            )
        return model
    torch.manual_seed(seed)
    model = Emu3ForCausalLM(config_of(config, vocabulary, context_tokens))
    model.set_attn_implementation(attention.NAME)
    return model


def config_of_given(init_from: str) -> Emu3TextConfig:
    """Of the model of that hub name, folder or s3:// prefix. Raises TrainingError."""
    with _as_unfit(init_from):
        if not storage.is_remote(init_from):
            return text_config(init_from)
        known = storage.read_json(storage.join(init_from, "config.json"))
        return Emu3TextConfig.from_dict(known.get("text_config", known))


def config_of(config: ModelConfig, vocabulary: Vocabulary, context_tokens: int) -> Emu3TextConfig:
    """Of a model that is made anew."""
    return Emu3TextConfig(
        vocab_size=vocabulary.size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=context_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attention_dropout=config.dropout,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
    )


def _given(init_from: str, dropout: float) -> Emu3ForCausalLM:
    """The model of that hub name or folder. Raises TrainingError where its files do not hold exactly its weights."""
    with _as_unfit(init_from), _at_hand(init_from) as name:
        if Path(name).is_dir():
            check_sizes(Path(name), Emu3ForCausalLM, text_config(name))
        model, found = load_published(
            name,
            dtype=torch.float32,
            dropout=dropout,
            attn_implementation=attention.NAME,
            ignore_mismatched_sizes=True,
        )
        for kind, what in _UNFIT.items():  # transformers would draw these at random, or leave them out
            if names := sorted(key if isinstance(key, str) else key[0] for key in found[kind]):
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                raise ValueError(f"{what} weights {', '.join(names[:_NAMED])}{more}")
    return model


@contextmanager
def _at_hand(name: str) -> Iterator[str]:
    """`name`, and of an s3:// prefix a folder with its files."""
    if not storage.is_remote(name):
        yield name
        return
    with storage.local_folder(name) as folder:
        yield str(folder)


@contextmanager
def _as_unfit(init_from: str) -> Iterator[None]:
    """What a library raises of files that hold no such model -> TrainingError; what they are not to blame for stays."""
    try:
        yield
    except Exception as error:
        if find(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"train.model.init_from: {init_from}: {said}; give an Emu3ForCausalLM as save_pretrained() writes it"
        ) from error


class PackLoss(nn.Module):
    """The forward pass that data parallelism wraps: packs in, weighted loss out."""

    num_sums = 2 * len(Kind)

    def __init__(self, lm: Emu3ForCausalLM, weights: LossWeights):
        super().__init__()
        quicken(lm)
        self.lm, self.flops = lm, Flops(lm)
        self.weights = weights
        self.split: Split | None = None  # where several workers share a pack

    def forward(
        self,
        ids_BT: torch.Tensor,
        kinds_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        documents_BT: torch.Tensor,
        *,
        by_token: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of the loss (float32 scalar), and `sums_by_kind` (float32 (2, number of kinds)); `by_token`
        instead of these the unweighted loss of what each token predicts, and its weight (float32 (2, B * T)). Where a
        pack is shared, sums are over this worker's tokens.
        """
        hidden_ND = self.hidden(ids_BT, positions_BT, documents_BT).flatten(0, 1)
        whole = next_tokens(ids_BT, kinds_BT, documents_BT, self.weights)
        targets_N, kinds_N, weights_N = (self.own(x_BT).flatten() for x_BT in whole)
        loss, nll_N = linear_cross_entropy(hidden_ND, self.head, targets_N, weights_N)
        if by_token:
            nll_BT = self.of_all(nll_N.view(len(ids_BT), -1), ids_BT.shape[1])
            return loss, torch.stack([nll_BT.flatten(), whole[2].flatten()])
        return loss, sums_by_kind(nll_N, kinds_N, weights_N)

    @property
    def head(self) -> torch.Tensor:
        """The weight that makes logits, (V, D)."""
        return whole_weight(self.lm.lm_head.weight)

    def own(self, x_BT: torch.Tensor, padding: int = 0) -> torch.Tensor:
        """This worker's tokens of a pack, which is padded until it can be shared out; all where it is not shared."""
        return x_BT if self.split is None else self.split.own(self.split.padded(x_BT, padding))

    def of_all(self, x_BT: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """The inverse of `own`, without gradient."""
        return x_BT if self.split is None else self.split.whole(x_BT)[:, :num_tokens]

    def hidden(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, documents_BT: torch.Tensor) -> torch.Tensor:
        """The last hidden states of `own` tokens, (B, T, D)."""
        table, p = self.lm.model.embed_tokens, self.lm.config.attention_dropout
        embedded_BTD = functional.embedding(self.own(ids_BT), whole_weight(table.weight), table.padding_idx)
        if (split := self.split) is None:
            embedded_BTD = functional.dropout(embedded_BTD, p, self.training)
        else:
            embedded_BTD = split.dropout(embedded_BTD, p, self.training)
            positions_BT = split.own_of_context(split.padded(positions_BT, 0))
            documents_BT = split.padded(documents_BT, PADDING)
        return self.lm.model(
            inputs_embeds=embedded_BTD,
            position_ids=positions_BT,
            documents=attention.attend_mask(documents_BT),
            split=split,
            use_cache=False,
        ).last_hidden_state

    def loss_weight(self, pack: Pack) -> float:
        """What a step's loss is divided by, summed over its packs."""
        return pack.loss_weight(self.weights)

    def inputs(self, pack: Pack, device: torch.device) -> list[torch.Tensor]:
        """Those of `forward`."""
        return tensors(pack, device)

    def told(self, sums: list[float]) -> dict[str, float]:
        """Mean loss of a token by kind, of sums as `forward` returns them, flat."""
        totals, counts = sums[: len(Kind)], sums[len(Kind) :]
        return {kind.name.lower(): totals[kind] / counts[kind] for kind in Kind if counts[kind]}


def tensors(pack: Pack, device: torch.device) -> list[torch.Tensor]:
    """ids, kinds, positions, documents, each (1, T). FlexAttention wants one length; a CPU need not compute padding."""
    used = len(pack.ids) if device.type == "cuda" else max(1, pack.num_tokens)
    arrays = (pack.ids, pack.kinds, pack.positions, pack.documents)
    return [torch.from_numpy(array[:used])[None].to(device, non_blocking=True) for array in arrays]
