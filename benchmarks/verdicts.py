"""How well stored scores tell text pages, monochrome images, near-duplicates and static videos: precision and recall.

The truth is the `tags` column of a manifest (`file`, `kind`, `tags`) beside the media. Every score is computed by the
stages as the shipped configs run them; the thresholds are those of configs/emu3_images.yaml and emu3_videos.yaml.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import csv
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa

from tokenmill.pipeline.config import load
from tokenmill.pipeline.run.pools import curate_stages
from tokenmill.stages.table.chain import Chain
from tokenmill.stages.table.columns import LISTED

BATCH = 16


def scores(config_name: str, paths: list[Path]) -> list[dict]:
    """All scores of the media in `paths`, by the stages of a shipped config."""
    config = load(Path("configs") / config_name, ["curate.all_scores=true"])
    chain = Chain(curate_stages(config).stages)
    rows: list[dict] = []
    for first in range(0, len(paths), BATCH):
        uris = [str(path.resolve()) for path in paths[first : first + BATCH]]
        listed = {"uri": uris, "size_bytes": [0] * len(uris), "source_caption": [None] * len(uris)}
        rows += chain(pa.table(listed, schema=LISTED)).to_pylist()
    return rows


def line(name: str, said: list[bool], true: list[bool]) -> str:
    hits = sum(a and b for a, b in zip(said, true, strict=True))
    precision, recall = hits / max(1, sum(said)), hits / max(1, sum(true))
    return f"{name:42} {sum(true):5} {precision:10.2f} {recall:7.2f}"


def group_of(tags: set[str]) -> str | None:
    return next((tag for tag in tags if tag.startswith("near_dup:")), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="media with a manifest.csv")
    parser.add_argument("--wrong", action="store_true", help="list every medium with its text, flow and tags")
    options = parser.parse_args()
    with (options.data / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["file"].startswith("bad/")]
    tags = {str((options.data / row["file"]).resolve()): set(row["tags"].split(";")) for row in rows}
    files = {kind: [options.data / row["file"] for row in rows if row["kind"] == kind] for kind in ("image", "video")}

    images = [row for row in scores("emu3_images.yaml", files["image"]) if row["phash"]]
    videos = [row for row in scores("emu3_videos.yaml", files["video"]) if row["phash"]]
    if options.wrong:
        for row in sorted(images + videos, key=lambda row: -(row["text_area"] or 0)):
            print(f"{row['text_area'] or 0:.3f} {row['flow'] or -1:.4f} {Path(row['uri']).name} {tags[row['uri']]}")
    print(f"{len(images)} images, {len(videos)} clips that decode\n{'':42} {'true':>5} {'precision':>10} {'recall':>7}")

    has = [tags[row["uri"]] for row in images]
    mixed = [{"text_heavy", "text_some"} & each for each in has]
    for share in (0.02, 0.05, 0.1):
        print(line(f"text pages: text_area > {share}", *_either(images, "text_area", share, mixed, "text_heavy")))
    grey = [row["chroma"] < 1 for row in images]
    print(line("monochrome: chroma < 1", grey, ["monochrome" in each for each in has]))
    for radius in (4, 6, 8, 10):
        print(line(f"near-duplicate pairs: Hamming <= {radius}", *pairs(images, has, radius)))
    for floor in (0.002, 0.01, 0.04):
        still = [row["flow"] is None or row["flow"] < floor for row in videos]
        print(line(f"static clips: flow < {floor}", still, ["static" in tags[row["uri"]] for row in videos]))
    wordy = [(row["text_area"] or 0) > 0.02 for row in videos]
    true = [bool({"text_heavy", "text_overlay", "subtitles"} & tags[row["uri"]]) for row in videos]
    print(line("clips with text: text_area > 0.02", wordy, true))


def _either(
    rows: list[dict], name: str, threshold: float, mixed: list[set[str]], tag: str
) -> tuple[list[bool], list[bool]]:
    """Verdicts and truth, without the rows that are neither one nor the other."""
    clear = [i for i, found in enumerate(mixed) if not found or tag in found]
    return [rows[i][name] > threshold for i in clear], [tag in mixed[i] for i in clear]


def pairs(rows: list[dict], has: list[set[str]], radius: int) -> tuple[list[bool], list[bool]]:
    hashes = np.array([int(row["phash"], 16) for row in rows], np.uint64)
    said, true = [], []
    for a, b in combinations(range(len(rows)), 2):
        said.append(int(np.bitwise_count(hashes[a] ^ hashes[b])) <= radius)
        true.append(group_of(has[a]) is not None and group_of(has[a]) == group_of(has[b]))
    return said, true


if __name__ == "__main__":
    main()
