"""The report of a catalog of so many media: seconds, peak memory, and the size of its page.

Media are rows without a run: a fifth is rejected by each of three rules, one in a hundred is a near copy, and all are
the same 300 photos of 1,024 px, so that pictures are read and decoded as those of a corpus are.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from refresh import rows_of
from rich.console import Console

from tokenmill.pipeline.catalog.shard_files import SCHEMAS
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.looking.report.report import write_report
from tokenmill.storage import cpu

SHARD_ROWS = 100_000
NUM_PHOTOS, SIDE_PX = 300, 1_024
RULES = {"sharp": "sharpness >= 20", "in_colour": "colourfulness >= 12", "pleasing": "aesthetic >= 4.5"}


def photos(folder: Path) -> list[str]:
    """Smooth noise, about as large in bytes as photos are."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(NUM_PHOTOS):
        small = Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8))
        path = folder / f"{number:04d}.jpg"
        small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(path, quality=90)
        found.append(str(path))
    return found


def fill(config: RunConfig, num_media: int, files: list[str]) -> None:
    """Rows of all tables."""
    catalog = Catalog(config.root)
    catalog.create()
    rng = np.random.default_rng(0)
    for start in range(0, num_media, SHARD_ROWS):
        count = min(SHARD_ROWS, num_media - start)
        ids = [f"{number:032x}" for number in rng.integers(1 << 62, size=count)]
        uris = [files[number] for number in rng.integers(0, len(files), count)]
        same = {"media_id": ids, "file_id": ids, "kind": "image", "run_id": "r", "fingerprint": "f", "uri": uris}
        scores = {
            "sharpness": rng.gamma(2.0, 60.0, count),
            "colourfulness": rng.gamma(2.0, 25.0, count),
            "aesthetic": rng.normal(5.2, 0.8, count),
            "similarity": rng.normal(0.27, 0.04, count),
        }
        fails = {"sharp": scores["sharpness"] < 20, "in_colour": scores["colourfulness"] < 12}
        fails["pleasing"] = scores["aesthetic"] < 4.5
        reasons = np.full(count, None, object)
        for name in reversed(fails):
            reasons[fails[name]] = name
        details = [None if reason is None else f"rule: {RULES[reason]}" for reason in reasons]
        kept = np.flatnonzero(reasons == None)  # noqa: E711
        of_kept = {"media_id": [ids[place] for place in kept], "kind": "image", "run_id": "r", "fingerprint": "f"}
        judged = {"reject_reason": list(reasons), "reject_detail": details, "width_px": SIDE_PX, "height_px": SIDE_PX}
        texts = [f"a photo of number {place} in the {place % 97}th street" for place in kept]
        grid = {"codes": pa.repeat(pa.scalar(list(range(64)), pa.list_(pa.uint16())), len(kept))}
        grid |= {"grid_t": 1, "grid_h": 8, "grid_w": 8, "caption": texts}
        is_copy = rng.random(len(kept)) < 0.01
        stands = [
            of_kept["media_id"][0] if copy else own for own, copy in zip(of_kept["media_id"], is_copy, strict=True)
        ]
        methods = ["near" if copy else "kept" for copy in is_copy]
        for name, values in {
            "sources": same | {"etag": ids, "size_bytes": 200_000, "status": "present", "last_seen_run": "r"},
            "media": same | scores | judged,
            "duplicates": of_kept | {"duplicate_of": stands, "method": methods, "distance": 3.0},
            "captions": of_kept | {"caption": texts, "captioner": "source", "words": 8},
            "tokens": of_kept | grid,
        }.items():
            num_rows = count if name in ("sources", "media") else len(kept)
            getattr(catalog, name).append(rows_of(SCHEMAS[name], num_rows, values), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="kept, and used again; default: one that is deleted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        decide = {"image_rules": RULES}
        config = RunConfig.model_validate(
            {"root": str(folder / "root"), "sources": [{"uri": str(folder)}], "curate": {"decide": decide}}
        )
        if not (folder / "root").exists():
            folder.mkdir(parents=True, exist_ok=True)
            fill(config, options.media, photos(folder))
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.monotonic()
        size = write_report(config, str(folder / "report.html"))
        seconds = time.monotonic() - started
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Console(width=120).print(
        f"{cpu.describe()}: report of {options.media:,} media in {seconds:.1f} s, {size / 1e6:.1f} MB; peak memory "
        f"{peak_mb:,.0f} MB ({before_mb:,.0f} before)"
    )


if __name__ == "__main__":
    main()
