"""Captions hidden from a corpus of drawn scenes; a captioner made of the rest writes them again."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from rich.console import Console

from tokenmill.pipeline.captioner.job import job_of
from tokenmill.pipeline.captioner.judge import asked
from tokenmill.pipeline.captioner.pairs import CAPTION, SPAN, CatalogPairs
from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.captions import Right, hide_captions, judge_captions, print_captions, true_captions
from tokenmill.pipeline.demo.scenes import write_corpus
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.stages.caption.engine import Answer, Request
from tokenmill.stages.caption.transformers_engine import TransformersEngine
from tokenmill.training.captioner import loop

RECIPE = {
    "scratch": {},
    "prompt": "short",
    "serves": "images",
    "steps": 200,
    "lr": 0.003,
    "muon_lr": 0.02,
    "weight_decay": 0.1,
}


def test_hidden_captions_are_gone_and_the_others_stay(tmp_path):
    write_corpus(tmp_path, num_images=40, num_videos=1)
    hidden = hide_captions(tmp_path)
    true = true_captions(40)
    assert len(hidden) == 30 and hidden < true.keys() and len(true) == 40
    images = tmp_path / "images"
    found = {line["file"]: line["caption"] for line in map(json.loads, (images / "captions.jsonl").open())}
    found |= {f"{file.stem}.png": file.read_text().strip() for file in images.glob("*.txt")}
    assert found == {name: caption for name, caption in true.items() if name not in hidden}
    assert len(list((tmp_path / "videos").glob("*.txt"))) == 1


def test_a_caption_is_right_where_it_is_what_was_drawn(capsys):
    true = true_captions(24)
    one, two, three, *_ = true
    found = judge_captions({one: true[one], two: f"{true[two]} too", three: None}, 24)
    assert found == Right(3, 1, 1)
    print_captions(found, Console(width=120))
    assert "33.3%" in capsys.readouterr().out


@pytest.mark.slow
def test_a_quarter_of_the_captions_teaches_the_others(tmp_path):
    """At least 95 % of the captions of 1,200 scenes, word for word; what takes how long is printed."""
    write_corpus(tmp_path / "corpus")
    hidden = hide_captions(tmp_path / "corpus")
    recipe = [f"captioner.train={json.dumps(RECIPE)}"]
    uri = tmp_path / "corpus" / "images"
    config = load(CONFIG, [f"root={tmp_path / 'root'}", f"sources.0.uri={uri}", *recipe])
    run_phases(config, ("curate",), "curate", Console(quiet=True))
    job = job_of(config)
    assert job.media.num_rows == 400
    torch.set_num_threads(2)
    how = config.captioner.resources.model_copy(update={"batch": 32})
    started, cpu = time.monotonic(), time.process_time()
    model = loop.train(job.config, how, job.train, job.held_out, str(tmp_path / "out"), key=job.key)
    trained, trained_cpu = time.monotonic() - started, time.process_time() - cpu
    assert sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) < 8 << 20

    from tokenmill import stages
    from tokenmill.pipeline.catalog.tables import Catalog

    media = Catalog(config.root).media.scan([*stages.PLACES.names, "source_caption", "metadata"])
    names = [name.rsplit("/", 1)[-1] for name in media["uri"].to_pylist()]
    for name in SPAN:
        media = media.append_column(name, pa.nulls(media.num_rows, pa.float64()))
    rows = media.append_column(CAPTION, media["media_id"]).filter([name in hidden for name in names])
    started, cpu = time.monotonic(), time.process_time()
    engine = TransformersEngine(asked(job.config, model, 64))
    pairs = CatalogPairs(job.config, rows, config.fetched)
    requests = ((n, Request(example.pictures, example.prompt)) for n in range(len(pairs)) if (example := pairs.load(n)))
    answers = dict(engine.answers(requests))
    print(f"trained in {trained:.0f} s ({trained_cpu:.0f} s of CPU), ", end="")
    print(f"captioned in {time.monotonic() - started:.0f} s ({time.process_time() - cpu:.0f} s of CPU)")
    texts = [answers[n].text if isinstance(answers[n], Answer) else None for n in range(len(pairs))]
    written = dict(zip((uri.rsplit("/", 1)[-1] for uri in rows["uri"].to_pylist()), texts, strict=True))
    found = judge_captions(written, 1600)
    print_captions(found, Console(width=120))
    assert found.num_scenes > 1150 and found.num_right / found.num_scenes >= 0.95
