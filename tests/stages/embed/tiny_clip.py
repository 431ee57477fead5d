"""A small CLIP of transformers' class with random weights."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

SIDE = 32
WORDS = ["<unk>", "<s>", "</s>", "a", "cat", "dog", "red"]


def save(folder: Path) -> Path:
    """The folder with model, processor and tokenizer; texts of at most 8 of WORDS."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(WORDS), "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    config = CLIPConfig(
        text_config=text, vision_config={**small, "image_size": SIDE, "patch_size": 8}, projection_dim=12
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="</s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return folder
