"""Read weights files, detect their architecture and build the network."""

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

# Every exception the readers raised on 12,000 files with a few corrupted bytes each
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

# The module of each class and the arguments shared by all of its weights files
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

# Per face network: its kind, a key unique to it, and the arguments that depend on the weights file
_FACE_NETWORKS: dict[str, tuple[str, str, dict]] = {
    "GFPGANv1Clean": ("face", "stylegan_decoder.constant_input.weight", {}),
    "RestoreFormer": ("face", "quantize.embedding.weight", {}),
    "RetinaFace": ("detect", "body.conv1.weight", {"network_name": "resnet50"}),
    "RetinaFace mobilenet": ("detect", "body.stage1.0.0.weight", {"network_name": "mobile0.25"}),
    "ParseNet": ("parse", "out_mask_conv.conv2d.weight", {}),
}

# RRDBNet keys of ESRGAN (2018) and BSRGAN, which most community models use, and their names in basicsr
_KEY_PATTERNS = (
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
    """A network's class, its constructor arguments and what it requires of its input.

    align  input sides must be multiples of this
    """

    arch: str
    parameters: dict
    scale: int
    align: int


def read_state(path: Path) -> StateDict:
    """Return the tensors of a .pth or .safetensors file, see parse_state(). Raises BadWeights."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadWeights(f"{path.name} cannot be read: {error.strerror or error}") from error
    return parse_state(data, path.name)


def parse_state(data: bytes, name: str) -> StateDict:
    """Return the tensors of a weights file, floats as float32 on the CPU, RRDBNet keys as in basicsr.

    name  file name; ".safetensors" selects that format, any other suffix PyTorch's

    Uses `params_ema` if present, else `params`, else the bare state dict, as the Real-ESRGAN and GFPGAN
    releases do, and strips the `module.` prefix of DataParallel checkpoints. Raises BadWeights. Never
    executes code from a pickle.
    """
    try:
        if name.lower().endswith(".safetensors"):
            checkpoint: object = safetensors.torch.load(data)
        else:
            checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise BadWeights(f"{name} is not a readable weights file: truncated or in another format") from error
    if isinstance(checkpoint, Mapping):
        checkpoint = checkpoint.get("params_ema", checkpoint.get("params", checkpoint))
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise BadWeights(f"{name} contains no tensors")
    state = {str(key).removeprefix("module."): _validate(checkpoint[key], key, name) for key in checkpoint}
    return _rename_keys(state, name) if any("RDB1." in key for key in state) else state


def detect(state: StateDict, name: str) -> NetworkSpec:
    """Detect the spec of an RRDBNet or SRVGGNetCompact from the tensors' shapes. Raises BadWeights."""
    if any(key.startswith("conv_first.") or ".rdb1." in key for key in state):
        return _detect_rrdb(state, name)
    if any(re.fullmatch(r"body\.\d+\.weight", key) for key in state):
        return _detect_compact(state, name)
    raise BadWeights(
        f"{name} is neither an RRDBNet nor an SRVGGNetCompact: its first key is {next(iter(state))!r}"
    )


def detect_face_network(state: StateDict, kind: str, name: str) -> NetworkSpec:
    """Return the spec of a face network of the kind "face", "detect" or "parse". Raises BadWeights."""
    for arch, (network_kind, key, parameters) in _FACE_NETWORKS.items():
        if network_kind == kind and key in state:
            return NetworkSpec(arch.partition(" ")[0], parameters, 1, align=1)
    raise BadWeights(f"{name} is not a supported {kind!r} network: its first key is {next(iter(state))!r}")


def build(spec: NetworkSpec, state: StateDict, name: str) -> nn.Module:
    """Build the network with exactly these tensors, on the CPU, in float32.

    Raises BadWeights naming the first key that is missing, unexpected or of another shape.
    """
    network = create(spec.arch, spec.parameters)
    template = network.state_dict()
    for key in [*template, *state]:
        expected, actual = template.get(key), state.get(key)
        if expected is None or actual is None or _describe(expected) != _describe(actual):
            raise _mismatch(name, spec.arch, key, actual, None if expected is None else _describe(expected))
    network.load_state_dict(state, strict=True, assign=True)
    return network


def interpolate(first: StateDict, second: StateDict, weight: float) -> StateDict:
    """Return weight x first + (1 - weight) x second per key: deep network interpolation (Wang et al., 2019).

    Raises BadWeights if the states belong to different networks.
    """
    for key in [*first, *second]:
        if key not in first or key not in second or first[key].shape != second[key].shape:
            raise BadWeights(f"cannot blend checkpoints of different networks: they differ in {key}")
    return {key: torch.lerp(second[key], tensor, weight) for key, tensor in first.items()}


def _rename_keys(state: StateDict, file: str) -> StateDict:
    renamed: StateDict = {}
    for key, tensor in state.items():
        new = key
        for pattern, replacement in _KEY_PATTERNS:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise BadWeights(f"{file} does not match RRDBNet: {key} is a duplicate of {new}")
        renamed[new] = tensor
    return renamed


def _validate(tensor: object, key: object, file: str) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise BadWeights(f"{file} contains {key!r}, which is not a tensor")
    try:
        dense = _as_float32(tensor)
    except (RuntimeError, ValueError) as error:
        raise BadWeights(f"{file} contains {key!r}, which is not a dense CPU tensor") from error
    if not dense.numel():
        raise BadWeights(f"{file} contains an empty tensor in {key!r}")
    if dense.is_floating_point() and not torch.isfinite(dense).all():
        raise BadWeights(f"{file} contains NaN or infinite values in {key!r}")
    return dense


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a floating-point tensor to float32. Raises ValueError unless it is dense and on the CPU."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"{tensor.layout} on {tensor.device}")
    # An expanded tensor would let a small file allocate any amount of memory
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("larger than its storage")
    return tensor.float() if tensor.is_floating_point() else tensor


def _detect_rrdb(state: StateDict, name: str) -> NetworkSpec:
    first = _kernel(state, "conv_first.weight", "RRDBNet", name)
    features, channels = first.shape[:2]
    scale = {3: 4, 12: 2, 48: 1}.get(channels)  # pixel-unshuffled input: 3 x (4 / scale) squared
    if scale is None:
        raise BadWeights(f"{name} is not an RGB RRDBNet: conv_first.weight is {tuple(first.shape)}")
    growth = _kernel(state, "body.0.rdb1.conv1.weight", "RRDBNet", name)
    parameters = {
        "num_feat": features,
        "num_block": _last_layer(state, "RRDBNet", name) + 1,
        "num_grow_ch": len(growth),
        "scale": scale,
    }
    return NetworkSpec("RRDBNet", parameters, scale, 4 // scale)


def _detect_compact(state: StateDict, name: str) -> NetworkSpec:
    arch = "SRVGGNetCompact"
    first, last = _kernel(state, "body.0.weight", arch, name), _last_layer(state, arch, name)
    out = _kernel(state, f"body.{last}.weight", arch, name)
    scale = math.isqrt(len(out) // 3)
    if first.shape[1] != 3 or 3 * scale * scale != len(out):
        raise BadWeights(
            f"{name} is not an RGB {arch}: body.0.weight is {tuple(first.shape)} and "
            f"body.{last}.weight is {tuple(out.shape)}"
        )
    if not any(re.fullmatch(r"body\.\d*[13579]\.weight", key) for key in state):
        raise BadWeights(f"{name} has no body.1.weight: {arch} is supported with PReLU activations only")
    parameters = {
        "num_feat": len(first),
        "num_conv": last // 2 - 1,
        "upscale": scale,
        "act_type": "prelu",
    }
    return NetworkSpec(arch, parameters, scale, 1)


def _last_layer(state: StateDict, arch: str, name: str) -> int:
    """Return the highest N of the keys body.N.*; bounded, as every layer has at least one key."""
    numbers = {int(match[1]): key for key in state if (match := re.match(r"body\.(\d{1,9})\.", key))}
    last = max(numbers)
    if last >= len(state):
        raise _mismatch(name, arch, numbers[last], state[numbers[last]], None)
    return last


def _kernel(state: StateDict, key: str, arch: str, name: str) -> torch.Tensor:
    tensor = state.get(key)
    if tensor is None or tensor.ndim != 4:
        raise _mismatch(name, arch, key, tensor, "a kernel of 4 dimensions")
    return tensor


def _describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f" of {tensor.dtype}")


def _mismatch(
    name: str, arch: str, key: str, actual: torch.Tensor | None, expected: str | None
) -> BadWeights:
    if actual is None:
        return BadWeights(f"{name} does not match {arch}: {key} is missing")
    if expected is None:
        return BadWeights(f"{name} does not match {arch}: unexpected key {key}")
    return BadWeights(f"{name} does not match {arch}: {key} should be {expected} but is {_describe(actual)}")


def create(arch: str, parameters: Mapping[str, Any]) -> nn.Module:
    """Create a network of that class on the meta device, without values."""
    module, fixed = _CLASSES[arch]
    with torch.device("meta"), _SkipNormal():
        return compat.load_attribute(module, arch)(**fixed, **parameters)


class _SkipNormal(TorchFunctionMode):
    """Skip random initialisation: on the meta device it imports torch's compiler, which takes seconds."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        return args[0] if func is torch.Tensor.normal_ else func(*args, **(kwargs or {}))
