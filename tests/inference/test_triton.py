"""RRDBNet in Triton: the kernel by Triton's interpreter, and PyTorch where Triton cannot be used."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest
import torch

from restorer.errors import InvalidOutput
from restorer.inference import backends, engine, network
from restorer.models import architectures
from tests.inference.seeded import create

ROOT = Path(__file__).parents[2]
SIZES = (4, 5, 64), (6, 130, 64), (4, 5, 128)
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="a PyTorch without Triton")


@pytest.fixture
def parts():
    parameters = {"num_feat": 64, "num_block": 1, "num_grow_ch": 32, "scale": 4}
    return network.segments(architectures.create("RRDBNet", parameters).to_empty(device="cpu"))


@needs_triton
@pytest.mark.slow
def test_interpreted_kernel_agrees_with_pytorch_in_float32():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.inference.interpreted"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    errors = json.loads(process.stdout)
    assert {key.split(", ")[1] for key in errors} == {"DenseBlock", "Layers", "Tail"}
    # A tail has five layers of numbers with 11 bits
    assert len(errors) == 39 and all(error < 2e-3 for error in errors.values()), errors


@pytest.fixture
def capability(monkeypatch):
    """Set the compute capability of a GPU that need not exist."""
    return lambda *version: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)


@needs_triton
def test_pytorch_computes_where_triton_fails(parts, capability, monkeypatch, caplog):
    from restorer.inference.backends import triton

    capability(9, 0)
    for error in (RuntimeError("no C compiler"), InvalidOutput("wrong features"), OSError("read-only")):
        caplog.clear()
        monkeypatch.setattr(triton, "replace", Mock(side_effect=error))
        backend = backends.half(parts, torch.device("cuda"))
        assert backend.dtype == torch.float16 and str(error) in caplog.text
        assert all(isinstance(compute, torch.nn.Module) for compute in backend.compute)
    for error in (torch.OutOfMemoryError("out of memory"), torch.AcceleratorError("illegal address")):
        monkeypatch.setattr(triton, "replace", Mock(side_effect=error))
        with pytest.raises(type(error)):
            backends.half(parts, torch.device("cuda"))


@needs_triton
def test_triton_is_only_for_hopper(parts, capability, monkeypatch):
    from restorer.inference.backends import triton

    replace = Mock(return_value=["replaced"])
    monkeypatch.setattr(triton, "replace", replace)
    for version, device in (((8, 0), "cuda"), ((10, 0), "cuda"), ((9, 0), "cpu")):
        capability(*version)
        backends.half(parts, torch.device(device))
        assert not replace.called
    capability(9, 0)
    assert backends.half(parts, torch.device("cuda")).compute == ["replaced"]


@needs_triton
def test_networks_of_other_widths_stay_with_pytorch():
    from restorer.inference.backends import triton

    for name in ("compact", "rrdb"):
        modules = backends.modules(network.segments(create(name)), torch.float16).compute
        assert all(triton._replacement(module) is None for module in modules), name


@needs_triton
def test_later_calls_start_the_binary_of_the_first(monkeypatch):
    from restorer.inference.backends import triton_kernel

    kernel, binary = MagicMock(), MagicMock()
    kernel.__getitem__.return_value.return_value = binary
    monkeypatch.setattr(triton_kernel, "_convolve", kernel)
    monkeypatch.setattr(triton_kernel, "_binaries", {})
    layer = triton_kernel.layer(torch.nn.Conv2d(64, 64, 3, dtype=torch.float16), None)
    photo, wider, features = (torch.zeros(size, dtype=torch.float16) for size in SIZES)
    triton_kernel.convolve(layer, photo)
    binary.__getitem__.assert_not_called()
    output = triton_kernel.convolve(layer, wider)
    assert kernel.__getitem__.call_count == 1
    assert binary.__getitem__.call_args.args[0] == (2 * 6, 1, 1)  # two tiles in each of six rows
    arguments = binary.__getitem__.return_value.call_args.args
    assert len(arguments) == len(kernel.__getitem__.return_value.call_args.args)
    assert arguments[0] is wider and arguments[5] is output and arguments[8:10] == (6, 130)
    triton_kernel.convolve(layer, features[..., :64])  # another distance of pixels
    assert kernel.__getitem__.call_count == 2


@needs_triton
def test_cudnn_s_flags_are_set_for_everything_but_triton(parts):
    from restorer.inference.backends import triton

    def seen(*windows):
        return torch.backends.cudnn.allow_tf32

    def switches(compute: network.Compute) -> bool:
        return engine.Guarded(compute, torch.device("cuda"))._precision is not contextlib.nullcontext

    assert torch.backends.cudnn.allow_tf32 and not engine.Guarded(seen, torch.device("cuda"))()
    assert engine.Guarded(seen, torch.device("cpu"))(), "the setting is another thread's"
    for module in (parts[0].module, parts[1].module, parts[-1].module):
        assert switches(module) and not switches(triton._replacement(module))
