"""Captions in answers/s, each engine beside a plain loop over the same model or server, in one run.

    openai         aiohttp and a semaphore at fixed numbers in flight, beside engine `openai`, which finds its own; from
                   a server on this machine that answers at once, slowly, or at no more than a rate
    vllm           the same from a real vLLM (`--vllm COMMAND`), started as engine `vllm` starts it, with that model
    transformers   batches through processor and generate(), beside engine `transformers`; a Qwen2.5-VL of 0.4 M weights
    memory         resident memory of the client over `--memory` requests

Pictures are encoded before in neither: the loops do what the engines do. A slow server works on 16 at once, 50 ms each.
Client and server share the CPUs, so CPU time of the client for each answer stands beside the rate.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from tokenmill.pipeline.serving import fleet
from tokenmill.stages.caption.captioners.config import CaptionerConfig
from tokenmill.stages.caption.engines.engine import Answer, Request
from tokenmill.stages.caption.engines.openai_engine import OpenAiEngine
from tokenmill.storage.cpu import describe

HELPERS = Path(__file__).resolve().parent.parent / "tests" / "stages" / "caption"
VLLM_ARGS = ["--enforce-eager", "--max-model-len", "4096", "--gpu-memory-utilization", "0.2"]
PROMPT = "Describe this picture in one sentence."
sys.path.insert(0, str(HELPERS))


def pictures(count: int, side_px: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    shown = [np.asarray(Image.fromarray(each).resize((side_px, side_px))) for each in small]
    return [shown[i % len(shown)] for i in range(count)]


def requests(shown: list[np.ndarray]) -> Iterator[tuple[int, Request]]:
    for i, pixels in enumerate(shown):
        yield i, Request([pixels], PROMPT)


def bare(url: str, model: str, shown: list[np.ndarray], at_once: int) -> float:
    """Answers a second of a client that retries nothing and finds out nothing."""

    async def run() -> None:
        room = asyncio.Semaphore(at_once)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)  # uvicorn closes idle ones after five seconds

        async def one(session: aiohttp.ClientSession, pixels: np.ndarray) -> None:
            async with room:
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "JPEG", quality=90)
                picture = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
                content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": picture}}]
                content.append({"type": "text", "text": PROMPT})
                body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 64}
                body |= {"temperature": 0.0}
                while True:
                    async with session.post(f"{url}/chat/completions", data=json.dumps(body).encode()) as reply:
                        if reply.status == 200:
                            json.loads(await reply.read())["choices"][0]["message"]["content"]
                            return
                        assert reply.status == 429, await reply.text()
                    await asyncio.sleep(0.05)

        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            await asyncio.gather(*(one(session, pixels) for pixels in shown))

    started = time.perf_counter()
    asyncio.run(run())
    return len(shown) / (time.perf_counter() - started)


def engine_of(url: str, model: str, engine: str = "openai", most: int = 256) -> OpenAiEngine:
    resources = {"urls": [url], "most_at_once": most}
    config = {"engine": "openai", "model": model, "sampling": {"max_tokens": 64}, "resources": resources}
    return OpenAiEngine("bench", CaptionerConfig.model_validate(config).model_copy(update={"engine": engine}))


def ours(url: str, model: str, shown: list[np.ndarray], at_once: int | None = None) -> float:
    """Of the engine; `at_once`: held at this number in flight."""
    engine = engine_of(url, model, "openai" if model == "m" else "vllm", at_once or 256)
    if at_once is not None:
        engine._servers.all[0].level.limit = at_once
    started = time.perf_counter()
    num_answers = sum(isinstance(result, Answer) for _, result in engine.answers(requests(shown)))
    seconds = time.perf_counter() - started
    assert num_answers == len(shown), engine.stopped
    engine.close()
    return num_answers / seconds


class Rates:
    """Answers a second and CPU microseconds an answer, of several clients in turns."""

    def __init__(self, clients: dict[str, Callable[[], float]], count: int, repeats: int):
        self.rates: dict[str, list[float]] = {name: [] for name in clients}
        self.cpu_us: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(repeats):  # forth and back: a server that warms up favours who comes last
            for name, run in list(clients.items())[:: -1 if number % 2 else 1]:
                started = time.process_time()
                self.rates[name].append(run())
                self.cpu_us[name].append(1e6 * (time.process_time() - started) / count)

    def tell(self, what: str) -> None:
        rate = {name: median(rates) for name, rates in self.rates.items()}
        found = rate.pop("engine")
        held = {name: rate.pop(name) for name in list(rate) if name.startswith("engine ")}
        best = max(rate.values())
        cpu = {name: median(each) for name, each in self.cpu_us.items()}
        told = ", ".join(f"{name}: {each:.0f}" for name, each in rate.items())
        print(
            f"{what}: bare client, in flight {told}; engine {found:.0f} answers/s ({found / best:.2f} of the best, "
            f"{found / max(held.values()):.2f} of the best of itself held at these); "
            f"CPU of the client {min(cpu[name] for name in rate):.0f} us an answer, engine {cpu['engine']:.0f}",
            flush=True,
        )


def compared(url: str, model: str, shown: list[np.ndarray], in_flight: tuple[int, ...], repeats: int) -> Rates:
    clients: dict[str, Callable[[], float]] = {str(n): partial(bare, url, model, shown, n) for n in in_flight}
    clients |= {f"engine {n}": partial(ours, url, model, shown, n) for n in in_flight}
    return Rates(clients | {"engine": partial(ours, url, model, shown)}, len(shown), repeats)


@contextmanager
def scripted(kind: str) -> Iterator[str]:
    command = [sys.executable, str(HELPERS / "caption_server.py"), kind]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdin is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.stdin.close()
        server.wait()


def openai(count: int, repeats: int) -> None:
    for kind, share in [("quick", 1.0), ("slow", 0.5), ("rate", 0.3)]:
        with scripted(kind) as url:
            compared(url, "m", pictures(int(count * share), 64), (4, 16, 64), repeats).tell(f"openai, server {kind}")


def vllm(command: str, count: int, repeats: int) -> None:
    import tiny_models

    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.save("qwen2_5_vl", Path(folder) / "model")
        resources = {"command": command, "gpus_per_server": 0, "args": VLLM_ARGS}
        config = CaptionerConfig.model_validate({"engine": "vllm", "model": model, "resources": resources})
        with fleet.fleet("bench", config, 1, f"{folder}/server", fleet.held_here(0)) as (server,):
            url, shown = server.ready(), pictures(count, 96)
            bare(url, model, shown, 64)
            compared(url, model, shown, (64, 128, 256), repeats).tell("vllm")


def memory(count: int) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    shown, said = pictures(64, 64), dict[int, int]()
    with scripted("quick") as url:
        engine = engine_of(url, "m")
        rows = ((i, Request([shown[i % len(shown)]], PROMPT)) for i in range(count))
        for number, _ in enumerate(engine.answers(rows), 1):
            if number % (count // 10) == 0:
                said[number] = int(Path("/proc/self/statm").read_text().split()[1]) * page >> 20
        engine.close()
    print("memory: " + ", ".join(f"{number} answers: {mb} MB" for number, mb in said.items()), flush=True)


def transformers(count: int, batch: int, repeats: int) -> None:
    import tiny_models

    with tempfile.TemporaryDirectory() as folder:
        name = tiny_models.save("qwen2_5_vl", Path(folder))
        loop, engine_rate = beside_loop(name, pictures(count, 96), batch, repeats, "float32", "cpu")
    ratio = engine_rate / loop
    print(f"transformers, batches of {batch}: loop {loop:.1f}, engine {engine_rate:.1f} answers/s ({ratio:.2f})")


def beside_loop(
    name: str, shown: list[np.ndarray], batch: int, repeats: int, dtype: str, device: str
) -> tuple[float, float]:
    """Answers per second of a plain loop over that model, and of engine `transformers`, in turns."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tokenmill.stages.caption.engines.transformers_engine import TransformersEngine

    config = {"engine": "transformers", "model": name, "sampling": {"max_tokens": 32}, "dtype": dtype}
    engine = TransformersEngine(CaptionerConfig.model_validate({**config, "resources": {"batch": batch}}))
    processor = AutoProcessor.from_pretrained(name)
    processor.tokenizer.padding_side = "left"
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=getattr(torch, dtype)).eval().to(device)

    @torch.inference_mode()
    def plain() -> int:
        num_made = 0
        for start in range(0, len(shown), batch):
            some = [
                [{"role": "user", "content": [{"type": "image", "image": each}, {"type": "text", "text": PROMPT}]}]
                for each in map(Image.fromarray, shown[start : start + batch])
            ]
            how: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
            how |= {"return_tensors": "pt", "processor_kwargs": {"padding": True}}
            inputs = processor.apply_chat_template(some, **how).to(device, dtype=model.dtype)
            made = model.generate(**inputs, max_new_tokens=32, do_sample=False)
            texts = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            num_made += len(texts)
        return num_made

    def engine_s() -> int:
        return sum(isinstance(result, Answer) for _, result in engine.answers(requests(shown)))

    rates: dict[str, list[float]] = {"plain": [], "engine": []}
    both: dict[str, Callable[[], int]] = {"plain": plain, "engine": engine_s}
    plain()
    for _ in range(repeats):
        for which, run in both.items():
            started = time.perf_counter()
            assert run() == len(shown)
            rates[which].append(len(shown) / (time.perf_counter() - started))
    return median(rates["plain"]), median(rates["engine"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6000, help="requests to the quick server; 0: none")
    parser.add_argument("--vllm", help="the command of a real vLLM; on a CPU with VLLM_CPU_KVCACHE_SPACE=1")
    parser.add_argument("--vllm-count", type=int, default=800)
    parser.add_argument("--pictures", type=int, default=96, help="of engine transformers; 0: none")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--memory", type=int, default=100_000, help="requests; 0: none")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(describe(), flush=True)
    if given.count:
        openai(given.count, given.repeats)
    if given.vllm:
        vllm(given.vllm, given.vllm_count, given.repeats)
    if given.pictures:
        transformers(given.pictures, given.batch, given.repeats)
    if given.memory:
        memory(given.memory)
