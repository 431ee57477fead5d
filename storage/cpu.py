"""What the processor of this machine is, and which dtype it multiplies quickly in: what `dtype: auto` stands for.

bfloat16 where it has units for it: GPUs (NVIDIA's since 2020), and CPUs with `amx_bf16` or `avx512_bf16`. Elsewhere
PyTorch emulates it: on a Xeon with AVX-512 alone, training in bfloat16 makes half the steps of float32. oneDNN's
ONEDNN_MAX_CPU_ISA, which makes a CPU behave like an older one, is heeded.
"""

import os
import platform
from collections.abc import Mapping, Set
from functools import lru_cache
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")

_BF16_UNITS = ("amx_bf16", "avx512_bf16")
_SHOWN_FLAGS = ("avx2", "avx512f", *_BF16_UNITS)
_MAX_ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_ISAS_WITH_BF16 = ("", "ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10")


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_flags() -> frozenset[str]:
    """Features of this CPU as Linux names them; none where it does not say."""
    return frozenset(_cpuinfo().get("flags", _cpuinfo().get("Features", "")).split())


def multiplies_bf16(flags: Set[str] | None = None, environment: Mapping[str, str] | None = None) -> bool:
    """Whether a CPU with these flags (default: this one) has units for bfloat16 that oneDNN may use."""
    environment = os.environ if environment is None else environment
    limit = next((environment[name] for name in _MAX_ISA if environment.get(name)), "").upper()
    allowed = any(limit == isa or isa and limit.startswith(f"{isa}_") for isa in _ISAS_WITH_BF16)
    return allowed and not set(_BF16_UNITS).isdisjoint(cpu_flags() if flags is None else flags)


def leaves_mkl_idle() -> bool:
    """Whether this CPU has AVX-512 units that MKL, which looks for Intel's name, does not use, and oneDNN may."""
    limit = next((os.environ[name] for name in _MAX_ISA if os.environ.get(name)), "").upper()
    is_allowed = limit.startswith(("AVX512", "AVX10")) or limit in ("", "ALL", "DEFAULT")
    return is_allowed and _cpuinfo().get("vendor_id") == "AuthenticAMD" and "avx512f" in cpu_flags()


def quick_dtype(on_gpu: bool) -> str:
    """`bfloat16` where the device multiplies in it, else `float32`."""
    return "bfloat16" if on_gpu or multiplies_bf16() else "float32"


def emulation(dtype: str, on_gpu: bool) -> str | None:
    """What a person should know who asked for a dtype that this device has no units for; None where it has."""
    if on_gpu or dtype in ("auto", "float32") or (dtype == "bfloat16" and multiplies_bf16()):
        return None
    return f"{dtype} is emulated on this CPU, at half the speed of float32 or less; `dtype: auto` avoids that"


def describe() -> str:
    """The CPU as a figure's reader must know it: name, number of cores, the flags that matter, a limit on them."""
    name = _cpuinfo().get("model name", platform.processor() or platform.machine())
    flags = [flag for flag in _SHOWN_FLAGS if flag in cpu_flags()] or ["no AVX2"]
    limits = [f"{limit}={os.environ[limit]}" for limit in _MAX_ISA if os.environ.get(limit)]
    return f"{name}, {os.cpu_count()} cores ({', '.join([*flags, *limits])})"
