"""Every backend computes the segments of a network as PyTorch does.

Tiny seeded networks cover architectures without installed weights (2x, 1x, few features) and whatever does
not depend on weights. Accuracy and exact tiling are measured on real weights.
"""

import functools
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from restorer.errors import BadWeights, InvalidOption, InvalidOutput, OutOfMemory
from restorer.inference import backends, engine, network
from restorer.models import architectures, loader, registry, sources
from restorer.options import CPU_BACKENDS, DEVICES
from tests.conftest import sweep
from tests.inference.seeded import NETWORKS, create, image, parts_of, state_of
from tests.reference import photos

ROOT = Path(__file__).parents[2]
SMALL = "realesr-animevideov3"
REAL = [pytest.param(name, marks=[] if name == SMALL else pytest.mark.slow) for name in sources.PACKAGED]
FULL = ("cpu:torch", "cpu:openvino", "cpu:ncnn")  # in float32


def each_on(names: tuple[str, ...]) -> list:
    """Each installed network on each of the backends; OpenVINO compiles the 72 segments of x4plus slowly."""

    def mark(network: str, backend: str) -> pytest.MarkDecorator | tuple:
        if network == "RealESRGAN_x4plus" and backend == "cpu:openvino":
            return pytest.mark.long
        return () if network == SMALL else pytest.mark.slow

    return [
        pytest.param(network, backend, marks=mark(network, backend))
        for network in sources.PACKAGED
        for backend in names
    ]


def maps(part, height, width):
    return [image(height, width, channels) - 0.3 for channels in part.inputs]


@sweep("kind, backend", [*NETWORKS], [*FULL], count=7)
def test_segments_agree_on_seeded_networks(kind, backend):
    parts = network.segments(create(kind))
    compute = backends.build(backend, parts).compute
    with torch.inference_mode():
        for part, run in zip(parts, compute, strict=True):
            for height, width in ((1, 1), (7, 3), (16, 16), (5, 90), (7, 3)):
                windows = maps(part, height, width)
                expected, result = part.module(*windows), run(*windows)
                assert result.shape == expected.shape
                assert expected.std() > 0.03, "a flat map would prove nothing"
                torch.testing.assert_close(result, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def photo():
    """A part of a photo, of odd size, with two tiles of 32 on each side."""
    return photos()["chelsea"][:41, :35]


@functools.cache
def real(name, backend, tile):
    """The photo enlarged by an installed network."""
    model = registry.find(name, Path("absent"))
    run = engine.load(model, Path("absent"), device=backend, half=None, lock=threading.Lock())
    return np.concatenate(list(run.bands(photo(), tile=tile)))


@pytest.mark.parametrize(("name", "backend"), each_on(FULL[1:]))
def test_backends_agree_on_real_weights(name, backend):
    expected, result = real(name, "cpu:torch", 256), real(name, backend, 256)
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert cv2.PSNR(result, expected) > 70


@pytest.mark.parametrize(("name", "backend"), each_on(FULL))
def test_bytes_do_not_depend_on_the_tile(name, backend):
    assert real(name, backend, 32).tobytes() == real(name, backend, 256).tobytes()


@pytest.mark.parametrize("name", REAL)
def test_bfloat16_is_close_on_real_weights(name):
    expected = real(name, "cpu:torch", 256)
    parts = network.segments(_module(name))
    run = engine.Engine(parts, backends.modules(parts, torch.bfloat16), scale=4)
    result = run(photo())
    assert 35 < cv2.PSNR(result, expected) < 60, "close, but not float32"


def _module(name):
    state = loader.load(sources.installed(registry.find(name, Path("absent")))).state
    return architectures.build(architectures.detect(state, name), state, name).requires_grad_(False)


@pytest.mark.parametrize("backend", FULL)
def test_backends_keep_no_state_between_tiles(backend):
    for part in network.segments(create("rrdb")):
        run = backends.build(backend, [part]).compute[0]
        with torch.inference_mode():
            first = run(*maps(part, 9, 11))  # stays valid, as another thread may call the segment meanwhile
            run(*(window * 50 for window in maps(part, 9, 11)))
            run(*maps(part, 30, 8))
            assert torch.equal(run(*maps(part, 9, 11)), first)


@pytest.mark.parametrize("backend", FULL)
def test_nan_is_detected_with_every_backend(backend):
    spec, state = state_of("compact")
    state["body.2.bias"][3] = torch.nan
    parts = network.segments(architectures.build(spec, state, "compact").requires_grad_(False))
    with pytest.raises(InvalidOutput):
        engine.Engine(parts, backends.build(backend, parts), scale=4)(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("machine", "capabilities", "expected"),
    [
        ("x86_64", {"amx_tile": False}, "cpu:ncnn"),
        ("x86_64", {"amx_tile": True}, "cpu:torch"),
        ("aarch64", {}, "cpu:openvino"),
    ],
)
def test_backend_depends_on_the_processor_and_on_what_is_installed(
    monkeypatch, tmp_path, machine, capabilities, expected
):
    monkeypatch.setattr(backends.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert {backends.choose(arch, tmp_path) for arch in backends.FAMILIES} == {expected}
    monkeypatch.setattr(backends, "_is_installed", lambda name: name == "cpu:torch")
    assert {backends.choose(arch, tmp_path) for arch in backends.FAMILIES} == {"cpu:torch"}
    for name in ("openvino", "ncnn"):
        with pytest.raises(InvalidOption, match=f"{name} is not installed"):
            backends.build(f"cpu:{name}", network.segments(create("compact")))


def test_saved_backends_are_used_unless_damaged(tmp_path):
    backends.save({"RRDBNet": "cpu:torch"}, tmp_path)
    assert backends.choose("RRDBNet", tmp_path) == "cpu:torch"
    assert backends.choose("SRVGGNetCompact", tmp_path) == backends.choose(
        "SRVGGNetCompact", tmp_path / "none"
    )
    for text in ("{", "[]", '{"RRDBNet": "cpu:bfloat16"}', '{"GFPGAN": "cpu:torch"}'):
        (tmp_path / "backends.json").write_text(text)
        with pytest.raises(InvalidOption, match=r"backends\.json.*delete it"):
            backends.choose("RRDBNet", tmp_path)


def test_every_backend_can_be_named():
    assert {f"cpu:{name}" for name in CPU_BACKENDS} == set(backends.NAMES) - {"vulkan"}


def test_vulkan_runs_or_raises_without_a_gpu():
    from restorer.inference.backends import ncnn

    parts = network.segments(create("compact"))
    if ncnn.gpus():
        assert engine.Engine(parts, backends.build("vulkan", parts), scale=4)(
            np.zeros((8, 8, 3), np.uint8)
        ).shape == (32, 32, 3)
    else:
        with pytest.raises(InvalidOption, match="vulkan"):
            backends.build("vulkan", parts)


def test_missing_tensor_raises_bad_weights_with_every_backend(tmp_path):
    _, state = state_of("compact")
    del state["body.2.bias"]
    (tmp_path / "custom").mkdir()
    torch.save(state, tmp_path / "custom/cut.pth")
    model = registry.find("custom/cut", tmp_path)
    for backend in ("cpu", *FULL):
        with pytest.raises(BadWeights, match=r"body\.2\.bias is missing"):
            engine.load(model, tmp_path, device=backend, half=None, lock=threading.Lock())


def test_ncnn_failure_raises_out_of_memory():
    parts = parts_of(torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False), halos=(1,))
    backend = backends.build("cpu:ncnn", parts)
    backend.compute[0]._output = "no such blob"  # makes ncnn return an error code
    with pytest.raises(OutOfMemory):
        engine.Engine(parts, backend, scale=1)(np.zeros((8, 8, 3), np.uint8))


def test_unknown_and_absent_devices_are_named_in_the_error():
    with pytest.raises(InvalidOption, match="'cuda:77' is not available"):
        backends.pick_device("cuda:77")
    assert set(backends.NAMES) < set(DEVICES)
    with pytest.raises(InvalidOption, match="unknown device 'abacus'; use .*cpu:openvino"):
        backends.pick_device("abacus")
    for name in ("cpu:0", "meta", "hpu", "CPU", "", ["cpu"], b"cpu", "cuda:x"):
        with pytest.raises(InvalidOption, match="unknown device .*; use cuda, mps, cpu, "):
            backends.pick_device(name)
    for name in ("cpu", *set(backends.NAMES) - {backends.BFLOAT16}):
        assert backends.pick_device(name) == torch.device("cpu")


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_requires_a_processor_with_kernels(monkeypatch, supported):
    monkeypatch.setattr(backends, "has_bfloat16_kernels", lambda: supported)
    if supported:
        assert backends.pick_device(backends.BFLOAT16) == torch.device("cpu")
    else:
        with pytest.raises(InvalidOption, match="cpu:bfloat16 needs a processor .*; use cpu"):
            backends.pick_device(backends.BFLOAT16)


@pytest.mark.parametrize(
    ("onednn", "kernels", "expected"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_bfloat16_kernels_need_onednn(monkeypatch, onednn, kernels, expected):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    mkldnn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: kernels)
    monkeypatch.setattr(backends.torch, "ops", SimpleNamespace(mkldnn=mkldnn))
    assert backends.has_bfloat16_kernels() is expected


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="sets oneDNN's limit for x86")
def test_avx2_has_no_bfloat16_kernels():
    code = "from restorer.inference import backends; print(backends.has_bfloat16_kernels())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    completed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert completed.stdout == "False\n"


@pytest.mark.slow
def test_openvino_sends_no_telemetry():
    """openvino_telemetry reports imports and conversions over the network; OpenVINO works without it."""
    code = (
        "import sys, torch\n"
        "from restorer.inference import network\n"
        "from restorer.inference.backends.openvino import OpenVinoSegment\n"
        "conv = torch.nn.Conv2d(3, 3, 3, padding=1)\n"
        "part = network.Segment(conv, ('image',), 'output', 1, 3, inputs=(3,))\n"
        "OpenVinoSegment(part)(torch.zeros(1, 3, 8, 8))\n"
        "assert not any(name.startswith('openvino_telemetry.') for name in sys.modules)\n"
        "from openvino.tools.ovc import convert_impl\n"
        "assert convert_impl.tm.__name__ == 'openvino.tools.ovc.telemetry_stub'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
