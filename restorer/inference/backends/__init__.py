"""Run an upscaling network with the fastest backend of this machine."""

import importlib.util
import math
import re
import time
from collections.abc import Callable

import torch
from torch import nn

from ...errors import InvalidOption
from ...models import architectures
from ...models.architectures import NetworkSpec, StateDict
from ...options import BFLOAT16, DEVICES, VULKAN
from .winograd import WinogradNetwork

Network = Callable[[torch.Tensor], torch.Tensor]

# The first is used unless another is clearly faster: a choice that varied from run to run would change the
# last bits of a result
_PREFERRED = {
    "RRDBNet": ("cpu:winograd", "cpu:openvino", "cpu:ncnn", "cpu:torch"),
    "SRVGGNetCompact": ("cpu:openvino", "cpu:ncnn", "cpu:torch", "cpu:winograd"),
}
_MIN_SPEEDUP = 1.2
# The benchmark: a network shortened to _BLOCKS blocks or convolutions, an image of side _SIDE, at least
# _ROUNDS times. It continues up to _MAX_ROUNDS while another backend seems faster than the first, which may
# only have been disturbed
_BLOCKS, _SIDE, _ROUNDS, _MAX_ROUNDS = 3, {"RRDBNet": 64, "SRVGGNetCompact": 256}, 2, 9
_TOO_SLOW = 1.5  # times the fastest: dropped from further rounds
_MAX_SECONDS = 3.0  # on a machine this busy, timings mean nothing
_PACKAGES = {"cpu:openvino": "openvino", "cpu:ncnn": "ncnn", VULKAN: "ncnn"}
# Memory relative to NetworkSpec.bytes, which is torch's; measured with RRDBNet, less with SRVGGNetCompact
MEMORY_FACTOR = {"cpu:winograd": 2.2, "cpu:openvino": 1.3, "cpu:ncnn": 5.2}
_CHOSEN: dict[str, str] = {}  # backend by spec, for this process
# bfloat16, which visibly changes the result, and Vulkan are used only on request
NAMES = (*_PREFERRED["RRDBNet"], BFLOAT16, VULKAN)


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
    that takes 4 times as long as float32, and 2.4 times NetworkSpec.bytes instead of half (measured).
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def build(device: str, spec: NetworkSpec, state: StateDict, name: str) -> tuple[Network, str]:
    """Return the network as `device` runs it, and the name of its backend; "cpu" takes the fastest backend.

    name  of the weights file, for errors

    Raises BadWeights, and InvalidOption if the requested package or GPU is absent.
    """
    module = architectures.build(spec, state, name)  # raises BadWeights, for the other backends too
    if device == "cpu":
        if str(spec) not in _CHOSEN:
            _CHOSEN[str(spec)] = _fastest(*_shortened(spec, state))
        device = _CHOSEN[str(spec)]
    return _create(device, spec, state, module), device


def _create(backend: str, spec: NetworkSpec, state: StateDict, module: nn.Module) -> Network:
    if backend in ("cpu:torch", BFLOAT16):
        dtype = torch.bfloat16 if backend == BFLOAT16 else torch.float32
        module = module.eval().requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _Bfloat16(module) if backend == BFLOAT16 else module
    if backend == "cpu:winograd":
        return WinogradNetwork(spec, state)
    package = _PACKAGES[backend]
    if not _is_installed(package):
        raise InvalidOption(f"the package {package} is not installed: pip install {package}")
    if package == "openvino":
        from .openvino import OpenVinoNetwork

        return OpenVinoNetwork(module)
    from .ncnn import NcnnNetwork, gpus

    if backend == VULKAN and not gpus():
        raise _unavailable(VULKAN)
    return NcnnNetwork(spec, state, vulkan=backend == VULKAN)


class _Bfloat16:
    """A bfloat16 network with float32 inputs and outputs; processors with AMX multiply bfloat16 faster."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self._network(batch.bfloat16()).float()


def _shortened(spec: NetworkSpec, state: StateDict) -> tuple[NetworkSpec, StateDict]:
    """Drop most of the network's repeated parts: the ranking of backends stays, the benchmark is quick."""
    parameter = {"RRDBNet": "num_block", "SRVGGNetCompact": "num_conv"}[spec.arch]
    count = spec.parameters[parameter]
    short = min(count, _BLOCKS)
    steps = 1 if spec.arch == "RRDBNet" else 2  # a convolution and its PReLU
    tensors = {}
    for key, tensor in state.items():
        match = re.match(r"body\.(\d+)\.(.*)", key)
        index = int(match[1]) if match else 0
        last = steps == 2 and index == 2 * count + 2
        if last and match:
            key = f"body.{2 * short + 2}.{match[2]}"
        if last or index < short * steps + 2 * (steps - 1):
            tensors[key] = tensor
    return spec._replace(parameters={**spec.parameters, parameter: short}), tensors


def _fastest(spec: NetworkSpec, state: StateDict) -> str:
    """Time the backends in alternation; return the preferred one unless another is clearly faster."""
    names = [
        name for name in _PREFERRED[spec.arch] if name not in _PACKAGES or _is_installed(_PACKAGES[name])
    ]
    module = architectures.build(spec, state, "the benchmark network")
    networks = {name: _create(name, spec, state, module) for name in names}
    side = _SIDE[spec.arch] * spec.align
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    first, seconds = names[0], dict.fromkeys(names, math.inf)
    benchmark_start = time.perf_counter()
    with torch.inference_mode():
        for rounds in range(1, _MAX_ROUNDS + 1):
            for name in tuple(networks):
                start = time.perf_counter()
                networks[name](image)
                end = time.perf_counter()
                if end - benchmark_start > _MAX_SECONDS:
                    return first
                seconds[name] = min(seconds[name], end - start)
                if name != first and seconds[name] >= _TOO_SLOW * min(seconds.values()):
                    del networks[name]
            if rounds >= _ROUNDS and seconds[first] <= _MIN_SPEEDUP * min(seconds.values()):
                return first
    return min(names, key=seconds.__getitem__)


def _unavailable(device: str) -> InvalidOption:
    return InvalidOption(f"device {device!r} is not available on this machine; use cpu")


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
