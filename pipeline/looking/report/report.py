"""`tokenmill report`: one HTML file of a catalog, its runs and models, that opens anywhere and asks nobody.

It has no script and no request leaves it; texts of captions, names and errors are escaped (jinja2's autoescape), and
its pictures are drawn anew from pixels, so that nothing else of a file is in it.
"""

from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tokenmill import stages, storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.looking.query import Tables
from tokenmill.pipeline.looking.report import accounts, changes, models, rules
from tokenmill.pipeline.looking.report.media import Media
from tokenmill.pipeline.looking.report.pictures import Pictures
from tokenmill.pipeline.looking.report.tokens import token_figures

MOST_BYTES = 8_000_000
_FOR_PICTURES = 6_500_000
_SAMPLED_CODES = 2_000  # media whose codes are counted
_PACKAGES = ("tokenmill", "torch", "transformers", "ray", "pyarrow", "deltalake", "av", "opencv-python", "pillow")


def report_uri(root: str) -> str:
    """Where a run leaves it."""
    return storage.join(storage.absolute(root), "reports", "report.html")


def write_report(config: RunConfig, out: str, against: int | None = None, seed: int = 0) -> int:
    """Write the page to `out`, a path or an s3:// address; `against`: an older version. Returns its bytes.

    Raises CatalogError without a catalog, and for a version that is not there.
    """
    page = report(config, against, seed).encode("utf-8", "replace")
    if not storage.is_remote(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(out, page)
    return len(page)


def report(config: RunConfig, against: int | None = None, seed: int = 0) -> str:
    """The page as text."""
    catalog = Catalog(config.root, config.version)
    tables = Tables(catalog)
    pictures = Pictures(config.fetched, _FOR_PICTURES)
    media = Media(config, tables, pictures, seed)
    kinds = list(rules.rule_figures(config, tables))
    known = {rule.count.name for kind in kinds for rule in kind.rules}
    media.know([media_id for kind in kinds for media_id in kind.shown])
    since = None if against is None else changes.changes(tables, against)
    if since is not None:
        media.know([media_id for change in since.verdicts for media_id in change.media_ids])
    runs = accounts.runs(tables)
    return (
        _environment()
        .get_template("report.html")
        .render(
            root=catalog.root,
            version=catalog.tokens.version,
            made=datetime.now().astimezone().isoformat(" ", "seconds"),
            seed=seed,
            sampled=_SAMPLED_CODES,
            steps=accounts.funnel(tables),
            kinds=kinds,
            since=since,
            media=media,
            verdicts=media.by_verdict(known),
            groups=media.groups(),
            clips=media.clips(),
            captioned=media.captioned(),
            refused=media.refused(),
            spent=accounts.spent(config, tables),
            tokens=token_figures(config, tables, _SAMPLED_CODES),
            models=models.models(catalog.root, pictures),
            runs=runs,
            config=yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=100),
            versions=[(table.name, 0 if table.is_new else table.version) for table in catalog],
            models_used=_models_used(config),
            code=(runs[0]["code"] if runs else {}) | {name: metadata.version(name) for name in _PACKAGES},
            left_out=pictures,
        )
    )


@cache
def _environment() -> Environment:
    loader = PackageLoader("tokenmill.pipeline.looking.report", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["number"] = lambda value: "-" if value is None else f"{value:,.0f}"
    made.filters["share"] = lambda value: "-" if value is None else f"{value:.1%}"
    made.filters["meaning"] = lambda reason: stages.REASONS.get(reason, "")
    return made


def _models_used(config: RunConfig) -> list[tuple[str, Any]]:
    """What computed scores, captions and codes, as it is named."""
    clip = config.curate.clip
    found: list[tuple[str, Any]] = [("vision tokenizer", config.tokenize.model)]
    if clip.model is not None:
        found.append(("CLIP", f"{clip.model} ({stages.clip_identity(clip)[:8]})"))
    for name in config.caption.order:
        how = config.caption.all[name]
        if name != "source":
            found.append((f"captioner {name}", f"{how.model}, engine {how.engine}"))
    return found
