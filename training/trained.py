"""The folder of a finished training -> its model and its layout of sequences."""

import torch
from transformers import Emu3ForCausalLM
from transformers.utils import logging

from tokenmill import storage
from tokenmill.storage.errors import DamagedError
from tokenmill.storage.failures import as_damaged
from tokenmill.storage.tensors import check_sizes
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import load_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.job import MODEL
from tokenmill.training.published import load_published, text_config

logging.disable_progress_bar()  # a model loads in a moment


def load_trained(uri: str, device: str | torch.device | None = None) -> tuple[Emu3ForCausalLM, SequenceLayout]:
    """The model of a training's folder, or of its `model` folder, on `device` (null: a GPU if there is one).

    bfloat16 on a GPU, float32 on a CPU. Raises FileNotFoundError where no finished training stands, DamagedError.
    """
    uri = storage.absolute(uri)
    inner = storage.join(uri, MODEL)
    uri = inner if storage.exists(storage.join(inner, "config.json")) else uri
    if not storage.exists(storage.join(uri, "vocabulary.json")):
        raise FileNotFoundError(f"{uri}: no trained model; finish the training first, then give its folder")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with as_damaged(uri), storage.local_folder(uri) as folder:
        layout = SequenceLayout(load_text_tokenizer(folder), Vocabulary.load(folder))
        check_sizes(folder, Emu3ForCausalLM, text_config(str(folder)))
        lm, found = load_published(str(folder), dtype=dtype, attn_implementation="sdpa")
        if lacking := sorted(found["missing_keys"]):  # transformers would draw them at random
            raise DamagedError(uri, f"no weights {', '.join(lacking)}")
    return lm.to(device).eval(), layout
