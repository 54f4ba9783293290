"""From a weights file to a network: read the tensors, recognise the shape, load every one of them."""

import io
import math
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import BadWeights
from . import compat

StateDict = dict[str, torch.Tensor]

# All that readers raised over 12,000 files with a few altered bytes each
_UNREADABLE = (
    safetensors.SafetensorError,
    pickle.PickleError,
    struct.error,
    RuntimeError,
    OSError,
    EOFError,
    MemoryError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)

# Where each class is, and the arguments that all its files have in common
_RGB = {"num_in_ch": 3, "num_out_ch": 3}
_CLASSES: dict[str, tuple[str, dict]] = {
    "RRDBNet": ("basicsr.archs.rrdbnet_arch", _RGB),
    "SRVGGNetCompact": ("basicsr.archs.srvgg_arch", _RGB),
    "GFPGANv1Clean": (
        "gfpgan.archs.gfpganv1_clean_arch",
        {
            "out_size": 512,
            "num_style_feat": 512,
            "channel_multiplier": 2,
            "fix_decoder": False,
            "num_mlp": 8,
            "input_is_latent": True,
            "different_w": True,
            "sft_half": True,
        },
    ),
    "RestoreFormer": ("gfpgan.archs.restoreformer_arch", {}),
    "RetinaFace": ("facexlib.detection.retinaface", {"device": torch.device("meta")}),
    "ParseNet": ("facexlib.parsing.parsenet", {"in_size": 512, "out_size": 512, "parsing_ch": 19}),
}

# What a face network is for, a tensor that only it has, and the arguments that its file decides
_FACE_NETWORKS: dict[str, tuple[str, str, dict]] = {
    "GFPGANv1Clean": ("face", "stylegan_decoder.constant_input.weight", {}),
    "RestoreFormer": ("face", "quantize.embedding.weight", {}),
    "RetinaFace": ("detect", "body.conv1.weight", {"network_name": "resnet50"}),
    "RetinaFace mobilenet": ("detect", "body.stage1.0.0.weight", {"network_name": "mobile0.25"}),
    "ParseNet": ("parse", "out_mask_conv.conv2d.weight", {}),
}

# How ESRGAN (2018) and BSRGAN, and with them most community models, name an RRDBNet's tensors
_RENAMED = (
    (r"^model\.0\.(?=weight|bias)", "conv_first."),
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.\d+\.(?=weight|bias)", "conv_body."),
    (r"^model\.3\.(?=weight|bias)", "conv_up1."),
    (r"^model\.6\.(?=weight|bias)", "conv_up2."),
    (r"^model\.8\.(?=weight|bias)", "conv_hr."),
    (r"^model\.10\.(?=weight|bias)", "conv_last."),
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv(\d)\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
)


class NetworkSpec(NamedTuple):
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


def read_state(path: Path) -> StateDict:
    """The tensors of a .pth or .safetensors file, see parse_state(). Raises BadWeights."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadWeights(f"{path.name} cannot be read: {error.strerror or error}") from error
    return parse_state(data, path.name)


def parse_state(data: bytes, name: str) -> StateDict:
    """The tensors in the bytes of a weights file, in float32 on the CPU, an RRDBNet's by basicsr's names.

    name  of the file: what ends with .safetensors is read as such, anything else as PyTorch's format

    Takes `params_ema` if the file has it, else `params`, else the bare state dict (the rule of the
    Real-ESRGAN and GFPGAN releases). `module.` before every key (a network saved while spread over
    GPUs) is dropped. Raises BadWeights; code in a pickle is never run.
    """
    try:
        if name.lower().endswith(".safetensors"):
            found: object = safetensors.torch.load(data)
        else:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise BadWeights(f"{name} is not a readable weights file (cut off, or of another kind)") from error
    if isinstance(found, Mapping):
        found = found.get("params_ema", found.get("params", found))
    if not isinstance(found, Mapping) or not found:
        raise BadWeights(f"{name} holds no tensors")
    state = {str(key).removeprefix("module."): _checked(found[key], key, name) for key in found}
    return _renamed(state, name) if any("RDB1." in key for key in state) else state


def detect(state: StateDict, name: str) -> NetworkSpec:
    """The shape of an RRDBNet or SRVGGNetCompact, read from its tensors' shapes. Raises BadWeights."""
    if any(key.startswith("conv_first.") or ".rdb1." in key for key in state):
        return _recognise_rrdb(state, name)
    if any(re.fullmatch(r"body\.\d+\.weight", key) for key in state):
        return _recognise_compact(state, name)
    raise BadWeights(
        f"{name} is neither an RRDBNet nor an SRVGGNetCompact: its first key is {next(iter(state))!r}"
    )


def detect_face_network(state: StateDict, kind: str, name: str) -> NetworkSpec:
    """The shape of a network that sees faces, of the kind "face", "detect" or "parse". Raises BadWeights."""
    for arch, (of, key, parameters) in _FACE_NETWORKS.items():
        if of == kind and key in state:
            return NetworkSpec(arch.partition(" ")[0], parameters, 1, align=1, pad=0, bytes=0)
    raise BadWeights(
        f"{name} is no face network of the kind {kind!r}: its first key is {next(iter(state))!r}"
    )


def build(shape: NetworkSpec, state: StateDict, name: str) -> nn.Module:
    """The network of that shape with exactly these tensors, on the CPU, in float32.

    Raises BadWeights, naming the first key that is missing, too much, or of another shape.
    """
    network = create(shape.arch, shape.parameters)
    expected = network.state_dict()
    for key in [*expected, *state]:
        want, have = expected.get(key), state.get(key)
        if want is None or have is None or _form(want) != _form(have):
            raise _misfit(name, shape.arch, key, have, None if want is None else _form(want))
    network.load_state_dict(state, strict=True, assign=True)
    return network


def interpolate(first: StateDict, second: StateDict, share: float) -> StateDict:
    """share x first + (1 - share) x second, key by key: deep network interpolation (Wang et al., 2019).

    Raises BadWeights where they are not two states of one network.
    """
    for key in [*first, *second]:
        if key not in first or key not in second or first[key].shape != second[key].shape:
            raise BadWeights(f"the two checkpoints to blend are not of one network: they differ in {key}")
    return {key: torch.lerp(second[key], tensor, share) for key, tensor in first.items()}


def _renamed(state: StateDict, file: str) -> StateDict:
    renamed: StateDict = {}
    for key, tensor in state.items():
        new = key
        for pattern, name in _RENAMED:
            new = re.sub(pattern, name, new)
        if new in renamed:
            raise BadWeights(f"{file} does not fit RRDBNet: {key} would be its second {new}")
        renamed[new] = tensor
    return renamed


def _checked(tensor: object, key: object, file: str) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise BadWeights(f"{file} holds {key!r}, which is not a tensor")
    try:
        plain = _plain(tensor)
    except (RuntimeError, ValueError) as error:
        raise BadWeights(f"{file} holds {key!r}, which is not an ordinary tensor") from error
    if not plain.numel():
        raise BadWeights(f"{file} holds an empty tensor in {key!r}")
    if plain.is_floating_point() and not torch.isfinite(plain).all():
        raise BadWeights(f"{file} holds NaN or infinite values in {key!r}")
    return plain


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 where it holds fractions. Raises ValueError for one that is not all in memory."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"{tensor.layout} on {tensor.device}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("repeats its numbers")  # a small file could ask for any amount of memory
    return tensor.float() if tensor.is_floating_point() else tensor


def _recognise_rrdb(state: StateDict, name: str) -> NetworkSpec:
    first = _kernel(state, "conv_first.weight", "RRDBNet", name)
    features, channels = first.shape[:2]
    scale = {3: 4, 12: 2, 48: 1}.get(channels)  # pixel-unshuffled input: 3 x (4 / scale) squared
    if scale is None:
        raise BadWeights(f"{name} is not an RRDBNet for RGB: conv_first.weight is {tuple(first.shape)}")
    grow = _kernel(state, "body.0.rdb1.conv1.weight", "RRDBNet", name)
    parameters = {
        "num_feat": features,
        "num_block": _last(state, "RRDBNet", name) + 1,
        "num_grow_ch": len(grow),
        "scale": scale,
    }
    # Its receptive field is 351 pixels, and RealESRGAN_x4plus uses it: tiles of 256 with pad 24 differ from
    # the whole picture by up to 42 levels of 255, 0.17 on average (python -m bench.pad)
    return NetworkSpec(
        "RRDBNet", parameters, scale, 4 // scale, pad=24, bytes=150 * features * scale**2 // 16
    )


def _recognise_compact(state: StateDict, name: str) -> NetworkSpec:
    arch = "SRVGGNetCompact"
    first, last = _kernel(state, "body.0.weight", arch, name), _last(state, arch, name)
    out = _kernel(state, f"body.{last}.weight", arch, name)
    scale = math.isqrt(len(out) // 3)
    if first.shape[1] != 3 or 3 * scale * scale != len(out):
        raise BadWeights(
            f"{name} is not an {arch} for RGB: body.0.weight is {tuple(first.shape)} and "
            f"body.{last}.weight is {tuple(out.shape)}"
        )
    if not any(re.fullmatch(r"body\.\d*[13579]\.weight", key) for key in state):
        raise BadWeights(f"{name} has no body.1.weight: an {arch} is read with PReLU activations only")
    parameters = {
        "num_feat": len(first),
        "num_conv": last // 2 - 1,
        "upscale": scale,
        "act_type": "prelu",
    }
    # Its receptive field, one pixel a 3x3 convolution: tiled and whole are then the same picture
    return NetworkSpec(arch, parameters, scale, 1, pad=last // 2 + 1, bytes=24 * len(first))


def _last(state: StateDict, arch: str, name: str) -> int:
    """The highest N of the keys body.N.*; each has a key or more, so a false one cannot be far off."""
    numbers = {int(found[1]): key for key in state if (found := re.match(r"body\.(\d{1,9})\.", key))}
    last = max(numbers)
    if last >= len(state):
        raise _misfit(name, arch, numbers[last], state[numbers[last]], None)
    return last


def _kernel(state: StateDict, key: str, arch: str, name: str) -> torch.Tensor:
    tensor = state.get(key)
    if tensor is None or tensor.ndim != 4:
        raise _misfit(name, arch, key, tensor, "a kernel of 4 dimensions")
    return tensor


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f" of {tensor.dtype}")


def _misfit(name: str, arch: str, key: str, have: torch.Tensor | None, want: str | None) -> BadWeights:
    if have is None:
        return BadWeights(f"{name} does not fit {arch}: {key} is missing")
    if want is None:
        return BadWeights(f"{name} does not fit {arch}: {key} does not belong to it")
    return BadWeights(f"{name} does not fit {arch}: {key} should be {want} and is {_form(have)}")


def create(arch: str, parameters: Mapping[str, Any]) -> nn.Module:
    """A network of that class without values: on the meta device."""
    module, fixed = _CLASSES[arch]
    with torch.device("meta"), _Unfilled():
        return compat.load(module, arch)(**fixed, **parameters)


class _Unfilled(TorchFunctionMode):
    """Leaves out random weights, for which the meta device would import torch's compiler: seconds."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        return args[0] if func is torch.Tensor.normal_ else func(*args, **(kwargs or {}))
