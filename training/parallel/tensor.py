"""Matrices of the layers in parts, by torch's tensor parallelism with its sequence parallelism (arXiv 2205.05198).

Workers of a group hold some heads of every attention and some channels of every MLP. Between these each has its own
tokens, so norms, embeddings and the loss are computed once; before them tokens are gathered, behind them summed and
shared out again. Embeddings and head are kept by columns and made whole where they are used.
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import Emu3ForCausalLM

from tokenmill.storage.errors import TrainingError
from tokenmill.training.resources import Parallel

_TOKENS = Shard(1)  # of (B, T, D)


def check_shares(lm: Emu3ForCausalLM, parallel: Parallel) -> None:
    """Raises TrainingError where heads or channels of the model cannot be shared out."""
    config = lm.config
    num_heads = config.num_attention_heads
    try:
        parallel.check(num_heads, config.num_key_value_heads or num_heads, config.intermediate_size)
    except ValueError as error:
        raise TrainingError(f"{error}; lower it") from error


def share_layers(lm: Emu3ForCausalLM, mesh: DeviceMesh) -> None:
    """Leave this worker's parts of the weights, by a mesh of one dimension."""
    for layer in lm.model.layers:
        parallelize_module(layer, mesh, _plan())
    parallelize_module(lm.model, mesh, {"norm": SequenceParallel(use_local_output=True)})
    parts: dict[int, nn.Parameter] = {}  # a tied weight stays one
    for end in (lm.model.embed_tokens, lm.lm_head):
        whole = end.weight
        if id(whole) not in parts:
            parts[id(whole)] = nn.Parameter(distribute_tensor(whole.data, mesh, [Shard(1)], src_data_rank=None))
        end.weight = parts[id(whole)]


def _plan() -> dict[str, ParallelStyle]:
    return {
        "input_layernorm": SequenceParallel(use_local_output=True),
        "self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": _TOKENS}, desired_input_kwarg_layouts={"hidden_states": Replicate()}
        ),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(output_layouts=_TOKENS),
        "post_attention_layernorm": SequenceParallel(use_local_output=True),
        "mlp": PrepareModuleInput(input_layouts=_TOKENS, desired_input_layouts=Replicate()),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=_TOKENS),
    }
