"""Captions in answers/s, each engine beside a plain loop over the same model or server, in one run.

    openai         aiohttp and a semaphore at fixed numbers in flight, beside engine `openai`, which finds its own; from
                   a server on this machine that answers at once, slowly, or at no more than a rate
    transformers   batches through processor and generate(), beside engine `transformers`; a Qwen2.5-VL of 0.4 M weights

Pictures are encoded before in neither: the loops do what the engines do. A slow server works on 16 at once, 50 ms each.
"""

import argparse
import asyncio
import base64
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from tokenmill.stages.caption.config import CaptionerConfig
from tokenmill.stages.caption.engine import Answer, Request
from tokenmill.stages.caption.openai_engine import OpenAiEngine
from tokenmill.storage.cpu import describe

HELPERS = Path(__file__).resolve().parent.parent / "tests" / "stages" / "caption"
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


def bare(url: str, shown: list[np.ndarray], at_once: int) -> float:
    """Answers a second of a client that retries nothing and finds out nothing."""

    async def run() -> None:
        room = asyncio.Semaphore(at_once)
        connector = aiohttp.TCPConnector(limit=0)

        async def one(session: aiohttp.ClientSession, pixels: np.ndarray) -> None:
            async with room:
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "JPEG", quality=90)
                picture = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
                content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": picture}}]
                content.append({"type": "text", "text": PROMPT})
                body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 64}
                while True:
                    async with session.post(f"{url}/chat/completions", data=json.dumps(body).encode()) as reply:
                        if reply.status == 200:
                            json.loads(await reply.read())["choices"][0]["message"]["content"]
                            return
                    await asyncio.sleep(0.05)

        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(one(session, pixels) for pixels in shown))

    started = time.perf_counter()
    asyncio.run(run())
    return len(shown) / (time.perf_counter() - started)


def ours(url: str, shown: list[np.ndarray]) -> float:
    config = {"engine": "openai", "model": "m", "sampling": {"max_tokens": 64}, "resources": {"urls": [url]}}
    engine = OpenAiEngine("bench", CaptionerConfig.model_validate(config))
    started = time.perf_counter()
    num_answers = sum(isinstance(result, Answer) for _, result in engine.answers(requests(shown)))
    seconds = time.perf_counter() - started
    assert num_answers == len(shown), engine.stopped
    engine.close()
    return num_answers / seconds


def openai(count: int, repeats: int) -> None:
    for kind, share in [("quick", 1.0), ("slow", 0.2), ("rate", 0.2)]:
        command = [sys.executable, str(HELPERS / "caption_server.py"), kind]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None and server.stdin is not None
        url, shown = server.stdout.readline().strip(), pictures(int(count * share), 64)
        try:
            fixed = {n: median(bare(url, shown, n) for _ in range(repeats)) for n in (4, 16, 64)}
            found = median(ours(url, shown) for _ in range(repeats))
        finally:
            server.stdin.close()
            server.wait()
        best = max(fixed.values())
        told = ", ".join(f"{n}: {rate:.0f}" for n, rate in fixed.items())
        print(
            f"openai, server {kind}: bare client {told}; engine {found:.0f} answers/s ({found / best:.2f} of the best)"
        )


def transformers(count: int, batch: int, repeats: int) -> None:
    import tiny_models
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tokenmill.stages.caption.transformers_engine import TransformersEngine

    shown = pictures(count, 96)
    with tempfile.TemporaryDirectory() as folder:
        name = tiny_models.save("qwen2_5_vl", Path(folder))
        config = {"engine": "transformers", "model": name, "sampling": {"max_tokens": 32}, "dtype": "float32"}
        engine = TransformersEngine(CaptionerConfig.model_validate({**config, "resources": {"batch": batch}}))
        processor = AutoProcessor.from_pretrained(name)
        processor.tokenizer.padding_side = "left"
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32).eval()

        @torch.inference_mode()
        def plain() -> int:
            num_made = 0
            for start in range(0, count, batch):
                some = [
                    [{"role": "user", "content": [{"type": "image", "image": each}, {"type": "text", "text": PROMPT}]}]
                    for each in map(Image.fromarray, shown[start : start + batch])
                ]
                how: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
                how |= {"return_tensors": "pt", "processor_kwargs": {"padding": True}}
                inputs = processor.apply_chat_template(some, **how)
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
                assert run() == count
                rates[which].append(count / (time.perf_counter() - started))
        loop, engine_rate = median(rates["plain"]), median(rates["engine"])
        ratio = engine_rate / loop
        print(f"transformers, batches of {batch}: loop {loop:.1f}, engine {engine_rate:.1f} answers/s ({ratio:.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6000, help="requests to the quick server")
    parser.add_argument("--pictures", type=int, default=96, help="of engine transformers")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(describe())
    openai(given.count, given.repeats)
    transformers(given.pictures, given.batch, given.repeats)
