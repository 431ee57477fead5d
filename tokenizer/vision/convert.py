"""BAAI's published tokenizer -> the folder that `transformers` loads: config.json and safetensors.

The published layout differs in names (tokenizer/vision/published.py). Only safetensors are read: a pickle runs any code
that stands in it. The folder keeps a note of its source, by which a later conversion knows that it may replace it.
"""

import json
from pathlib import Path

from tokenmill.storage.identity import weights_id
from tokenmill.tokenizer.vision import published
from tokenmill.tokenizer.vision.weights import TokenizerLoadError, config_of, folder_of

NOTE = "converted_from.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def convert(source: str, out: Path) -> str:
    """Write the tokenizer of `source` (a folder or hub name, in BAAI's layout) under `out` with save_pretrained().

    Returns the identity of the new weights. Raises TokenizerLoadError for pickles, another layout, or when `out` holds
    anything but an earlier result.
    """
    _refuse_pickles(Path(source).expanduser())
    kind = config_of(source)["model_type"]
    if kind != published.MODEL_TYPE:
        raise TokenizerLoadError(
            f"{source}: is in transformers' layout already ({kind}); pass it as it is as tokenize.model"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / NOTE).is_file():
        raise TokenizerLoadError(f"{out}: stands there and is no earlier conversion; name a new or empty folder")
    folder = folder_of(source)
    try:
        model = published.load_published(folder)
    except (OSError, ValueError) as error:
        raise TokenizerLoadError(f"{source}: cannot be converted: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    # The note first: what an interrupted conversion leaves may be replaced.
    (out / NOTE).write_text(json.dumps({"source": source, "weights": weights_id(folder)}, indent=1))
    for stale in out.glob("*.safetensors"):
        stale.unlink()
    model.save_pretrained(out)
    return weights_id(out)


def _refuse_pickles(source: Path) -> None:
    files = [source] if source.is_file() else sorted(source.glob("*")) if source.is_dir() else []
    pickles = [file for file in files if file.suffix in _PICKLES]
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        beside = pickles[0].with_suffix(".safetensors")
        raise TokenizerLoadError(
            f"{pickles[0]}: a pickle can run any code when it is loaded, so it is not read; if you trust its source, "
            'make safetensors of it beside its config.json and convert that folder: python -c "import torch; from '
            f"safetensors.torch import save_file; w = torch.load('{pickles[0]}', map_location='cpu', "
            f"weights_only=True); save_file({{k: v.contiguous() for k, v in w.items()}}, '{beside}')\""
        )
    if source.is_file():
        raise TokenizerLoadError(f"{source}: is a file; pass the folder that holds it with its config.json")
