"""A small root whose file names and captions are markup."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console

from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.tokenizer.drawings import DRAWINGS
from tokenmill.tokenizer.shards import write_parquet

BAD = "<script>alert(1)</script><img src=x onerror=alert(2)>"


DRAWN = ("a ball <b>", "a cube")


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    """A folder with three drawings of each of DRAWN, 4x4 codes."""
    rng, rows = np.random.default_rng(0), []
    for prompt in DRAWN:
        for seed in range(3):
            codes = rng.integers(0, 4000, 16).tolist()
            row = {"sample_id": f"{prompt[2]}{seed}", "prompt": prompt, "seed": seed, "codes": codes, "model": "m"}
            rows.append(row | {"grid_h": 4, "grid_w": 4})
    folder = tmp_path_factory.mktemp("drawings")
    write_parquet(pa.Table.from_pylist(rows, schema=DRAWINGS), str(folder / "part.parquet"))
    return str(folder)


@pytest.fixture(scope="session")
def root_of_markup(tmp_path_factory):
    """The config of a root: twelve pictures of 40 to 150 px, of which those from 85 px on are kept, and a torn one."""
    folder = tmp_path_factory.mktemp("markup")
    corpus = folder / "corpus"
    corpus.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        side, name = 40 + 10 * number, f"{number}<b>&amp;'.png" if number % 2 else f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(corpus / name)
        (corpus / name).with_suffix(".txt").write_text(f"{BAD} number {number}")
    (corpus / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(40))
    config = RunConfig.model_validate(
        {
            "root": str(folder / "root"),
            "sources": [{"uri": str(corpus)}],
            "curate": {"decide": {"image_rules": {"large": "min(width_px, height_px) >= 85"}}},
            "caption": {"captioners": {"source": {"engine": "source", "rules": {"says_something": "words >= 2"}}}},
            "tokenize": {"frames": {"area_px": 1024}},
        }
    )
    run_phases(config, ("curate", "caption", "tokenize"), "run", Console(quiet=True))
    return config
