"""Peak memory of the head's loss at Emu3's 184,622 classes, beside plain cross-entropy on all logits.

    ours     training/model/loss.py, forward and backward
    plain    `F.cross_entropy(hidden @ weight.T, targets)`; of 40,960 tokens the logits alone would be 30 GB, so it is
             measured at `--plain-tokens`, and ours once more at as many

Each is a process of its own. Its figure is the highest resident memory (VmHWM) less that before the first tensor, over
what no loss can do without: hidden states and weight with their gradients, float32, 8 (N D + V D) bytes. Goal: 1.2.
`bfloat16` is autocast: hidden states and weight stay float32, products are bfloat16. Seconds are wall time of both
passes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

from tokenmill.storage import cpu
from tokenmill.training.model.loss import linear_cross_entropy

CLASSES = 184_622
GOAL = 1.2


def rss_bytes(field: str) -> int:
    """VmRSS, memory that is resident now, or VmHWM, its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def one(who: str, tokens: int, width: int, classes: int, dtype: str) -> dict[str, float]:
    """Measured in this process."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):  # libraries allocate at their first use
        linear_cross_entropy(torch.ones(2, 8), torch.ones(9, 8), torch.zeros(2).long(), torch.ones(2))
    before = rss_bytes("VmRSS")
    hidden = torch.empty(tokens, width).normal_().requires_grad_()
    weight = torch.empty(classes, width).normal_(std=0.02).requires_grad_()
    targets, weights = torch.randint(0, classes, (tokens,)), torch.full((tokens,), 0.5)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        if who == "ours":
            loss = linear_cross_entropy(hidden, weight, targets, weights)[0]
        else:
            loss = functional.cross_entropy(hidden @ weight.T, targets, reduction="sum") * 0.5
    (loss / tokens).backward()
    seconds = time.perf_counter() - started
    assert weight.grad is not None
    least = 8 * (tokens + classes) * width
    peak = rss_bytes("VmHWM") - before
    return {"loss": loss.item() / tokens, "seconds": seconds, "peak": peak, "least": least, "times": peak / least}


def apart(who: str, tokens: int, options: argparse.Namespace, dtype: str) -> dict[str, float]:
    """The same in a process of its own."""
    sizes = [str(number) for number in (tokens, options.width, options.classes)]
    command = [sys.executable, __file__, "--one", who, *sizes, dtype]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=40_960)
    parser.add_argument("--plain-tokens", type=int, default=2_048)
    parser.add_argument("--width", type=int, default=1_024)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        who, tokens, width, classes, dtype = options.one
        print(json.dumps(one(who, int(tokens), int(width), int(classes), dtype)))
        return
    print(f"{options.classes:,} classes, {options.width:,} channels, {options.threads} threads; {cpu.describe()}")
    for dtype in ("float32", "bfloat16"):
        for who, tokens in (("plain", options.plain_tokens), ("ours", options.plain_tokens), ("ours", options.tokens)):
            found = apart(who, tokens, options, dtype)
            judged = ("met" if found["times"] <= GOAL else "MISSED") if tokens == options.tokens else "no goal"
            print(
                f"{dtype:8} {who:5} {tokens:7,} tokens: peak {found['peak'] / 1e9:6.2f} GB, {found['times']:5.2f} of "
                f"{found['least'] / 1e9:.2f} GB ({judged}); {found['seconds']:6.1f} s, loss {found['loss']:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
