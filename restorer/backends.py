"""What can run an upscaling network on this machine, and which of it is the fastest."""

import importlib.util
import re
import time
from collections.abc import Callable

import torch

from .errors import InvalidOption
from .networks import Shape, State, build
from .winograd import Winograd

Network = Callable[[torch.Tensor], torch.Tensor]

VULKAN = "vulkan"
# The first is taken unless a later one is clearly faster: a choice that changed from run to run would
# change the last bit of a result
_PREFERRED = {
    "RRDBNet": ("cpu:winograd", "cpu:ncnn", "cpu:torch"),
    "SRVGGNetCompact": ("cpu:ncnn", "cpu:torch", "cpu:winograd"),
}
_CLEARLY = 1.2
# What is timed: an RRDBNet's first blocks, a picture of that side, so often
_BLOCKS, _SIDE, _ROUNDS = 3, {"RRDBNet": 64, "SRVGGNetCompact": 128}, 3
_CHOSEN: dict[str, str] = {}  # by shape, in this process
NAMES = (*_PREFERRED["RRDBNet"], VULKAN)


def pick_device(name: str | None) -> torch.device:
    """The device of that name ("cuda", "cuda:1", "mps", "cpu"), or the fastest there is for None.

    "cpu:torch", "cpu:winograd", "cpu:ncnn" and "vulkan" are the CPU here: only upscaling networks know them.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name in NAMES:
        name = "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidOption(f"device is {name!r}, which this machine does not have") from error
    return device


def network(device: str, shape: Shape, state: State, name: str) -> tuple[Network, str]:
    """The network as `device` runs it ("cpu": as the fastest way does), and the name of that way.

    Raises BadWeights, and InvalidOption where ncnn or a GPU that Vulkan drives is asked for and absent.
    """
    if device == "cpu" and (device := _CHOSEN.get(str(shape), "")) == "":
        build(shape, state, name)  # raises BadWeights
        device = _CHOSEN[str(shape)] = _fastest(*_sample(shape, state))
    return _made(device, shape, state, name), device


def _made(device: str, shape: Shape, state: State, name: str) -> Network:
    plain = build(shape, state, name).eval().requires_grad_(False)
    if device == "cpu:torch":
        return plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device == "cpu:winograd":
        return Winograd(shape, state)
    if not _has_ncnn():
        raise InvalidOption("the package ncnn is not installed: pip install ncnn")
    from .ncnn_network import Ncnn, gpus

    if device == VULKAN and not gpus():
        raise InvalidOption(f"device is {VULKAN!r}, which this machine does not have")
    return Ncnn(shape, state, vulkan=device == VULKAN)


def _sample(shape: Shape, state: State) -> tuple[Shape, State]:
    """The network, an RRDBNet with its first blocks alone: one is like the other, and all take seconds."""
    blocks = min(shape.parameters.get("num_block", 0), _BLOCKS)
    if not blocks:
        return shape, state
    left = re.compile(r"body\.(\d+)\.")
    kept = {key: tensor for key, tensor in state.items() if int((left.match(key) or "00")[1]) < blocks}
    return shape._replace(parameters={**shape.parameters, "num_block": blocks}), kept


def _fastest(shape: Shape, state: State) -> str:
    """The preferred way, or the fastest where that is clearly faster. They take turns, on one machine."""
    ways = [way for way in _PREFERRED[shape.arch] if way != "cpu:ncnn" or _has_ncnn()]
    networks = {way: _made(way, shape, state, "a sample") for way in ways}
    side = _SIDE[shape.arch] * shape.align
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for _ in range(_ROUNDS):
            for way, run in networks.items():
                start = time.perf_counter()
                run(picture)
                seconds[way].append(time.perf_counter() - start)
    fastest = min(ways, key=lambda way: min(seconds[way]))
    return fastest if min(seconds[ways[0]]) > _CLEARLY * min(seconds[fastest]) else ways[0]


def _has_ncnn() -> bool:
    return importlib.util.find_spec("ncnn") is not None
