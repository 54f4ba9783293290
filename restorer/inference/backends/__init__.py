"""Compute the segments of a network with PyTorch, OpenVINO, ncnn or Triton."""

import copy
import importlib.util
import json
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ... import atomic
from ...errors import InvalidOption, InvalidOutput
from ...options import BFLOAT16, DEVICES, VULKAN
from ..network import Compute, Segment

# The fastest backend of both families of networks on Intel processors with AMX, on other x86 with AVX2 or
# AVX-512, and the one elsewhere, where nothing was measured (docs/performance.md)
_WITH_AMX, _ON_X86, _ELSEWHERE = "cpu:torch", "cpu:ncnn", "cpu:openvino"
_X86 = ("x86_64", "AMD64")
_SAVED = "backends.json"  # in the weights folder: the fastest ones of this machine, see save()
FAMILIES = ("RRDBNet", "SRVGGNetCompact")
_PACKAGES = {"cpu:openvino": "openvino", "cpu:ncnn": "ncnn", VULKAN: "ncnn"}
# bfloat16, which visibly changes the result, and Vulkan are used only on request
NAMES = ("cpu:openvino", "cpu:ncnn", "cpu:torch", BFLOAT16, VULKAN)
CHOICES = tuple(name for name in NAMES if name not in (BFLOAT16, VULKAN))  # in float32
_NCNN_TILE = 256
_HOPPER = (9, 0)  # compute capability of the GPUs on which Triton was measured


class Backend(NamedTuple):
    """How the segments of a network are computed.

    compute  one function for each segment: windows of maps to its output, a new tensor, all of this dtype and
             layout
    tile     side of the tiles, whatever is requested: ncnn's Winograd transforms start at a tile's corner, so
             that another size would change the last bits; None: any size gives the same result
    """

    compute: Sequence[Compute]
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format
    tile: int | None = None


def pick_device(name: str | None) -> torch.device:
    """Return the torch device of that name ("cuda", "cuda:1", "mps", "cpu"), or the fastest one for None.

    Backends of upscaling networks ("vulkan", "cpu:ncnn") map to the CPU.

    Raises InvalidOption for an unknown or absent device, and for "cpu:bfloat16" without bfloat16 kernels.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == BFLOAT16 and not has_bfloat16_kernels():
        raise InvalidOption(f"{name} needs a processor with bfloat16 kernels in PyTorch; use cpu")
    if name in NAMES:
        name = "cpu"
    if name not in DEVICES and not re.fullmatch(r"cuda:\d+", str(name)):
        raise InvalidOption(f"unknown device {name!r}; use {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _unavailable(name) from error
    return device


def has_bfloat16_kernels() -> bool:
    """Return whether oneDNN has bfloat16 convolutions for this processor, by PyTorch's own check.

    Elsewhere, such as on x86 without AVX-512, PyTorch unfolds the input of every convolution: with RRDBNet
    that takes 4 times as long as float32 (measured).
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def choose(arch: str, weights: Path) -> str:
    """Return the fastest installed backend for a family of networks on a CPU: saved, or the usual one.

    weights  folder in which save() stored what was measured on this machine

    Raises InvalidOption if that file is damaged.
    """
    usual = _ON_X86 if platform.machine() in _X86 else _ELSEWHERE
    if torch.cpu.get_capabilities().get("amx_tile"):
        usual = _WITH_AMX
    name = _saved(weights).get(arch, usual)
    return name if _is_installed(name) else "cpu:torch"


def save(fastest: Mapping[str, str], weights: Path) -> Path:
    """Store the backends of families for choose(), those of others as they were; return the file."""
    path = weights / _SAVED
    atomic.write_atomic(path, json.dumps(_saved(weights) | dict(fastest), indent=1).encode() + b"\n")
    return path


def _saved(weights: Path) -> dict[str, str]:
    path = weights / _SAVED
    try:
        saved = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidOption(f"cannot read {path}; delete it") from error
    if not isinstance(saved, dict) or not all(
        family in FAMILIES and name in CHOICES for family, name in saved.items()
    ):
        raise InvalidOption(f"{path} names an unknown backend; delete it")
    return saved


def available() -> list[str]:
    """Return the backends that this machine's CPU can use."""
    names = [name for name in CHOICES if _is_installed(name)]
    return [*names, BFLOAT16] if has_bfloat16_kernels() else names


def modules(parts: Sequence[Segment], dtype: torch.dtype = torch.float32) -> Backend:
    """Return a backend of PyTorch modules; copies unless the dtype is float32."""
    if dtype == torch.float32:
        return Backend([part.module for part in parts], dtype, torch.channels_last)
    return Backend([copy.deepcopy(part.module).to(dtype) for part in parts], dtype, torch.channels_last)  # type: ignore[attr-defined]


def half(parts: Sequence[Segment], device: torch.device) -> Backend:
    """Return a float16 backend: PyTorch's modules, or Triton's kernel on Hopper GPUs.

    The first load on a machine compiles the kernels for a few seconds; later ones read Triton's cache. Falls
    back to PyTorch, with a warning, where Triton fails, for example without a C compiler.
    """
    backend = modules(parts, torch.float16)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != _HOPPER:
        return backend
    try:
        from . import triton

        return backend._replace(compute=triton.replace(parts, backend.compute, device))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (ImportError, OSError, RuntimeError, InvalidOutput) as error:
        logging.getLogger(__name__).warning("Triton failed; using PyTorch instead: %s", error)
        return backend


def build(name: str, parts: Sequence[Segment]) -> Backend:
    """Return a backend of the CPU by its name. Raises InvalidOption if its package or GPU is absent."""
    if name in ("cpu:torch", BFLOAT16):
        return modules(parts, torch.bfloat16 if name == BFLOAT16 else torch.float32)
    package = _PACKAGES[name]
    if not _is_installed(name):
        raise InvalidOption(f"the package {package} is not installed: pip install {package}")
    if package == "openvino":
        from .openvino import OpenVinoSegment

        return Backend([OpenVinoSegment(part) for part in parts])
    from .ncnn import NcnnSegment, gpus

    if name == VULKAN and not gpus():
        raise _unavailable(VULKAN)
    return Backend([NcnnSegment(part, vulkan=name == VULKAN) for part in parts], tile=_NCNN_TILE)


def _unavailable(device: str) -> InvalidOption:
    return InvalidOption(f"device {device!r} is not available on this machine; use cpu")


def _is_installed(name: str) -> bool:
    """Return whether the package of a backend is installed, if it needs one."""
    return name not in _PACKAGES or importlib.util.find_spec(_PACKAGES[name]) is not None
