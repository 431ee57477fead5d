"""The layouts in which Emu3's language model stands in a folder or on the hub -> Emu3ForCausalLM.

    ours, BAAI/Emu3-Stage1, -Gen, -Chat    model.layers..., lm_head
    Emu3-Chat-hf, Emu3-Gen-hf              text_model.model.layers..., and the vision tokenizer as vqmodel...

None of BAAI's code is run. Their text tokenizers need it, but that of a folder `-hf` is the same.
"""

from typing import Any

from transformers import Emu3ForCausalLM, Emu3TextConfig

_NAMES = {r"^model\.text_model\.": "model.", r"^text_model\.": ""}
Emu3ForCausalLM._keys_to_ignore_on_load_unexpected = [r"^(model\.)?vqmodel\."]  # the vision tokenizer beside it


def text_config(name: str) -> Emu3TextConfig:
    """Of the language model in a folder or on the hub."""
    return Emu3TextConfig.from_pretrained(name)


def load_published(name: str, dropout: float | None = None, **how: Any) -> tuple[Any, dict[str, Any]]:
    """The language model, and which weights were missing, unexpected or of another size. `dropout`: null as it was;
    `how` as in from_pretrained().
    """
    config = text_config(name)
    if dropout is not None:
        config.attention_dropout = dropout
    loaded: Any = Emu3ForCausalLM.from_pretrained(
        name, config=config, key_mapping=_NAMES, output_loading_info=True, **how
    )
    return loaded
