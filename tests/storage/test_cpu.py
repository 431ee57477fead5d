"""`dtype: auto`: bfloat16 where the processor multiplies in it, as its flags and oneDNN's limit say."""

import pytest

from tokenmill.storage import cpu

AVX512 = {"avx2", "avx512f", "avx512bw"}


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (AVX512 | {"avx512_bf16"}, {}, "bfloat16"),
        (AVX512 | {"amx_bf16", "amx_tile"}, {}, "bfloat16"),
        (AVX512, {}, "float32"),
        ({"avx2"}, {}, "float32"),
        (set(), {}, "float32"),
        (AVX512 | {"amx_bf16"}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "float32"),
        (AVX512 | {"amx_bf16"}, {"DNNL_MAX_CPU_ISA": "avx2"}, "float32"),
        (AVX512 | {"amx_bf16"}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "float32"),
        (AVX512 | {"amx_bf16"}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "bfloat16"),
        (AVX512 | {"amx_bf16"}, {"ONEDNN_MAX_CPU_ISA": "avx512_core_amx_fp16"}, "bfloat16"),
        (AVX512 | {"amx_bf16"}, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "bfloat16"),
        (AVX512, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "float32"),
    ],
)
def test_auto_is_what_the_cpu_multiplies_in(monkeypatch, flags, environment, expected):
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags))
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cpu.quick_dtype(on_gpu=False) == expected
    assert (cpu.emulation("bfloat16", on_gpu=False) is None) == (expected == "bfloat16")
    assert cpu.quick_dtype(on_gpu=True) == "bfloat16"
    assert cpu.emulation("bfloat16", on_gpu=True) is None
    assert cpu.emulation("float32", on_gpu=False) is None
    for name, value in environment.items():
        assert f"{name}={value}" in cpu.describe()
