"""The newest trained model of a catalog -> a folder for others: with its vision tokenizer, and a card that says what it
learned from.
"""

import yaml
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.models import newest
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.training.job import DONE, TrainResult

_CARD = """---
{header}---

# {name}

An Emu3 (arXiv 2409.18869) of {sizes}: one transformer that writes text, and pictures as codes of the
vision tokenizer inside.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
h, w = {grid_h}, {grid_w}  # rows and columns of codes
eol, eof, eov, eos = {ends}  # of a row, of the frame, of the picture, of the text

asked = processor(
    text="...",
    return_for_image_generation=True,
    ratio=f"{{w}}:{{h}}",
    image_area=64 * h * w,
    return_tensors="pt",
)
asked.pop("image_sizes")
begin = asked["input_ids"].shape[1]


def allowed(_, ids):
    at = len(ids) - begin - h * (w + 1)
    if at >= 0:
        return [[eof], [eov], [eos]][at]
    return [eol] if at % (w + 1) == w else model.vocabulary_mapping.image_tokens


made = model.generate(
    **asked,
    max_new_tokens=h * (w + 1) + 3,
    prefix_allowed_tokens_fn=allowed,
    do_sample=True,
    top_k=2048,
)
pixels = model.decode_image_tokens(image_tokens=made[:, begin:], height=h, width=w)
pictures = processor.postprocess(list(pixels.float()), return_tensors="PIL.Image.Image")
pictures["pixel_values"][0].save("picture.png")
```

## What it learned from

{data}

What was kept, by rule:

```yaml
{rules}```

## Training

{steps:,} steps, {tokens:,} tokens, in {dtype}. Mean loss of the last steps: {losses}.
"""


def export_model(config: RunConfig, out: str, license_name: str | None, console: Console) -> None:
    """Write the folder `out`. Raises CatalogError without a model, WholeModelError, TokenizerLoadError."""
    from tokenmill.training.whole import write_whole

    run_uri = newest(config.root, config.train)
    if run_uri is None:
        raise CatalogError(f"{config.root}: no trained model yet; run `tokenmill train CONFIG` first")
    result = TrainResult(**storage.read_json(storage.join(run_uri, DONE)))
    out = storage.absolute(out)
    vocabulary = storage.read_json(storage.join(result.model_uri, "vocabulary.json"))
    sizes = storage.read_json(storage.join(result.model_uri, "config.json"))
    header = {"library_name": "transformers", "pipeline_tag": "any-to-any", "tags": ["emu3"]}
    header |= {"license": license_name} if license_name else {}
    decide = config.curate.decide.model_dump(exclude_defaults=True)
    version = "an export" if result.tokens_version is None else f"version {result.tokens_version} of its tokens"
    card = _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        name=out.rstrip("/").rsplit("/", 1)[-1],
        sizes=f"{sizes['num_hidden_layers']} layers of {sizes['hidden_size']:,}, {vocabulary['codebook_size']:,} codes",
        grid_h=config.sample.grid_h,
        grid_w=config.sample.grid_w,
        ends=tuple(vocabulary[role] for role in ("eol", "eof", "eov", "eos")),
        data=f"{result.num_documents:,} documents of {version}, made by tokenmill.",
        rules=yaml.safe_dump(decide, sort_keys=False, width=110) if decide else "{}\n",
        steps=result.num_steps,
        tokens=result.num_tokens,
        dtype=result.dtype or "an unrecorded dtype",
        losses=", ".join(f"{name} {value:.3f}" for name, value in result.losses.items()),
    )
    size = write_whole(result.model_uri, config.tokenize.model, config.tokenize.frames.area_px, card, out)
    said = f"{out}: an Emu3ForConditionalGeneration of {size:,} ids, its processor, and README.md, the model card"
    console.print(said, highlight=False)
