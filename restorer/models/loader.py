"""Load a weights file into tensors, with the SHA-256 of the bytes that were read."""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import BadWeights
from . import architectures
from .architectures import StateDict
from .sources import Packaged, Source

_FLOAT16_TAG = struct.pack("<I", 0x01306B47)  # ncnn writes it before a convolution's float16 weights


@dataclass(frozen=True)
class Weights:
    """The tensors of a file in float32, its SHA-256, and the kind of its source."""

    state: StateDict
    sha256: str
    kind: str


def load(source: Source) -> Weights:
    """Read a source's tensors into memory; the file may be replaced or overwritten afterwards.

    Raises BadWeights if the file cannot be read or does not match the source's SHA-256.
    """
    try:
        if source.packaged:
            state, sha256 = _read_packaged(source.path, source.packaged)
        else:
            data = source.path.read_bytes()
            state = architectures.parse_state(data, source.path.name)
            sha256 = hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise BadWeights(f"{source.path.name} cannot be read: {error.strerror or error}") from error
    if source.sha256 and sha256 != source.sha256:
        raise BadWeights(f"{source.path.name} changed while being read; try again")
    return Weights(state, sha256, source.kind)


def _read_packaged(path: Path, packaged: Packaged) -> tuple[StateDict, str]:
    """Return the tensors of an ncnn .bin file, which stores the layers in module order, and its SHA-256.

    A convolution is a tag, float16 weights (out, in, 3, 3) padded to 4 bytes, and float32 biases; a PReLU is
    its float32 slopes. https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
    """
    expected = architectures.create(packaged.arch, packaged.parameters).state_dict()
    digest = hashlib.sha256()
    state: StateDict = {}
    with path.open("rb") as file:
        for key, tensor in expected.items():
            if tensor.ndim == 4:
                if _read(file, digest, len(_FLOAT16_TAG)) != _FLOAT16_TAG:
                    raise BadWeights(f"{path.name} has no float16 weights at {key}")
                size = tensor.numel() * 2
                data = _read(file, digest, size + -size % 4)[:size]
                values = np.frombuffer(data, "<f2").astype(np.float32)
            else:
                values = np.frombuffer(_read(file, digest, tensor.numel() * 4), "<f4").astype(np.float32)
            state[key] = torch.from_numpy(values).view(tensor.shape)
        if file.read(1):
            raise BadWeights(f"{path.name} has data after the last tensor")
    return state, digest.hexdigest()


def _read(file: BinaryIO, digest: "hashlib._Hash", size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise BadWeights(f"{Path(file.name).name} is truncated")
    digest.update(data)
    return data
