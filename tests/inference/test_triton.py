"""RRDBNet in Triton: the kernel by Triton's interpreter, and PyTorch where Triton cannot be used."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from restorer.inference import backends, network
from restorer.models import architectures
from tests.inference.seeded import create

ROOT = Path(__file__).parents[2]
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
    assert {kind.split()[0] for kind in errors} == {"ResidualDenseBlock", "LastDense", "RrdbTail"}
    assert len(errors) == 8 and max(errors.values()) < 2e-3, errors  # of 11 bits and five layers


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton works here")
def test_pytorch_computes_where_triton_fails(parts, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    backend = backends.half(parts, torch.device("cuda"))
    assert backend.dtype == torch.float16 and "Triton" in caplog.text
    assert all(isinstance(compute, torch.nn.Module) for compute in backend.compute)


def test_triton_is_not_imported_for_other_gpus_or_networks(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "restorer.inference.backends.triton", None)  # importing it fails
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert backends.half(parts, torch.device("cuda")).compute
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    compact = network.segments(create("compact"))
    assert backends.half(compact, torch.device("cuda")).compute


def test_other_sizes_of_rrdbnet_are_left_to_pytorch():
    triton = pytest.importorskip("restorer.inference.backends.triton")
    assert not any(triton._replacement(part.module) for part in network.segments(create("rrdb")))
