"""Describe the machine: processor, packages, and its rate of matrix products."""

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from restorer.cost import benchmark

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "i8mm", "bf16")
_PACKAGES = ("torch", "numpy", "opencv-python", "realesrgan", "gfpgan", "ncnn", "onnx", "onnxruntime")
_PACKAGES += ("openvino", "spandrel")


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and the packages, for results.json."""
    name, cores = benchmark.device_name(str(device))
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = {"device": name, "cores": cores, "threads": torch.get_num_threads()}
    return {**machine, "instructions": _instructions(), "versions": versions}


def _instructions() -> list[str]:
    listed = Path("/proc/cpuinfo")
    text = listed.read_text() if listed.is_file() else ""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return [name for name in _INSTRUCTIONS if name in flags]


def matrix_product(device: torch.device) -> tuple[Callable[[], None], float]:
    """One product of two square matrices, float32 on a CPU and float16 on a GPU, and its GFLOP."""
    side = 2048 if device.type == "cpu" else 8192  # a GPU needs more to show what it can
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    one = torch.rand(side, side, device=device, dtype=dtype)
    out = torch.empty_like(one)

    def run() -> None:
        torch.mm(one, one, out=out)
        synchronise(device)

    return run, 2 * side**3 / 1e9


def synchronise(device: torch.device) -> None:
    """Wait for all work on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def resident(kind: str) -> int:
    """Return kB of this process's memory by their name in /proc, such as VmHWM (Linux)."""
    return int(re.findall(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
