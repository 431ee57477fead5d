"""What happened in the rounds: a line on each, all of it as JSON, and a row of benchmarks/RESULTS.md."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from disturbances.growth import Sample, growth

from tokenmill.storage import cpu


@dataclass
class Round:
    """What happened in one round."""

    number: int
    kind: str
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)  # how commands that failed said so
    offences: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    num_rows: int = 0
    peak_mb: float = 0.0  # of a disturbed driver with its workers


def line(made: Round, sample: Sample) -> str:
    """A line on a round."""
    faults = Counter[str]()
    for name, count in made.faults.items():
        faults[name.split()[0].rstrip(":")] += count
    told = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
    codes = ", ".join(f"{code} x{count}" for code, count in sorted(made.codes.items()))
    state = "equal" if not made.unequal else "NOT EQUAL"
    return (
        f"round {made.number} ({made.kind}, {made.seconds:.0f} s): {told}; codes {codes}; "
        f"{made.num_rows} rows {state}, {len(made.offences)} offences; {sample.memory_mb:.0f} MB, "
        f"{sample.descriptors} descriptors, {sample.threads} threads, "
        f"shared memory {sample.shared_memory_bytes >> 10} KiB, {sample.temporary_files} temporary files"
    )


def summary(rounds: Sequence[Round], samples: Sequence[Sample], minutes: float, seed: int) -> dict[str, Any]:
    """All of it, for JSON."""
    faults, codes, said = Counter[str](), Counter[int](), Counter[str]()
    for made in rounds:
        faults.update(made.faults)
        codes.update(made.codes)
        said.update(made.said)
    return {
        "minutes": minutes,
        "seed": seed,
        "cpu": cpu.describe(),
        "faults": dict(sorted(faults.items())),
        "codes": dict(sorted(codes.items())),
        "said": dict(said.most_common()),
        "num_rows": sum(made.num_rows for made in rounds),
        "num_unequal": sum(bool(made.unequal) for made in rounds),
        "num_offences": sum(len(made.offences) for made in rounds),
        "growth": growth(samples),
        "rounds": [vars(made) for made in rounds],
        "samples": [asdict(sample) for sample in samples],
    }


def row(told: dict[str, Any]) -> str:
    """For RESULTS.md."""
    faults = Counter[str]()
    for name, count in told["faults"].items():
        faults[name.partition(": ")[0] if name.startswith("store") else name.split()[0]] += count
    grew = {name: grown for name, grown in told["growth"].items() if grown is not None}
    flat = ", ".join(f"{name} +{grown:.0f}" for name, grown in grew.items()) or "flat"
    return (
        f"| {told['minutes']:g} min, seed {told['seed']} | {len(told['rounds'])} rounds | "
        f"{', '.join(f'{count} {name}' for name, count in sorted(faults.items()))} | {told['num_rows']} rows compared, "
        f"{told['num_unequal']} rounds unequal | {told['num_offences']} offences | {flat} |"
    )
