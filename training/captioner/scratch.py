"""Captions -> a small model without any weights given, its processor and its tokenizer: of classes of transformers.

SmolVLM's: a SigLIP tower over patches, neighbouring patches joined into one token, a Llama that writes; the Llama alone
where it only reads. A hundred steps teach it drawn scenes on a CPU; it is no model for photos.
"""

from collections.abc import Iterable
from typing import Any

import torch

from tokenmill.training.captioner.config import ScratchConfig

_PAD, _START, _END, _IMAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"
# SmolVLM's processor writes these around each picture.
_OF_PICTURES = ("<fake_token_around_image>", "<global-img>")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEAD_SIZE = 32
_MAX_POSITIONS = 8192
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def make(config: ScratchConfig, texts: Iterable[str], seed: int, looks: bool = True) -> tuple[Any, Any]:
    """Model with random weights, float32, and processor, for captions such as `texts`; a language model and its
    tokenizer where it only reads. The same `texts` in the same order and the same seed give the same model.
    """
    import transformers as t

    tokenizer = _tokenizer(config.vocab_size, texts)
    ids = tokenizer.get_vocab()
    heads = max(1, config.hidden_size // _HEAD_SIZE)
    text: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "num_attention_heads": heads,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": config.text_layers,
        "num_key_value_heads": heads,
        "intermediate_size": 8 * config.hidden_size // 3 // 32 * 32,
        "max_position_embeddings": _MAX_POSITIONS,
        "bos_token_id": ids[_PAD],
        "eos_token_id": ids[_END],
        "pad_token_id": ids[_PAD],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = _that_looks(config, text, ids[_IMAGE]) if looks else t.LlamaForCausalLM(t.LlamaConfig(**text))
    model.generation_config = t.GenerationConfig(**{name: text[name] for name in _ENDS})
    return model, _processor(config, tokenizer) if looks else tokenizer


def _that_looks(config: ScratchConfig, text: dict[str, Any], image_token_id: int) -> Any:
    import transformers as t

    vision = {
        "hidden_size": config.hidden_size,
        "num_attention_heads": text["num_attention_heads"],
        "num_hidden_layers": config.vision_layers,
        "intermediate_size": 3 * config.hidden_size,
        "image_size": config.image_px,
        "patch_size": config.patch_px,
    }
    made = t.SmolVLMConfig(
        text_config={"model_type": "llama", **text},
        vision_config=vision,
        image_token_id=image_token_id,
        scale_factor=config.merged_patches,
    )
    return t.SmolVLMForConditionalGeneration(made)


def _processor(config: ScratchConfig, tokenizer: Any) -> Any:
    import transformers as t

    edge = {"longest_edge": config.image_px}
    return t.SmolVLMProcessor(
        t.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer,
        t.SmolVLMVideoProcessor(size=edge, max_image_size=edge),
        image_seq_len=(config.image_px // config.patch_px // config.merged_patches) ** 2,
        chat_template=_TEMPLATE,
    )


def _tokenizer(vocab_size: int, texts: Iterable[str]) -> Any:
    """A byte-level BPE: every text can be said in it, those given in few tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [_PAD, _START, _END, _IMAGE, *_OF_PICTURES]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*texts, "user\n", "assistant\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=[_IMAGE, *_OF_PICTURES],
        image_token=_IMAGE,
        chat_template=_TEMPLATE,
    )
