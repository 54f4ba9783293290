"""Every backend returns the result of basicsr's own class.

Tiny seeded networks cover architectures without installed weights (2x, 1x, few features) and whatever does
not depend on weights. Accuracy is measured on real weights.
"""

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from restorer.errors import BadWeights, InvalidOption, OutOfMemory
from restorer.inference import backends, engine
from restorer.models import architectures, loader, registry, sources
from restorer.options import DEVICES
from tests.reference import photos

ROOT = Path(__file__).parents[2]
NETWORKS = {
    "compact": ("SRVGGNetCompact", {"num_feat": 20, "num_conv": 3, "upscale": 4, "act_type": "prelu"}, 4, 1),
    "compact x2": (
        "SRVGGNetCompact",
        {"num_feat": 8, "num_conv": 1, "upscale": 2, "act_type": "prelu"},
        2,
        1,
    ),
    "rrdb": ("RRDBNet", {"num_feat": 16, "num_block": 4, "num_grow_ch": 8, "scale": 4}, 4, 1),
    "rrdb x2": ("RRDBNet", {"num_feat": 8, "num_block": 1, "num_grow_ch": 8, "scale": 2}, 2, 2),
    "rrdb x1": ("RRDBNet", {"num_feat": 8, "num_block": 1, "num_grow_ch": 4, "scale": 1}, 1, 4),
}
CPU = backends._PREFERRED["RRDBNet"]


def seeded(kind):
    """A spec and seeded tensors, large enough that every layer affects the result."""
    arch, parameters, scale, align = NETWORKS[kind]
    spec = architectures.NetworkSpec(arch, parameters, scale, align, pad=4, bytes=1000)
    generator = torch.Generator().manual_seed(1)
    network = architectures.create(arch, parameters)
    state = {
        key: torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
        for key, tensor in network.state_dict().items()
    }
    return spec, state


def image(height, width, align=1):
    return torch.rand(1, 3, height * align, width * align, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("kind", NETWORKS)
def test_backends_agree_on_seeded_networks(kind, backend):
    """Sides that are and are not multiples of Winograd's four, in one or several strips of windows."""
    spec, state = seeded(kind)
    module = architectures.build(spec, state, kind)
    run, name = backends.build(backend, spec, state, kind)
    assert name == backend
    with torch.inference_mode():
        for height, width in ((1, 1), (7, 3), (16, 16), (5, 90), (70, 37), (16, 16)):
            batch = image(height, width, spec.align)
            expected, result = module(batch), run(batch)
            assert result.shape == expected.shape
            assert expected.std() > 0.1, "a flat image would prove nothing"
            torch.testing.assert_close(result, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@functools.cache
def real(name):
    """An installed network, a photo, and PyTorch's float32 result."""
    state = loader.load(sources.installed(registry.find(name, Path("absent")))).state
    spec = architectures.detect(state, name)
    pixels = np.ascontiguousarray(photos()["chelsea"].transpose(2, 0, 1))
    batch = torch.from_numpy(pixels)[None] / 255
    with torch.inference_mode():
        return spec, state, batch, architectures.build(spec, state, name)(batch)


def psnr(result, expected):
    """Peak signal-to-noise ratio in dB; white is 1."""
    return float(-10 * (result - expected).double().square().mean().log10())


@pytest.mark.parametrize("backend", CPU[:-1])
@pytest.mark.parametrize("name", sources.PACKAGED)
def test_backends_agree_on_real_weights(name, backend):
    spec, state, batch, expected = real(name)
    with torch.inference_mode():
        result = backends.build(backend, spec, state, name)[0](batch)
    assert psnr(result, expected) > 100  # 120 or more in practice
    assert (result - expected).abs().max() < 1 / 255


@pytest.mark.parametrize("name", sources.PACKAGED)
def test_bfloat16_is_close_on_real_weights(name):
    spec, state, batch, expected = real(name)
    with torch.inference_mode():
        result = backends.build(backends.BFLOAT16, spec, state, name)[0](batch)
    assert 40 < psnr(result, expected) < 70, "close, but not float32"


@pytest.mark.parametrize("kind", NETWORKS)
def test_bfloat16_is_close_and_only_used_on_request(kind):
    spec, state = seeded(kind)
    module = architectures.build(spec, state, kind)
    run, name = backends.build(backends.BFLOAT16, spec, state, kind)
    assert name == backends.BFLOAT16 not in CPU
    batch = image(40, 30, spec.align)
    with torch.inference_mode():
        expected, result = module(batch), run(batch)
    assert result.dtype == torch.float32
    error = float((result - expected).abs().max() / expected.abs().max())
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("backend", CPU)
def test_backends_keep_no_state_between_tiles(backend):
    spec, state = seeded("rrdb")
    run, _ = backends.build(backend, spec, state, "rrdb")
    with torch.inference_mode():
        first = run(image(9, 11)).clone()
        run(image(9, 11) * 50)
        run(image(30, 8))
        assert torch.equal(run(image(9, 11)), first)


@pytest.mark.parametrize("backend", CPU)
def test_nan_is_detected_with_every_backend(backend):
    spec, state = seeded("compact")
    state["body.2.bias"][3] = torch.nan
    run, _ = backends.build(backend, spec, state, "compact")
    with pytest.raises(engine.InvalidOutput):
        engine.Engine(run, scale=4, device=torch.device("cpu"))(np.zeros((8, 8, 3), np.uint8))


def test_openvino_caches_few_compiled_sizes():
    spec, state = seeded("compact x2")
    run, _ = backends.build("cpu:openvino", spec, state, "compact x2")
    compiled = []
    compile_model = run._core.compile_model
    run._core = mock.Mock()
    run._core.compile_model.side_effect = lambda *args: compiled.append(args) or compile_model(*args)
    for _ in range(3):
        for side in (20, 24, 28, 32):
            run(image(side, side))
    assert len(compiled) == 4
    run(image(700, 700))
    run(image(690, 700))
    assert len(compiled) == 6 and len(run._compiled) == 1, "large inputs have large buffers"


def fake_backends(monkeypatch, hundredths):
    """Replace the backends by ones that advance a fake clock; return the log of their runs.

    hundredths  of a second by backend, one number or one per run
    """
    clock, runs = [0.0], []

    def create(backend, *_):
        def run(_batch):
            runs.append(backend)
            cost = hundredths[backend]
            clock[0] += (cost if isinstance(cost, int | float) else cost[runs.count(backend) - 1]) / 100

        return run

    monkeypatch.setattr(backends, "_create", create)
    monkeypatch.setattr(backends, "_CHOSEN", {})
    monkeypatch.setattr(backends.time, "perf_counter", lambda: clock[0])
    return runs


@pytest.mark.parametrize(
    ("winograd", "ncnn", "torch_", "expected"),
    [(1, 2, 3, "winograd"), (3, 2, 1, "torch"), (1.1, 1, 1.05, "winograd"), (2, 1, 1.5, "ncnn")],
)
def test_fastest_backend_is_used_if_clearly_faster(monkeypatch, winograd, ncnn, torch_, expected):
    hundredths = {"cpu:winograd": winograd, "cpu:openvino": 9, "cpu:ncnn": ncnn, "cpu:torch": torch_}
    runs = fake_backends(monkeypatch, hundredths)
    spec, state = seeded("rrdb")
    assert backends.build("cpu", spec, state, "rrdb")[1] == f"cpu:{expected}"
    assert runs[:4] == list(hundredths), "each at least once"
    assert runs.count("cpu:openvino") == 1, "much slower backends are dropped"
    rounds = 2 if expected == "winograd" else 9  # more before replacing the preferred one
    assert runs.count("cpu:winograd") == runs.count(f"cpu:{expected}") == rounds
    count = len(runs)
    assert backends.build("cpu", spec, state, "rrdb")[1] == f"cpu:{expected}"
    assert len(runs) == count, "benchmarked once per process"


@pytest.mark.parametrize(
    ("winograd", "rounds"),
    [((9, 9, 9, 9, 5), 5), ((400,), 1)],
    ids=["disturbed four times", "stopped after three seconds"],
)
def test_busy_machine_uses_the_preferred_backend(monkeypatch, winograd, rounds):
    runs = fake_backends(
        monkeypatch, {"cpu:winograd": winograd, "cpu:openvino": 4.5, "cpu:ncnn": 5, "cpu:torch": 5}
    )
    assert backends.build("cpu", *seeded("rrdb"), "rrdb")[1] == "cpu:winograd"
    assert runs.count("cpu:winograd") == rounds


@pytest.mark.parametrize("kind", NETWORKS)
def test_benchmark_network_is_a_shorter_one_of_the_same_kind(kind, monkeypatch):
    monkeypatch.setattr(backends, "_BLOCKS", 2)
    spec, state = seeded(kind)
    short, tensors = backends._shortened(spec, state)
    architectures.build(short, tensors, "short")  # raises for missing and for extra tensors
    counts = {"num_block", "num_conv"} & set(spec.parameters)
    assert all(short.parameters[name] == min(2, spec.parameters[name]) for name in counts)


def test_missing_packages_are_skipped_or_named(monkeypatch):
    fake_backends(monkeypatch, {"cpu:torch": 2.0, "cpu:winograd": 1.0})
    monkeypatch.setattr(backends, "_is_installed", lambda package: False)
    assert backends.build("cpu", *seeded("compact"), "compact")[1] == "cpu:winograd"
    monkeypatch.undo()
    monkeypatch.setattr(backends, "_is_installed", lambda package: False)
    with pytest.raises(InvalidOption, match="ncnn is not installed"):
        backends.build("cpu:ncnn", *seeded("compact"), "compact")


def test_vulkan_runs_or_raises_without_a_gpu():
    from restorer.inference.backends import ncnn

    if ncnn.gpus():
        run, _ = backends.build("vulkan", *seeded("compact"), "compact")
        assert run(image(8, 8)).shape == (1, 3, 32, 32)
    else:
        with pytest.raises(InvalidOption, match="vulkan"):
            backends.build("vulkan", *seeded("compact"), "compact")


def test_missing_tensor_raises_bad_weights_with_every_backend():
    for backend in ("cpu", *CPU):
        spec, state = seeded("compact")
        del state["body.2.bias"]
        with pytest.raises(BadWeights, match=r"body\.2\.bias is missing"):
            backends.build(backend, spec, state, "custom/cut.pth")


def test_ncnn_failure_raises_out_of_memory(monkeypatch):
    spec, state = seeded("compact")
    run, _ = backends.build("cpu:ncnn", spec, state, "compact")
    run._output = "no such blob"  # makes ncnn return an error code
    with pytest.raises(OutOfMemory):
        engine.Engine(run, scale=4, device=torch.device("cpu"))(np.zeros((8, 8, 3), np.uint8))


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


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="sets oneDNN's limit for x86")
def test_avx2_has_no_bfloat16_kernels():
    code = "from restorer.inference import backends; print(backends.has_bfloat16_kernels())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    completed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert completed.stdout == "False\n"


def test_openvino_sends_no_telemetry():
    """openvino_telemetry reports imports and conversions over the network; OpenVINO works without it."""
    code = (
        "import sys, torch\n"
        "from restorer.inference.backends.openvino import OpenVinoNetwork\n"
        "OpenVinoNetwork(torch.nn.Conv2d(3, 3, 3, padding=1))(torch.zeros(1, 3, 8, 8))\n"
        "assert not any(name.startswith('openvino_telemetry.') for name in sys.modules)\n"
        "from openvino.tools.ovc import convert_impl\n"
        "assert convert_impl.tm.__name__ == 'openvino.tools.ovc.telemetry_stub'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
