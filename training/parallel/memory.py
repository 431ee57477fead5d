"""What a step needs of a worker's memory at most: weights, gradients, optimizer, and what the backward pass reads.

Numbers by the shapes: those of weights are exact; what autograd keeps of a layer was counted on models of several sizes
(tests/training/parallel/test_memory.py holds it within an eighth).
"""

from dataclasses import asdict, dataclass

import torch
from transformers import Emu3TextConfig

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.vocabulary import FILE_NAME, Vocabulary
from tokenmill.training.config import TrainConfig
from tokenmill.training.job import TrainJob
from tokenmill.training.model.loss import chunk_tokens
from tokenmill.training.model.model import config_of, config_of_given
from tokenmill.training.resources import Parallel, TrainResources

_GB = 1e9
_SPARE = 1.1  # an estimate may be wrong by so much before it stops a training


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker."""

    weights: float  # its own, and those of others that it has at hand for two layers and both ends
    gradients: float
    optimizer: float
    activations: float  # of the layers
    loss: float  # of the head: a chunk of logits, and gradients

    @property
    def total(self) -> float:
        """All of them, at the end of a forward pass."""
        return sum(asdict(self).values())

    def told(self) -> str:
        """For a person."""
        parts = ", ".join(f"{name} {size / _GB:.1f}" for name, size in asdict(self).items())
        return f"a step needs about {self.total / _GB:.1f} GB of each worker: {parts}"


def needed(config: Emu3TextConfig, train: TrainConfig, resources: TrainResources, world: int) -> Memory:
    """Of a model of that config on `world` workers."""
    parallel = resources.parallel
    matrices, small = _layer(config)
    ends = 2 * config.vocab_size * config.hidden_size + config.hidden_size
    num_layers, tensor = config.num_hidden_layers, parallel.tensor
    is_spread = world > 1 and (resources.spread_model or tensor > 1)
    parts = world if is_spread else 1
    layers = num_layers * (matrices + small)
    own = (layers + ends) / parts
    gathered = (2 * matrices / tensor + 2 * small + ends) if is_spread else 0.0
    learns, whole = own, matrices / tensor + small + ends  # of the latter gradients are there before they are shared
    if (lora := train.model.lora) is not None:
        learns = whole = num_layers * _lora(config, lora.rank)
        learns /= parts
    kept = learns * 8.0
    if train.optimizer.muon_lr is not None:
        kept -= num_layers * matrices / parts * 4.0
    head = config.vocab_size * config.hidden_size
    of_head = head * (4.0 if train.model.lora is None else 0.0)
    dtype = torch.bfloat16 if train.dtype == "bfloat16" else torch.float32
    chunk = float(dtype.itemsize * chunk_tokens(config.vocab_size, dtype, resources.use_gpu) * config.vocab_size)
    return Memory(
        weights=4.0 * (own + gathered),
        gradients=4.0 * (learns + (whole if is_spread else 0.0)),
        optimizer=kept,
        activations=_activations(config, train, resources.recompute, parallel),
        loss=chunk + of_head + 4.0 * _own_tokens(train, parallel) * config.hidden_size,
    )


def memory_of(job: TrainJob, resources: TrainResources) -> Memory:
    """Of a job that is prepared, on as many workers as it is given."""
    config = job.config
    if job.init_from is None:
        vocabulary = Vocabulary.model_validate(storage.read_json(job.at("text", FILE_NAME)))
        lm = config_of(config.model, vocabulary, config.data.context_tokens)
    else:
        lm = config_of_given(job.init_from)
    return needed(lm, config, resources, resources.num_workers)


def check_room(memory: Memory, device: torch.device, resources: TrainResources) -> None:
    """Raises TrainingError where a GPU has less."""
    if device.type != "cuda":
        return
    has = torch.cuda.get_device_properties(device).total_memory
    check_against(memory, has, torch.cuda.get_device_name(device), resources)


def check_against(memory: Memory, has: float, name: str, resources: TrainResources) -> None:
    """Raises TrainingError where `has` bytes of a GPU of that name are clearly too few."""
    if memory.total <= has * _SPARE:
        return
    remedies = [
        "resources.recompute: true" if not resources.recompute else "",
        "resources.spread_model: true" if not resources.spread_model else "more workers, over whom weights are spread",
        f"parallel.context: {2 * resources.parallel.context}, over whom the tokens of a pack are shared",
        "smaller data.pack_tokens",
    ]
    raise TrainingError(
        f"{memory.told()}; {name} has {has / _GB:.1f} GB. Give {'; '.join(each for each in remedies if each)}"
    )


def _layer(config: Emu3TextConfig) -> tuple[int, int]:
    """Weights of a layer: in its matrices, which tensor parallelism shares, and in its norms."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = 2 * config.num_attention_heads + 2 * (config.num_key_value_heads or config.num_attention_heads)
    return config.hidden_size * (heads * width + 3 * config.intermediate_size), 2 * config.hidden_size


def _lora(config: Emu3TextConfig, rank: int) -> int:
    """Weights that LoRA puts beside the matrices of a layer."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_heads = [count * width for count in (config.num_attention_heads, config.num_key_value_heads or 0)]
    ends = [config.hidden_size + of_heads[0]] * 2 + [config.hidden_size + of_heads[1]] * 2
    ends += [config.hidden_size + config.intermediate_size] * 3
    return rank * sum(ends)


def _own_tokens(train: TrainConfig, parallel: Parallel) -> float:
    return train.data.pack_tokens / parallel.per_pack


def _activations(config: Emu3TextConfig, train: TrainConfig, recompute: bool, parallel: Parallel) -> float:
    tokens, width, inner = _own_tokens(train, parallel), config.hidden_size, config.intermediate_size
    matrices, _ = _layer(config)
    if train.dtype == "bfloat16":
        of_token = (44 + 4 * (train.model.dropout > 0)) * width + 8 * inner
        casts = 2.0 * matrices / parallel.tensor
    else:
        of_token = (60 + 8 * (train.model.dropout > 0)) * width + 16 * inner
        casts = 0.0
    if parallel.tensor > 1:  # what is gathered for attention and MLP
        of_token += 2 * 2 * width * parallel.tensor
    layer = tokens * of_token + casts
    input_ = tokens * 4 * width
    num_layers = config.num_hidden_layers
    return num_layers * input_ + layer if recompute else num_layers * layer
