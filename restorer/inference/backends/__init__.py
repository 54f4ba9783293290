"""What can run an upscaling network on this machine, and which of it is the fastest."""

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

# The first is taken unless a later one is clearly faster: a choice that changed from run to run would
# change the last bit of a result
_PREFERRED = {
    "RRDBNet": ("cpu:winograd", "cpu:openvino", "cpu:ncnn", "cpu:torch"),
    "SRVGGNetCompact": ("cpu:openvino", "cpu:ncnn", "cpu:torch", "cpu:winograd"),
}
_CLEARLY = 1.2
# What is timed: so many blocks or convolutions, a picture of that side, so often; up to the larger number
# while another seems faster than the first, which may only have been disturbed
_PARTS, _SIDE, _ROUNDS, _MOST_ROUNDS = 3, {"RRDBNet": 64, "SRVGGNetCompact": 256}, 2, 9
_HOPELESS = 1.5  # times as slow as another: not timed again
_PATIENCE = 3.0  # seconds; a machine that is so busy tells nothing
_PACKAGES = {"cpu:openvino": "openvino", "cpu:ncnn": "ncnn", VULKAN: "ncnn"}
# What a way takes beside Shape.bytes, which are torch's: measured with RRDBNet, less with SRVGGNetCompact
MEMORY_FACTOR = {"cpu:winograd": 2.2, "cpu:openvino": 1.3, "cpu:ncnn": 5.2}
_CHOSEN: dict[str, str] = {}  # by shape, in this process
# Only when asked for are those of fewer bits, which show in the picture, and a GPU that torch does not know
NAMES = (*_PREFERRED["RRDBNet"], BFLOAT16, VULKAN)


def pick_device(name: str | None) -> torch.device:
    """The device of that name ("cuda", "cuda:1", "mps", "cpu"), or the fastest there is for None.

    "vulkan" and "cpu:ncnn" and the like are the CPU here: only upscaling networks know them.

    Raises InvalidOption for an unknown or absent device, and for "cpu:bfloat16" without bfloat16 kernels.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == BFLOAT16 and not has_bfloat16_kernels():
        raise InvalidOption(f"{name} needs a processor for which PyTorch has bfloat16 kernels; use cpu")
    if name in NAMES:
        name = "cpu"
    if name not in DEVICES and not re.fullmatch(r"cuda:\d+", str(name)):
        raise InvalidOption(f"device is {name!r}, which is none; the devices are {', '.join(DEVICES)}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _absent(name) from error
    return device


def has_bfloat16_kernels() -> bool:
    """Whether oneDNN computes bfloat16 convolutions on this processor: the test that PyTorch itself makes.

    Elsewhere (x86 without AVX-512, for example) PyTorch unfolds the input of every convolution: measured with
    RRDBNet, that takes 4 times as long as float32 and 2.4 times Shape.bytes instead of half of it.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def build(device: str, shape: NetworkSpec, state: StateDict, name: str) -> tuple[Network, str]:
    """The network as `device` runs it ("cpu": as the fastest way does), and the name of that way.

    Raises BadWeights, and InvalidOption where a package or a GPU that is asked for is absent.
    """
    plain = architectures.build(shape, state, name)  # raises BadWeights, for the other ways too
    if device == "cpu":
        if str(shape) not in _CHOSEN:
            _CHOSEN[str(shape)] = _fastest(*_sample(shape, state))
        device = _CHOSEN[str(shape)]
    return _made(device, shape, state, plain), device


def _made(device: str, shape: NetworkSpec, state: StateDict, plain: nn.Module) -> Network:
    """The network as `device` runs it, `plain` being what torch does."""
    if device in ("cpu:torch", BFLOAT16):
        dtype = torch.bfloat16 if device == BFLOAT16 else torch.float32
        plain = plain.eval().requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _Bfloat16(plain) if device == BFLOAT16 else plain
    if device == "cpu:winograd":
        return WinogradNetwork(shape, state)
    package = _PACKAGES[device]
    if not _has(package):
        raise InvalidOption(f"the package {package} is not installed: pip install {package}")
    if package == "openvino":
        from .openvino import OpenVinoNetwork

        return OpenVinoNetwork(plain)
    from .ncnn import NcnnNetwork, gpus

    if device == VULKAN and not gpus():
        raise _absent(VULKAN)
    return NcnnNetwork(shape, state, vulkan=device == VULKAN)


class _Bfloat16:
    """A network of 16-bit bfloats, which processors with AMX multiply faster: float32 in and out."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self._network(batch.bfloat16()).float()


def _sample(shape: NetworkSpec, state: StateDict) -> tuple[NetworkSpec, StateDict]:
    """The network with few of the parts that follow one another and are all alike: as telling, and quick."""
    name = {"RRDBNet": "num_block", "SRVGGNetCompact": "num_conv"}[shape.arch]
    count = shape.parameters[name]
    left = min(count, _PARTS)
    steps = 1 if shape.arch == "RRDBNet" else 2  # a convolution and its PReLU
    kept = {}
    for key, tensor in state.items():
        found = re.match(r"body\.(\d+)\.(.*)", key)
        index = int(found[1]) if found else 0
        last = steps == 2 and index == 2 * count + 2
        if last and found:
            key = f"body.{2 * left + 2}.{found[2]}"
        if last or index < left * steps + 2 * (steps - 1):
            kept[key] = tensor
    return shape._replace(parameters={**shape.parameters, name: left}), kept


def _fastest(shape: NetworkSpec, state: StateDict) -> str:
    """The preferred way, or the fastest where that is clearly faster. They take turns, on one machine."""
    ways = [way for way in _PREFERRED[shape.arch] if way not in _PACKAGES or _has(_PACKAGES[way])]
    plain = architectures.build(shape, state, "a sample")
    networks = {way: _made(way, shape, state, plain) for way in ways}
    side = _SIDE[shape.arch] * shape.align
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    first, seconds = ways[0], dict.fromkeys(ways, math.inf)
    begun = time.perf_counter()
    with torch.inference_mode():
        for done in range(1, _MOST_ROUNDS + 1):
            for way in tuple(networks):
                start = time.perf_counter()
                networks[way](picture)
                end = time.perf_counter()
                if end - begun > _PATIENCE:
                    return first
                seconds[way] = min(seconds[way], end - start)
                if way != first and seconds[way] >= _HOPELESS * min(seconds.values()):
                    del networks[way]
            if done >= _ROUNDS and seconds[first] <= _CLEARLY * min(seconds.values()):
                return first
    return min(ways, key=seconds.__getitem__)


def _absent(device: str) -> InvalidOption:
    return InvalidOption(
        f"device is {device!r}, which this machine does not have; the devices are {', '.join(DEVICES)}"
    )


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
