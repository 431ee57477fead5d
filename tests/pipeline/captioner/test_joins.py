"""`captioner train` on examples of captions put together: a language model learns them, looking at nothing."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from tokenmill.pipeline.captioner.job import job_of
from tokenmill.pipeline.captioner.joins import examples_of
from tokenmill.pipeline.captioner.train import train_captioner
from tokenmill.pipeline.config import ConfigError, RunConfig, load
from tokenmill.stages import CaptionerConfig
from tokenmill.stages.caption.engines.engine import Request
from tokenmill.stages.caption.engines.transformers_engine import TransformersEngine
from tokenmill.training.captioner import loop
from tokenmill.training.captioner.pairs import is_held_out

PROMPT = "version: 1\n\nPage: {metadata}\n{captions}\nJoin."
NAMES = ("Ada", "Bela", "Chen", "Dora")
SEEN = ("a red circle", "a blue square", "a green triangle", "a black circle")


def lines() -> list[dict]:
    return [
        {"captions": {"source": f"{name} no. {i}", "seen": seen}, "metadata": {"i": i}, "caption": f"{seen} by {name}"}
        for i in range(3)
        for name in NAMES
        for seen in SEEN
    ]


def made(tmp_path: Path, examples: list[dict] | None = None, **train: object) -> RunConfig:
    """A config whose source does not even exist: nothing of it is looked at."""
    (tmp_path / "join.md").write_text(PROMPT)
    written = lines() if examples is None else examples
    (tmp_path / "joins.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    document = {
        "root": str(tmp_path / "root"),
        "sources": [{"uri": str(tmp_path / "nowhere")}],
        "captioner": {
            "train": {
                "joins": str(tmp_path / "joins.jsonl"),
                "scratch": {"hidden_size": 32, "text_layers": 1, "vocab_size": 320},
                "ask": {"prompt": str(tmp_path / "join.md"), "max_tokens": 24},
                "optimizer": {"steps": 4, "batch": 6, "lr": 0.003, "muon_lr": 0.02},
                "held_out_share": 0.2,
                **train,
            },
            "resources": {"num_workers": 1, "cpus_per_worker": 0.5, "checkpoint_steps": 2},
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(document))
    return load(tmp_path / "config.yaml")


def test_a_language_model_learns_to_join_and_an_engine_takes_it(local_ray, tmp_path, capsys):
    config = made(tmp_path)
    model = Path(train_captioner(config, Console(width=300)))
    assert "held-out examples captioned" in capsys.readouterr().out
    told = [json.loads(line) for line in (model.parent / "held_out.jsonl").open()]
    figures = json.loads((model.parent / "figures.json").read_text())
    assert len(told) == figures["held_out"] == figures["judged"] > 0 and figures["trained_on"] + len(told) == 48
    assert {line["true"] for line in told} <= {line["caption"] for line in lines()}
    assert json.loads((model / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]

    train_captioner(config, Console(width=300))
    said = capsys.readouterr().out
    assert "Trained already" in said and "reads: [source, seen]" in said
    one = CaptionerConfig(engine="transformers", model=str(model), prompt=str(tmp_path / "join.md"), reads=("seen",))
    (answer,) = dict(TransformersEngine(one).answers(iter([(0, Request([], 'Page: "x"'))]))).values()
    assert answer.tokens_in > 0

    tuned = made(tmp_path, scratch=None, model=str(model), optimizer={"steps": 1, "batch": 4})
    job, log = job_of(tuned), list[dict]()
    loop.train(
        job.config,
        config.captioner.resources,
        job.train,
        job.held_out,
        str(tmp_path / "tuned"),
        key="k",
        on_step=log.append,
    )
    assert log[0]["train"] < 7, "it goes on from given weights"


def test_the_loss_is_on_the_answers_and_falls(tmp_path):
    config = made(
        tmp_path, optimizer={"steps": 60, "batch": 16, "lr": 0.003, "muon_lr": 0.02, "warmup_steps": 2}, dtype="float32"
    )
    job, log = job_of(config), list[dict]()
    assert job.names == ["source", "seen"]
    where, how = str(tmp_path / "alone"), config.captioner.resources
    loop.train(job.config, how, job.train, job.held_out, where, key=job.key, on_step=log.append)
    assert log[-1]["train"] < 2 < 5 < log[0]["train"]


def test_examples_are_rows_by_their_inputs(tmp_path):
    twice = [*lines(), {**lines()[0], "caption": "the newer one"}]
    job = job_of(made(tmp_path, twice))
    assert job.rows.num_rows == 48 and "the newer one" in job.rows["answer"].to_pylist()
    example = job.train.load(0)
    assert example.pictures == [] and example.prompt.startswith('Page: "\\u007b\\"i\\"') and '"a ' in example.prompt
    ids = job.held_out.rows["media_id"].to_pylist()
    assert ids and all(is_held_out(i, 0.2) for i in ids)
    assert job_of(made(tmp_path)).key != job.key
    assert job_of(made(tmp_path, twice, seed=1)).key != job.key
    (tmp_path / "elsewhere.jsonl").write_bytes((tmp_path / "joins.jsonl").read_bytes())
    moved = made(tmp_path, twice, joins=str(tmp_path / "elsewhere.jsonl"))
    assert job_of(moved).key == job.key


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: no JSON"),
        ('{"caption": "x"}', "line 2: needs captions"),
        ('{"captions": {}, "caption": "x"}', "line 2: needs captions"),
        ('{"captions": {"a": 3}, "caption": "x"}', "line 2: needs captions"),
        ('{"captions": {"a": "b"}, "caption": " "}', "line 2: needs captions"),
        ('{"captions": {"a": "b"}, "caption": "x", "url": "u"}', "line 2: unknown key 'url'"),
    ],
)
def test_a_malformed_example_is_named(tmp_path, line, said):
    file = tmp_path / "joins.jsonl"
    file.write_text(json.dumps(lines()[0]) + "\n" + line + "\n\n")
    with pytest.raises(ConfigError, match=said):
        examples_of(str(file))


def test_what_cannot_be_trained_is_said_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="joins=.*no line in it"):
        job_of(made(tmp_path, []))
    with pytest.raises(ConfigError, match="joins=.*gone.jsonl: cannot be read"):
        job_of(made(tmp_path, joins=str(tmp_path / "gone.jsonl")))
    with pytest.raises(ConfigError, match="ask.prompt=dense: to put captions together it must hold"):
        train_captioner(made(tmp_path, ask={"prompt": "dense"}), Console(quiet=True))
    with pytest.raises(ConfigError, match="joins has the captions"):
        made(tmp_path, captions="own")
