"""From a weights file to a network: read the tensors, recognise the shape, load every one of them."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from . import compat
from .errors import BadWeights

State = dict[str, torch.Tensor]


class Shape(NamedTuple):
    """A network's class and the arguments that build it, and what it asks of its tiles.

    align  input sides are multiples of this
    pad    context a tile needs, in input pixels (bench/pad.py measures it)
    bytes  working memory for each input pixel in float32 (measured, rounded up)
    """

    arch: str
    parameters: dict
    scale: int
    align: int
    pad: int
    bytes: int


def read_state(path: Path) -> State:
    """The tensors of a .pth or .safetensors file, in float32 on the CPU.

    Takes `params_ema` if the file has it, else `params`, else the bare state dict (the rule of the
    Real-ESRGAN and GFPGAN releases). Raises BadWeights; code in a pickle is never run.
    """
    try:
        if path.suffix == ".safetensors":
            found: object = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        safetensors.SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
    ) as e:
        raise BadWeights(f"{path.name} is not a readable weights file (cut off, or of another kind)") from e
    if isinstance(found, Mapping):
        found = found.get("params_ema", found.get("params", found))
    if not isinstance(found, Mapping) or not found:
        raise BadWeights(f"{path.name} holds no tensors")
    state: State = {}
    for key, tensor in found.items():
        if not isinstance(tensor, torch.Tensor):
            raise BadWeights(f"{path.name} holds {key!r}, which is not a tensor")
        if not torch.isfinite(tensor).all():
            raise BadWeights(f"{path.name} holds NaN or infinite values in {key!r}")
        state[str(key)] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def recognise(state: State, name: str) -> Shape:
    """The shape of an RRDBNet or SRVGGNetCompact, read from its tensors' shapes. Raises BadWeights."""
    first = state.get("conv_first.weight")
    if first is not None and first.ndim == 4:
        return _recognise_rrdb(state, first, name)
    first = state.get("body.0.weight")
    if first is not None and first.ndim == 4:
        return _recognise_compact(state, first, name)
    raise BadWeights(
        f"{name} is neither an RRDBNet nor an SRVGGNetCompact: its first key is {next(iter(state))!r}"
    )


def _recognise_rrdb(state: State, first: torch.Tensor, name: str) -> Shape:
    features, channels = first.shape[:2]
    scale = {3: 4, 12: 2, 48: 1}.get(channels)  # pixel-unshuffled input: 3 x (4 / scale) squared
    grow = state.get("body.0.rdb1.conv1.weight")
    if scale is None or grow is None:
        raise BadWeights(f"{name} is not an RRDBNet for RGB: conv_first.weight is {tuple(first.shape)}")
    blocks = len({key.split(".")[1] for key in state if key.startswith("body.")})
    parameters = {"num_feat": features, "num_block": blocks, "num_grow_ch": len(grow), "scale": scale}
    # The receptive field is 351 pixels, but what lies beyond 24 changes no 8-bit level (bench/pad.py)
    return Shape("RRDBNet", parameters, scale, 4 // scale, pad=24, bytes=150 * features * scale**2 // 16)


def _recognise_compact(state: State, first: torch.Tensor, name: str) -> Shape:
    features = len(first)
    weights = sorted(
        (int(key.split(".")[1]), tensor)
        for key, tensor in state.items()
        if key.startswith("body.") and key.endswith(".weight") and tensor.ndim == 4
    )
    last, out = weights[-1]
    scale = math.isqrt(len(out) // 3)
    if first.shape[1] != 3 or 3 * scale * scale != len(out):
        raise BadWeights(
            f"{name} is not an SRVGGNetCompact for RGB: body.{last}.weight is {tuple(out.shape)}"
        )
    if "body.1.weight" not in state:
        raise BadWeights(
            f"{name} has no body.1.weight: an SRVGGNetCompact is read with PReLU activations only"
        )
    parameters = {"num_feat": features, "num_conv": len(weights) - 2, "upscale": scale, "act_type": "prelu"}
    # Its receptive field, one pixel a 3x3 convolution: tiled and whole are then the same picture
    return Shape("SRVGGNetCompact", parameters, scale, 1, pad=len(weights), bytes=24 * features)


def build(shape: Shape, state: State, name: str) -> nn.Module:
    """The network of that shape with exactly these tensors, on the CPU, in float32.

    Raises BadWeights, naming the first key that is missing, too much, or of another shape.
    """
    network = _new(shape)
    expected = network.state_dict()
    for key in [*expected, *state]:
        want, have = expected.get(key), state.get(key)
        if want is None or have is None or want.shape != have.shape:
            shapes = [None if t is None else tuple(t.shape) for t in (want, have)]
            raise BadWeights(
                f"{name} does not fit {shape.arch}: {key} should be {shapes[0]} and is {shapes[1]}"
            )
    network.load_state_dict(state, strict=True, assign=True)
    return network


def blend(first: State, second: State, share: float) -> State:
    """share x first + (1 - share) x second, key by key: deep network interpolation (Wang et al., 2019)."""
    return {key: torch.lerp(second[key], tensor, share) for key, tensor in first.items()}


def _new(shape: Shape) -> nn.Module:
    module = {"RRDBNet": "basicsr.archs.rrdbnet_arch", "SRVGGNetCompact": "basicsr.archs.srvgg_arch"}[
        shape.arch
    ]
    with torch.device("meta"):  # no time is spent on random weights
        return compat.network_class(module, shape.arch)(num_in_ch=3, num_out_ch=3, **shape.parameters)
