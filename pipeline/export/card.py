"""The card of an exported dataset: a README.md as the Hugging Face hub reads it."""

from collections import Counter

import yaml

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig

_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_CARD = """---
{header}---

# {name}

{counts}, {captioned:,} of them with a caption. Chosen by tokenmill from
{sources}, version {version} of its catalog.

## Columns

| column | what it is |
| --- | --- |
| image, video | the file: an image as it was found, a clip cut at its frames and encoded anew, without sound |
| caption | the one that training reads of it |
| media_id | by which the catalog knows it: of an image, the hash of its bytes |
| source | the file or URL that it came from, and its name inside a container |
| metadata | what stood beside it there, as JSON |

## How it was chosen

{rejected}

The rules, each saying what is kept:

```yaml
{rules}```

Captions: {captioners}.

## Licence and rights

{licence} `source` says of each row where it came from. Whoever passes these media on answers for the rights in them,
and for the people whom they show.
"""


def licence_of(card: str) -> str | None:
    """What a card says of it, as `dataset_card` wrote it."""
    parts = card.split("---\n")
    said = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    known = said.get("license") if isinstance(said, dict) else None
    return None if known == "other" else known


def dataset_card(
    config: RunConfig, catalog: Catalog, counts: Counter[str], captioned: int, license_name: str | None
) -> str:
    """Of what is exported: `counts` by kind."""
    name = catalog.root.rstrip("/").rsplit("/", 1)[-1]
    total = counts.total()
    header = {
        "license": license_name or "other",
        "task_categories": ["text-to-image", "image-to-text"],
        "size_categories": [next((words for most, words in _SIZES if total < most), "n>10M")],
        "configs": [
            {"config_name": folder, "data_files": f"{folder}/*.parquet"}
            for kind, folder in (("image", "images"), ("video", "clips"))
            if counts[kind]
        ],
    }
    media = catalog.media.scan(["reject_reason"])["reject_reason"]
    reasons = Counter(reason for reason in media.to_pylist() if reason is not None)
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()) or "nothing"
    decide = config.curate.decide.model_dump(exclude_defaults=True)
    return _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        name=name,
        counts=f"{counts['image']:,} images and {counts['video']:,} clips",
        captioned=captioned,
        sources=", ".join(source.uri for source in config.sources),
        version=0 if catalog.tokens.is_new else catalog.tokens.version,
        rejected=f"Of {len(media):,} media that were found were rejected: {rejected}; copies stand once.",
        rules=yaml.safe_dump(decide, sort_keys=False, width=110) if decide else "{}\n",
        captioners=", ".join(config.caption.order),
        licence=f"The licence of the whole: {license_name}." if license_name else "No licence was said for the whole.",
    )
