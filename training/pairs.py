"""Training pairs on disk: inputs and the teacher's outputs, computed once and read many times."""

import os
import random
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from restorer.images import photo

from . import degrade

SHARD = 32  # pairs in a file
_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")


class Shard(NamedTuple):
    """Memory-mapped pairs: small (SHARD, h, w, 3) and target (SHARD, 4h, 4w, 3), uint8 RGB."""

    small: np.ndarray
    target: np.ndarray


def create(folder: Path, photos: Path, teacher: torch.nn.Module, *, shards: int, seed: int) -> list[Shard]:
    """Return the first `shards` shards in `folder`, creating those that do not exist.

    A shard depends only on its number, the seed, the photographs and the teacher. Raises SystemExit without
    photographs, and for one without 8 bits or smaller than degrade.SIDE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise SystemExit(f"training: no photographs in {photos}; use {', '.join(_SUFFIXES)}")
    device = next(teacher.parameters()).device
    for number in range(shards):
        if not _path(folder, "target", number).is_file():
            start = time.monotonic()
            small = _sample(files, np.random.default_rng((seed, number)))
            _write(_path(folder, "small", number), small)
            _write(_path(folder, "target", number), _teacher_outputs(small, teacher, device))
            print(f"pairs {number + 1}/{shards}  {time.monotonic() - start:.1f} s", flush=True)
    return [
        Shard(*(np.load(_path(folder, part, number), mmap_mode="r") for part in ("small", "target")))
        for number in range(shards)
    ]


def _sample(files: list[Path], rng: np.random.Generator) -> np.ndarray:
    samples: list[np.ndarray] = []
    for index in rng.choice(len(files), SHARD // 4, replace=len(files) < SHARD // 4):
        image = photo.decode(files[index].read_bytes()).pixels
        if image.dtype != np.uint8 or min(image.shape[:2]) < degrade.SIDE:
            raise SystemExit(
                f"training: {files[index]} must have 8 bits and sides of {degrade.SIDE} pixels or more"
            )
        for _ in range(4):  # decoding is slow: use each photograph four times
            seed = int(rng.integers(2**32))
            random.seed(seed)
            np.random.seed(seed)
            samples.append(degrade.sample(image))
    return np.stack(samples)


def _teacher_outputs(small: np.ndarray, teacher: torch.nn.Module, device: torch.device) -> np.ndarray:
    outputs = []
    with torch.inference_mode():
        for image in small:
            batch = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
            batch = batch.contiguous(memory_format=torch.channels_last)
            output = teacher(batch)[0].clamp(0, 1).mul(255).round().to(torch.uint8)
            outputs.append(output.permute(1, 2, 0).cpu().numpy())
    return np.stack(outputs)


def _path(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}-{number:05}.npy"


def _write(path: Path, array: np.ndarray) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array)
    os.replace(part, path)
