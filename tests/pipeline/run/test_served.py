"""Engine `vllm` end to end with a program that is started as `vllm serve` is, here and on Ray; and with a real one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny_models
from programs import CAPTION, eventually, lives, processes_with, program
from world import World

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import ConfigError
from tokenmill.pipeline.run.workers import Workers
from tokenmill.pipeline.serving import fleet
from tokenmill.pipeline.serving.server import ServerError
from tokenmill.stages import CaptionError

pytestmark = pytest.mark.service

MINE = "caption.captioners.mine"
HOW = f"{MINE}.resources"


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    resources = f"{{command: {program(tmp_path)}, gpus_per_server: 0, start_timeout_s: 20.0, patience_s: 60.0}}"
    made.sets += [f"{MINE}={{engine: vllm, model: {model}, resources: {resources}}}", "caption.use=[mine]"]
    return made


def captions(world: World) -> list[dict]:
    return Catalog(str(world.folder / "root")).captions.scan().to_pylist()


def servers(world: World) -> list[int]:
    """Processes of servers: programs and their keepers."""
    return [
        pid
        for pid in processes_with("--served-model-name")
        if str(world.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_servers_of_this_machine_share_the_work_and_are_gone_after_it(world, monkeypatch):
    for seed in range(30):
        world.draw(f"g{seed}", 48, 100 + seed)
    notes = world.folder / "notes"
    world.run(f"{HOW}.servers=2", f"{HOW}.args=[--fake-notes, '{notes}', --fake-delay-s, '0.05']")
    rows = captions(world)
    assert len(rows) == 34 and {(row["caption"], row["captioner"]) for row in rows} == {(CAPTION, "mine")}
    by_port = Counter(notes.read_text().split())
    assert len(by_port) == 2 and sum(by_port.values()) == 34 and min(by_port.values()) > 3
    assert not servers(world)
    logs = sorted((world.folder / "root" / "runs" / "logs").glob("server-*-mine-*.log"))
    assert len(logs) == 2 and all("serving" in log.read_text() for log in logs)

    # Neither how servers run nor where the model lies asks anything anew, or starts a server; another model does.
    moved = world.folder / "moved"
    shutil.copytree(world.folder / "model", moved)
    with monkeypatch.context() as without:
        without.setattr(Workers, "run", None)
        world.run(f"{HOW}.servers=1", f"{HOW}.args=[--fake-delay-s, '0.1']")
        world.run(f"{MINE}.model={moved}")
    assert len(list((world.folder / "root" / "runs" / "logs").glob("server-*"))) == 2
    (moved / "model.safetensors").write_bytes(b"other weights")
    world.run(f"{HOW}.args=[--fake-notes, '{notes}']")
    assert len(notes.read_text().split()) == 2 * 34


def test_on_ray_each_has_an_actor_and_ends_with_it(world, local_ray):
    notes = world.folder / "notes"
    world.run("cluster.local_rows=0", f"{HOW}.servers=2", f"{HOW}.args=[--fake-notes, '{notes}']")
    assert {row["caption"] for row in captions(world)} == {CAPTION} and len(notes.read_text().split()) == 4
    assert not servers(world)
    with pytest.raises(
        ServerError, match=r"server 0 of mine: it ended with code 3; its log, \S+, ends with\n.*serving"
    ):
        world.run(f"{HOW}.args=[--fake-unwell, --fake-dies, '0.2']", f"{MINE}.prompt=short")
    assert eventually(lambda: not servers(world))


def test_a_server_killed_in_the_middle_comes_back_and_every_medium_has_its_row(world):
    for seed in range(40):
        world.draw(f"g{seed}", 48, 100 + seed)
    notes = world.folder / "notes"

    def kill() -> None:
        eventually(lambda: notes.exists() and len(notes.read_text().split()) >= 15)
        for pid in servers(world):
            if b"keeper.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    world.run(f"{HOW}.args=[--fake-notes, '{notes}', --fake-delay-s, '0.1']", f"{HOW}.most_at_once=4")
    killing.join()
    assert len(captions(world)) == 44 and {row["caption"] for row in captions(world)} == {CAPTION}
    assert 44 < len(notes.read_text().split()) <= 44 + 4 + 1  # what was in flight, and a look whether it is well


def test_one_that_stays_down_stops_the_run_and_says_why(world):
    with pytest.raises(CaptionError, match=r"(?s)mine stopped: no answer for 2 s.*0 results are kept.*CUDA error"):
        world.run(f"{HOW}.args=[--fake-dies, '2', --fake-delay-s, '30']", f"{HOW}.restarts=0", f"{HOW}.patience_s=2.0")
    assert captions(world) == [] and not servers(world)


def test_what_can_be_known_before_is_told_before(world, monkeypatch):
    monkeypatch.setattr(fleet, "gpus_here", lambda: ["0", "1"])
    plain = world.folder / "plain"
    plain.write_text("text")
    for sets, error_type, said in [
        (f"{HOW}.command=/no/such/vllm", CaptionError, "/no/such/vllm: no such file; give the path of `vllm`"),
        (f"{HOW}.command={plain}", CaptionError, "plain: not a program that may be run"),
        (f"{MINE}.model=/no/such", CaptionError, "/no/such: no such folder"),
        (f"{HOW}.gpus_per_server=4", CaptionError, "1 servers of 4 GPUs each, and of 2 GPUs on 1 machines 0 such"),
        (f"{HOW}={{}}", ConfigError, "engine vllm needs resources.command"),
        (f"{HOW}.urls=['http://h/v1']", ConfigError, "engine vllm needs resources.command, .* and neither urls"),
        (f"{MINE}.engine=transformers", ConfigError, "engine transformers starts no server"),
    ]:
        with pytest.raises(error_type, match=said):
            world.run(sets)
        world.sets.pop()
    assert Catalog(str(world.folder / "root")).media.count() == 0


def test_gpus_are_shared_out_and_a_python_is_asked_for_its_module(world, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    world.run(f"{HOW}.gpus_per_server=1", f"{HOW}.servers=2")
    logs = sorted((world.folder / "root" / "runs" / "logs").glob("server-*-mine-*.log"))
    assert [re.findall(r"GPUs (\S+)", log.read_text()) for log in logs] == [["3"], ["5"]]
    captioner = fleet.CaptionerConfig.model_validate(
        {"engine": "vllm", "model": "a/b", "resources": {"command": sys.executable, "gpus_per_server": 2}}
    )
    command = fleet.command_of("mine", captioner)
    assert command[:4] == (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")
    assert command[-2:] == ("--tensor-parallel-size", "2") and fleet.number_of("mine", captioner, [3, 4]) == 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("local_rows", [1000, 0])
def test_no_server_outlives_its_run(world, how, local_rows):
    notes = world.folder / "notes"
    sets = [*world.sets, f"{HOW}.args=[--fake-notes, '{notes}', --fake-delay-s, '60']", "cluster.num_cpus=2"]
    command = [sys.executable, "-m", "tokenmill", "run", str(world.path)]
    command += [word for each in [*sets, f"cluster.local_rows={local_rows}"] for word in ("--set", each)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert eventually(lambda: notes.exists() or process.poll() is not None, 90) and process.poll() is None
    begun = servers(world)
    assert len(begun) == 2
    os.kill(process.pid, how)
    assert process.wait(30) == (130 if how == signal.SIGINT else -how)
    assert eventually(lambda: not any(map(lives, begun)), 20)
    time.sleep(0.2)
    assert not servers(world)


@pytest.mark.slow
def test_a_real_vllm_killed_in_the_middle_answers_for_every_picture(world, tmp_path, monkeypatch):
    """TOKENMILL_VLLM names its command; a CPU build needs no GPU."""
    command = os.environ.get("TOKENMILL_VLLM")
    if not command:
        pytest.skip("TOKENMILL_VLLM names no command of a real vLLM")
    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    for seed in range(60):
        world.draw(f"g{seed}", 64, 100 + seed)
    world.run(phases=("curate",))
    model, logs = tiny_models.save("qwen2_5_vl", tmp_path / "real"), world.folder / "root" / "runs" / "logs"
    args = "[--enforce-eager, --max-model-len, '4096', --gpu-memory-utilization, '0.2']"
    checks = "{not_empty: words >= 1}"
    resources = f"{{command: {command}, gpus_per_server: 0, args: {args}, most_at_once: 4}}"
    mine = f"engine: vllm, model: {model}, sampling: {{max_tokens: 16}}, rules: {checks}, resources: {resources}"

    def num_answers() -> int:
        return sum(log.read_text().count('completions HTTP/1.1" 200') for log in logs.glob("server-*.log"))

    def kill() -> None:
        eventually(lambda: num_answers() >= 20, 900)
        for pid in servers(world):
            if b"keeper.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    run = world.run(f"{MINE}={{{mine}}}", phases=("caption",))
    killing.join()
    rows = captions(world)
    assert len(rows) == 64 and {row["reject_reason"] for row in rows} <= {None, "not_empty"}
    assert run.reports[0].numbers["captioners"]["mine"]["tokens_out"] >= 64 and 64 <= num_answers() <= 64 + 4 + 1
    (log,) = logs.glob("server-*.log")
    assert log.read_text().count("Application startup complete") == 2 and not servers(world)


def test_a_phase_that_waits_for_its_servers_names_them(world):
    run = world.run("cluster.stall_s=1.0", f"{HOW}.args=[--fake-delay-s, '4']")
    notes = [note for report in run.reports if report.phase == "caption" for note in report.notes]
    word = r"no result for \d+ s; .+; captioner mine waits for 1 server.*: http://127\.0\.0\.1:\d+/v1 answers"
    assert any(re.fullmatch(word, note) for note in notes), notes
