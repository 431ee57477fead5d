"""Passes hold what fits, go on at half the size where it does not, and compile only shapes that come often."""

import shutil
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    Emu3VQVAE,
    Emu3VQVAEConfig,
    JanusVQVAE,
    JanusVQVAEConfig,
)

from tokenmill.tokenizer.vision import batching
from tokenmill.tokenizer.vision.batching import DECODE_LAYERS, ENCODE_LAYERS, CompiledOften, Passes, px_that_fit
from tokenmill.tokenizer.vision.emu3 import Emu3Codec
from tokenmill.tokenizer.vision.nearest import nearest_codes
from tokenmill.tokenizer.vision.stills import StillCodec
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

CPU = torch.device("cpu")


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made in this context held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._live:
                    self._live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._live.pop, storage._cdata, None)
                    self.most = max(self.most, sum(self._live.values()))
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [64, 256])
def test_what_a_pass_of_emu3_takes(channels: int, dtype: torch.dtype) -> None:
    """On the meta device, which computes nothing, at the published sizes."""
    with torch.device("meta"):
        model = Emu3VQVAE(Emu3VQVAEConfig(base_channels=channels, hidden_size=4 * channels)).eval().to(dtype)
        pixels = torch.empty(2, 3, 512, 512, dtype=dtype)
        codec, side = Emu3Codec(model), 512 // 8
        works = [
            (codec.encode_images, pixels, 2, ENCODE_LAYERS),
            (codec.encode_groups, pixels[:1].expand(4, -1, -1, -1)[None].clone(), 4, ENCODE_LAYERS),
            (codec.decode_images, torch.empty(2, 4, 1, side, side, dtype=dtype), 2, DECODE_LAYERS),
            (codec.decode_groups, torch.empty(1, 4, 1, side, side, dtype=dtype), 4, DECODE_LAYERS),
        ]
    for call, given, frames, layers in works:
        with torch.inference_mode(), LiveBytes() as live:
            call(given)
        assert 0.9 * layers < live.most / (frames * 512 * 512 * channels * dtype.itemsize) < layers


@pytest.mark.parametrize("channels, width", [(128, 768), (256, 1536)])  # 48 places a base channel, and one row more
def test_attention_by_products_takes_no_more_than_a_pass(channels: int, width: int) -> None:
    with torch.device("meta"):
        model = Emu3VQVAE(Emu3VQVAEConfig(base_channels=channels, hidden_size=4 * channels)).eval().to(torch.bfloat16)
        codec = Emu3Codec(model)
        for rows, attention in ((64, "eager"), (65, "sdpa")):
            codec.attend_in_half_precision(rows * width // 8)
            assert model.config._attn_implementation == attention
        codec.attend_in_half_precision(64 * width // 8)
        pixels = torch.empty(1, 3, 512, width, dtype=torch.bfloat16)
    with torch.inference_mode(), LiveBytes() as live:
        codec.encode_images(pixels)
    assert live.most / (512 * width * channels * 2) < ENCODE_LAYERS


def test_attention_by_products_gives_the_same_codes() -> None:
    given, other = VisionTokenizer.load("builtin"), VisionTokenizer.load("builtin")
    other.model.set_attn_implementation("eager")
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    codes = given.encode_images(frames)
    assert len(np.unique(codes)) > 10
    assert (other.encode_images(frames) == codes).mean() > 0.98  # near-ties may be settled differently


def test_narrow_heads_keep_torchs_attention() -> None:
    with torch.device("meta"):
        model = Emu3VQVAE(Emu3VQVAEConfig(base_channels=64, hidden_size=256))
    Emu3Codec(model).attend_in_half_precision(1)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["chameleon", "janus"])
def test_what_a_pass_of_the_others_takes(kind: str) -> None:
    """Not more than is planned."""
    with torch.device("meta"):
        model: Any = (
            ChameleonVQVAE(ChameleonVQVAEConfig()) if kind == "chameleon" else JanusVQVAE(JanusVQVAEConfig())
        ).eval()
        codec = StillCodec(model)
        pixels, side = torch.empty(2, 3, 512, 512), 512 // codec.spatial_factor
        works = [(codec.encode_images, pixels, ENCODE_LAYERS)]
        if codec.decodes:
            works.append((codec.decode_images, torch.empty(2, model.config.embed_dim, 1, side, side), DECODE_LAYERS))
    for call, given, layers in works:
        with torch.inference_mode(), LiveBytes() as live:
            call(given)
        assert live.most / (2 * 512 * 512 * model.config.base_channels * 4) < layers


def test_planned_passes() -> None:
    gib = 1 << 30
    assert px_that_fit(10 * gib, 256, 4, 4.0) == int(0.4 * 10 * gib / (4 * 256 * 4))
    assert px_that_fit(10 * gib, 256, 2, 4.0) == pytest.approx(2 * px_that_fit(10 * gib, 256, 4, 4.0), abs=1)
    assert px_that_fit(1 << 50, 64, 2, 4.0) == 1 << 23
    assert px_that_fit(0, 256, 4, 4.0) == 1


def test_layers_stay_where_a_gpu_can_index_them() -> None:
    def never(items: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    assert Passes(never, CPU, 1 << 23, widest=512).max_px == 1 << 21  # 8 pictures of 512 x 512, Emu3's decoder
    assert Passes(never, CPU, 1 << 23, widest=64).max_px == 1 << 23
    gpu = torch.device("cuda")
    with pytest.raises(ValueError, match="4194304 px has layers of 2147483648 numbers.*area_px"):
        Passes(never, gpu, 1, widest=512)(np.zeros((1, 1)), 2048 * 2048)


def test_the_widest_layer_is_known() -> None:
    """What Passes is told of Emu3's networks, on the meta device."""
    widest: list[int] = []

    def note(module: torch.nn.Module, given: Any, made: torch.Tensor) -> None:
        widest.append(made.numel())

    with torch.device("meta"):
        model = Emu3VQVAE(Emu3VQVAEConfig()).eval()
        codec = Emu3Codec(model)
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(note)
        base, multipliers = model.config.base_channels, model.config.channel_multiplier
        for call, given, channels in (
            (codec.encode_images, torch.empty(1, 3, 64, 64), base * multipliers[0]),
            (codec.decode_images, torch.empty(1, 4, 1, 8, 8), base * max(multipliers[:2])),
        ):
            widest.clear()
            with torch.inference_mode():
                call(given)
            assert max(widest) == channels * 64 * 64


def test_passes_halve_until_they_fit() -> None:
    sizes = []

    def doubled(items: torch.Tensor) -> torch.Tensor:
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * items

    passes = Passes(doubled, CPU, max_px=100 * 10)
    items = np.arange(20).reshape(20, 1)
    np.testing.assert_array_equal(passes(items, 10), 2 * items)
    assert sizes == [20, 10, 5, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    sizes.clear()
    np.testing.assert_array_equal(passes(items, 10), 2 * items)
    assert sizes == [2] * 10  # what did not fit is not tried again


def test_one_item_that_does_not_fit_is_an_error() -> None:
    def never(items: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Passes(never, CPU, max_px=1000)(np.zeros((3, 1)), 10)


def test_only_shapes_that_come_often_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "COMPILE_AFTER", 2)
    monkeypatch.setattr(batching, "_MOST_COMPILED", 10)  # torch.compile alone would stop at 8
    compiled: Counter[int] = Counter()

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled[len(inputs[0])] += 1
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, mode, **how: real(call, backend=backend, **how))
    call = CompiledOften(lambda items: items + 1, "default")
    for size in (100, *range(2, 14), 200, *range(2, 14), *range(2, 14), *range(2, 14), 100):
        items = torch.zeros(size)
        assert torch.equal(call(items), items + 1)
    assert compiled == dict.fromkeys(range(2, 12), 1)  # the first ten of those that came for the third time


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)


@needs_compiler
@pytest.mark.service
@pytest.mark.parametrize("num_dims", [4, 8])
def test_compiled_the_nearest_code_is_found_without_storing_distances(num_dims: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(num, num_dims, generator=generator) for num in (96, 1000))
    norms = (codebook**2).sum(1)
    codes, sources = run_and_get_code(torch.compile(nearest_codes), z, codebook, norms)
    assert torch.equal(codes, torch.cdist(z, codebook).argmin(1))
    assert "empty_strided_cpu((96, ), (1, ), torch.int64)" in sources[0]
    assert "(96, 1000)" not in sources[0] and "96000" not in sources[0]


@needs_compiler
@pytest.mark.service
def test_compiled_codes_are_those_of_the_plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "COMPILE_AFTER", 0)
    plain, compiled = VisionTokenizer.load("builtin"), VisionTokenizer.load("builtin", compile_mode="default")
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    codes = plain.encode_images(frames)
    assert len(np.unique(codes)) > 10
    assert (compiled.encode_images(frames) == codes).mean() > 0.98  # near-ties may be settled differently
