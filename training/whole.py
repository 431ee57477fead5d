"""A trained model and its vision tokenizer <-> one folder that plain transformers opens: Emu3ForConditionalGeneration
with Emu3Processor, as Emu3-Chat-hf and Emu3-Gen-hf are published.

The processor writes a prompt as our sequences do (tokenizer/sequence.py): BOS text SOV h*w SOT to draw; to tell what a
picture shows, `<image>` stands for its codes. That placeholder needs an id of its own, which the model must never
write: one behind the codes where the text tokenizer has none, without weights, and suppressed when generating.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AddedToken,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    Emu3VQVAE,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from tokenmill import storage
from tokenmill.storage import scratch
from tokenmill.storage.checksums import write_checksums
from tokenmill.storage.errors import UserError
from tokenmill.tokenizer.text import SPECIAL_STRINGS
from tokenmill.tokenizer.vision.vision_tokenizer import load_model
from tokenmill.tokenizer.vision.weights import folder_of, spatial_factor
from tokenmill.tokenizer.vocabulary import Vocabulary, visual_string
from tokenmill.training.trained import load_trained

PLACEHOLDER = "<image>"
_FACTOR = 8  # pixels of a code's side, whatever the tokenizer (Emu3Processor.downsample_ratio)
_ROLES = {"boi_token": "sov", "eoi_token": "eov", "image_wrapper_token": "sot", "eof_token": "eof"}
_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


class WholeModelError(UserError):
    """A model and a vision tokenizer make no Emu3; the message says why, and what to do."""


def write_whole(model_uri: str, vision_tokenizer: str, area_px: int, card: str, out: str) -> int:
    """Write the folder `out`, a path or an s3:// prefix; `area_px` is that of pictures, `card` becomes README.md.
    Returns the number of ids.

    Raises WholeModelError, TokenizerLoadError, DamagedError.
    """
    vision = load_model(folder_of(vision_tokenizer))
    if not isinstance(vision, Emu3VQVAE):
        raise WholeModelError(
            f"{vision_tokenizer}: a {type(vision).__name__}, and Emu3ForConditionalGeneration holds an Emu3VQVAE; "
            "export models whose tokenize.model is one"
        )
    if (factor := spatial_factor(vision_tokenizer)) != _FACTOR:
        raise WholeModelError(
            f"{vision_tokenizer}: a code is {factor} pixels wide, and Emu3Processor takes it for {_FACTOR}; export "
            f"models of tokenizers of {_FACTOR}"
        )
    lm, layout = load_trained(model_uri, "cpu")
    vocabulary, tokenizer = layout.vocabulary, layout.tokenizer
    if vision.config.codebook_size != vocabulary.codebook_size:
        raise WholeModelError(
            f"{vision_tokenizer} has {vision.config.codebook_size} codes, the model {vocabulary.codebook_size}; set "
            "tokenize.model to the one that made its tokens"
        )
    placeholder = _complete(tokenizer, vocabulary)
    size = max(lm.config.vocab_size, placeholder + 1)
    text_config = lm.config.to_dict() | {"vocab_size": size}
    text_config.pop("_name_or_path", None)  # where it stood
    names = {visual_string(code): vocabulary.vision_offset + code for code in range(vocabulary.codebook_size)}
    names |= {PLACEHOLDER: placeholder, SPECIAL_STRINGS["eol"]: vocabulary.eol}
    config = Emu3Config(vq_config=vision.config.to_dict(), text_config=text_config, vocabulary_map=names)
    with torch.device("meta"):
        whole = Emu3ForConditionalGeneration(config)
    weights: dict[str, torch.Tensor] = {
        ("model.text_model." + name.removeprefix("model.") if name.startswith("model.") else name): tensor
        for name, tensor in lm.state_dict().items()
    }
    for name in ("model.text_model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.nn.functional.pad(weights[name], (0, 0, 0, size - len(weights[name])))
    weights |= {f"model.vqmodel.{name}": tensor for name, tensor in vision.state_dict().items()}
    whole.load_state_dict(weights, strict=True, assign=True)
    whole.generation_config = GenerationConfig(
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.pad,
        suppress_tokens=[placeholder],
    )
    images = Emu3ImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, min_pixels=area_px, max_pixels=area_px, spatial_factor=_FACTOR
    )
    with tempfile.TemporaryDirectory(prefix="tokenmill-", dir=scratch.folder()) as name:
        whole.save_pretrained(name)
        Emu3Processor(images, tokenizer, chat_template=_TEMPLATE).save_pretrained(name)
        vocabulary.save(Path(name))
        (Path(name) / "README.md").write_text(card, encoding="utf-8")
        write_checksums(Path(name))
        storage.upload_folder(Path(name), out)
    return size


def _complete(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> int:
    """Give the tokenizer what Emu3Processor asks of it; the id of the placeholder."""
    known = tokenizer.get_vocab()
    missing = [name for code in range(vocabulary.codebook_size) if (name := visual_string(code)) not in known]
    made: Any = [AddedToken(name, special=True, normalized=False) for name in missing]
    if PLACEHOLDER not in known:
        made.append(AddedToken(PLACEHOLDER, special=True, normalized=False))
    tokenizer.add_tokens(made, special_tokens=True)
    roles: Any = {role: SPECIAL_STRINGS[name] for role, name in _ROLES.items()} | {"image_token": PLACEHOLDER}
    tokenizer._set_model_specific_special_tokens(roles)
    tokenizer.init_kwargs.pop("model_specific_special_tokens", None)  # of one that came from such a folder
    tokenizer.bos_token, tokenizer.eos_token = SPECIAL_STRINGS["bos"], SPECIAL_STRINGS["eos"]
    return tokenizer.get_vocab()[PLACEHOLDER]
