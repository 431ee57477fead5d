"""Metrics of a run as Prometheus scrapes them off a real Ray node; the dashboard asks for none that does not exist."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import ray.dashboard.modules.reporter.reporter_agent as reporter
from ray_cluster import free_ports, ray_cluster

PROJECT = Path(__file__).resolve().parents[3]
DASHBOARD = json.loads((PROJECT / "deploy" / "grafana.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAMES = sorted({name for query in QUERIES for name in re.findall(r"ray_\w+", query)})
RUN = """
import sys, time
from pathlib import Path
import ray
from PIL import Image
from rich.console import Console
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.run.runner import run_phases

folder, address = Path(sys.argv[1]), sys.argv[2]
(folder / "in").mkdir()
for number in range(40):
    Image.new("RGB", (64 + number, 64), (number, 90, 40)).save(folder / "in" / f"{number}.png")
(folder / "in" / "bad.png").write_bytes(b"")
config = {
    "root": str(folder / "root"),
    "sources": [{"uri": str(folder / "in")}],
    "curate": {"decide": {"image_rules": {"wide": "width_px >= 70"}, "video_rules": {"all": "true"}}},
    "cluster": {"address": address, "local_rows": 0},
}
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
run = run_phases(RunConfig.model_validate(config), ("curate",), "run", Console(quiet=True))
from tokenmill.pipeline.reports.progress import Progress
run.workers.observe(Progress("train", "steps", 3, 9,
    rate=2.0, left_s=3.0, numbers={"loss": 2.5, "text": 2.0, "image": 3.0, "tokens_per_s": 1234.0, "mfu": 0.41}))
print(run.run_id, flush=True)
sys.stdin.readline()
"""


def test_each_panel_has_a_query_and_a_word():
    assert len(DASHBOARD["panels"]) >= 12 and len({panel["id"] for panel in DASHBOARD["panels"]}) == len(
        DASHBOARD["panels"]
    )
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in DASHBOARD["panels"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus here (Debian's package of that name)")
def test_prometheus_finds_what_the_dashboard_asks_for(tmp_path):
    (port,) = free_ports(1)
    with ray_cluster({}) as (_, address, folder):
        nodes = folder / "prom_metrics_service_discovery.json"
        settings = {
            "global": {"scrape_interval": "2s"},
            "scrape_configs": [
                {"job_name": "ray", "file_sd_configs": [{"files": [str(nodes)], "refresh_interval": "2s"}]}
            ],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(settings))  # YAML holds JSON
        command = [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
        ]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        with (tmp_path / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        driver = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path), address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            run_id = driver.stdout.readline().strip()
            assert run_id, "the run failed"
            of_gpus = {f"ray_{name}" for name in reporter.METRICS_GAUGES if "gpu" in name}
            wanted = [
                query.replace("$run", ".*") for query in QUERIES if not set(re.findall(r"ray_\w+", query)) & of_gpus
            ]
            assert {name for name in NAMES if "gpu" in name} <= of_gpus, "Ray has no such metric of GPUs"
            deadline = time.monotonic() + 90
            while missing := [query for query in wanted if not answer(port, query)]:
                assert time.monotonic() < deadline, missing
                time.sleep(2)
            rejected = {each["metric"]["reason"]: each["value"][1] for each in answer(port, "ray_tokenmill_rejected")}
            assert rejected == {"wide": "6", "empty_file": "1"}
            (kept,) = answer(port, f'ray_tokenmill_kept{{run="{run_id}", phase="curate"}}')
            assert kept["value"][1] == "34"
            (num_bytes,) = answer(port, "sum(ray_tokenmill_read_bytes_total)")
            assert float(num_bytes["value"][1]) == sum(file.stat().st_size for file in (tmp_path / "in").iterdir())
        finally:
            driver.stdin.close()
            driver.wait(60)
            server.terminate()
            server.wait(30)


def answer(port: int, query: str) -> list[dict]:
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(io.TextIOWrapper(reply))["data"]["result"]
    except OSError:
        return []  # it has only just begun
