"""Pictures and what the teacher makes of them, kept on disk: each is made once and learnt from many times."""

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
_READ = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")


class Shard(NamedTuple):
    """small (SHARD, h, w, 3) and target (SHARD, 4h, 4w, 3), uint8 RGB, left on disk until they are read."""

    small: np.ndarray
    target: np.ndarray


def make(folder: Path, photos: Path, teacher: torch.nn.Module, *, shards: int, seed: int) -> list[Shard]:
    """The first `shards` files below `folder`; those that are not there yet are made now.

    Each depends on its number, the seed, the photographs and the teacher only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in _READ)
    if not files:
        raise SystemExit(f"training: no photographs in {photos}")
    device = next(teacher.parameters()).device
    for number in range(shards):
        if not _path(folder, "target", number).is_file():
            start = time.monotonic()
            small = _sample(files, np.random.default_rng((seed, number)))
            _write(_path(folder, "small", number), small)
            _write(_path(folder, "target", number), _taught(small, teacher, device))
            print(f"pairs {number + 1}/{shards}  {time.monotonic() - start:.1f} s", flush=True)
    return [
        Shard(*(np.load(_path(folder, part, number), mmap_mode="r") for part in ("small", "target")))
        for number in range(shards)
    ]


def _sample(files: list[Path], rng: np.random.Generator) -> np.ndarray:
    made: list[np.ndarray] = []
    for index in rng.choice(len(files), SHARD // 4, replace=len(files) < SHARD // 4):
        picture = photo.decode(files[index].read_bytes()).pixels
        if picture.dtype != np.uint8 or min(picture.shape[:2]) < degrade.SIDE:
            raise SystemExit(
                f"training: {files[index]} is not an 8-bit photograph of {degrade.SIDE} pixels or more"
            )
        for _ in range(4):  # a photograph is decoded once for four
            word = int(rng.integers(2**32))
            random.seed(word)
            np.random.seed(word)
            made.append(degrade.sample(picture))
    return np.stack(made)


def _taught(small: np.ndarray, teacher: torch.nn.Module, device: torch.device) -> np.ndarray:
    out = []
    with torch.inference_mode():
        for one in small:
            batch = torch.from_numpy(one).to(device).permute(2, 0, 1)[None].float() / 255
            batch = batch.contiguous(memory_format=torch.channels_last)
            answer = teacher(batch)[0].clamp(0, 1).mul(255).round().to(torch.uint8)
            out.append(answer.permute(1, 2, 0).cpu().numpy())
    return np.stack(out)


def _path(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}-{number:05}.npy"


def _write(path: Path, array: np.ndarray) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array)
    os.replace(part, path)
