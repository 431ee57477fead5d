"""Captions hidden from a corpus of drawn scenes; a captioner made of the rest writes them again."""

import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.captions import (
    Right,
    hide_captions,
    judge_captions,
    print_captions,
    true_captions,
    with_own_captioner,
    written_captions,
)
from tokenmill.pipeline.demo.scenes import write_corpus
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.pipeline.run.runner import run_phases


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
    found = judge_captions({one: true[one], two: f"{true[two]} too", three: None}, true)
    assert found == Right(3, 1, 1)
    print_captions({"own": found}, Console(width=120))
    said = capsys.readouterr().out
    assert "own" in said and "33.3%" in said


@pytest.mark.slow
def test_a_quarter_of_the_captions_teaches_the_others(local_ray, tmp_path):
    """At least 95 % of the captions of 1,200 scenes, word for word; what takes how long is printed."""
    write_corpus(tmp_path / "corpus")
    hidden = hide_captions(tmp_path / "corpus")
    uri = tmp_path / "corpus" / "images"
    config = load(CONFIG, [f"root={tmp_path / 'root'}", f"sources.0.uri={uri}"])
    run_phases(config, ("curate",), "curate", Console(quiet=True))
    console, started = Console(width=120), time.monotonic()
    with with_own_captioner(config, console) as captioned:
        print(f"trained and judged in {time.monotonic() - started:.0f} s")
        started = time.monotonic()
        run_phases(captioned, ("caption",), "caption", console)
        print(f"captioned in {time.monotonic() - started:.0f} s")
        model = Path(captioned.caption.captioners["own"].model)
    assert sum(file.stat().st_size for file in model.glob("*.safetensors")) < 8 << 20
    written = written_captions(config.root)
    found = judge_captions(written, true_captions(1600))
    print_captions({"own": found}, console)
    assert written.keys() == hidden and found.num_right / found.num_scenes >= 0.95
    with with_own_captioner(config, console) as again:
        assert again == captioned, "trained once"
