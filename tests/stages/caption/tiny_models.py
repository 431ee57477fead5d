"""Small image-text-to-text models of real classes with random weights: `python tiny_models.py KIND FOLDER`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
_SPECIAL += ["<|image_pad|>", "<|video_pad|>", "<image>", "<video>", "<fake_token_around_image>", "<global-img>"]
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] in ['image', 'image_url'] %}IMAGE{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = {
    "vocab_size": 640,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}


def _tokenizer(**more: str) -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=_SPECIAL, initial_alphabet=alphabet)
    bpe.train_from_iterator(["describe the picture: a red circle above a blue square"] * 50, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=_SPECIAL[3:],
        **more,
    )


def _ends(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def _qwen_ids(ids: dict[str, int]) -> dict[str, int]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: ids[f"<|{name}|>"] for key, name in names.items()}


def _qwen2_5_vl(text: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    t = transformers
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]}
    config = t.Qwen2_5_VLConfig(
        text_config={**_TEXT, **_ends(ids), "rope_scaling": rope}, vision_config=vision, **_qwen_ids(ids)
    )
    processor = t.Qwen2_5_VLProcessor(
        image_processor=t.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=text,
        video_processor=t.Qwen2VLVideoProcessor(),
        chat_template=_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return t.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(text: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    t = transformers
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"num_position_embeddings": 256, "deepstack_visual_indexes": [0, 1]}
    config = t.Qwen3VLConfig(
        text_config={**_TEXT, **_ends(ids), "head_dim": 32, "rope_parameters": rope},
        vision_config=vision,
        **_qwen_ids(ids),
    )
    images = t.Qwen2VLImageProcessor(patch_size=16, min_pixels=64 * 64, max_pixels=128 * 128)
    template = _TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = t.Qwen3VLProcessor(images, text, t.Qwen3VLVideoProcessor(), chat_template=template)
    return t.Qwen3VLForConditionalGeneration(config), processor


def _llava_onevision(text: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    t = transformers
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    vision = {"model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16, "vision_use_head": False}
    config = t.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_TEXT, **_ends(ids)},
        vision_config=vision,
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=pinpoints,
    )
    size = {"height": 32, "width": 32}
    processor = t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        text,
        t.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=_TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def _smolvlm(text: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    t = transformers
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = t.SmolVLMConfig(
        text_config={"model_type": "llama", **_TEXT, **_ends(ids)},
        vision_config={**vision, "image_size": 64, "patch_size": 16},
        image_token_id=ids["<image>"],
        scale_factor=2,
        pad_token_id=ids["<|endoftext|>"],
    )
    edge = {"longest_edge": 64}
    processor = t.SmolVLMProcessor(
        t.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
        text,
        t.SmolVLMVideoProcessor(size=edge, max_image_size=edge, num_frames=4, fps=1),
        image_seq_len=4,
        chat_template=_TEMPLATE.replace("IMAGE", "<image>"),
    )
    return t.SmolVLMForConditionalGeneration(config), processor


def _blip_2(text: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    t = transformers
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    opt = {"model_type": "opt", "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    opt |= {"vocab_size": 640, "word_embed_proj_dim": 64, "max_position_embeddings": 512}
    config = t.Blip2Config(
        vision_config={**small, "image_size": 32, "patch_size": 16},
        qformer_config={**small, "encoder_hidden_size": 64, "vocab_size": 640},
        text_config={**opt, **_ends(ids)},
        num_query_tokens=4,
        image_token_index=ids["<image>"],
    )
    images = t.BlipImageProcessor(size={"height": 32, "width": 32})
    return t.Blip2ForConditionalGeneration(config), t.Blip2Processor(images, text, num_query_tokens=4)


def _florence2(text: Any, ids: dict[str, int]) -> tuple[Any, Any]:
    t = transformers
    vision = {"depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1)}
    vision |= {"patch_prenorm": (False, True), "embed_dim": (32, 64), "num_heads": (2, 4), "num_groups": (2, 4)}
    vision |= {"window_size": 4, "projection_dim": 64, "drop_path_rate": 0.0}
    bart = {"model_type": "bart", "vocab_size": 640, "d_model": 64, "max_position_embeddings": 512}
    for part in ("encoder", "decoder"):
        bart |= {f"{part}_layers": 2, f"{part}_ffn_dim": 128, f"{part}_attention_heads": 2}
    bart |= {**_ends(ids), "decoder_start_token_id": ids["<|im_end|>"], "forced_eos_token_id": None, "init_std": 0.3}
    untied = {"tie_word_embeddings": False}  # or each token is followed by itself
    ids_and_parts = {"vision_config": vision, "text_config": bart | untied, "image_token_id": ids["<image>"]}
    config = t.Florence2Config(**ids_and_parts, **untied)
    text.bos_token = "<|endoftext|>"
    images = t.CLIPImageProcessor(size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64})
    images.image_seq_length = 64 + 1  # places of 8 by 8 pixels, and their mean
    return t.Florence2ForConditionalGeneration(config), t.Florence2Processor(images, text)


KINDS: dict[str, Callable[[Any, dict[str, int]], tuple[Any, Any]]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
}


WITHOUT_CHAT = {"blip_2": _blip_2, "florence2": _florence2}  # they take one picture


def save_language_model(folder: Path) -> str:
    """The folder with a language model and its tokenizer."""
    torch.manual_seed(0)
    text = _tokenizer(chat_template=_TEMPLATE)
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**{**_TEXT, **_ends(text.get_vocab())})).save_pretrained(
        folder
    )
    text.save_pretrained(folder)
    return str(folder)


def save(kind: str, folder: Path, seed: int = 0) -> str:
    """The folder with model and processor."""
    torch.manual_seed(seed)
    text = _tokenizer(**({} if kind.startswith(("qwen", "blip")) else {"image_token": "<image>"}))
    model, processor = (KINDS | WITHOUT_CHAT)[kind](text, text.get_vocab())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
