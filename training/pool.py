"""Training data: worker processes degrade photographs, the teacher upscales the results, a pool stores both.

On a GPU the pool is in its memory; otherwise it is on disk, and a later run continues to fill it.
"""

import json
import multiprocessing
import os
import sys
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from restorer.models import architectures, loader, registry, sources

from . import degrade
from .precision import has_bfloat16

BLOCK = 8  # samples of one photograph: decoding it takes longer than degrading a crop
_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")


class Block(NamedTuple):
    """Samples: small (BLOCK, side, side, 3), truth (BLOCK, 4 side, 4 side, 3), uint8; known (BLOCK,) bool.

    known  whether there is an original; otherwise truth is undefined
    """

    small: np.ndarray
    truth: np.ndarray
    known: np.ndarray


def find_photos(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the photographs to train on and the held-out ones: the last 8 by name, or a third if few.

    Raises SystemExit if there are fewer than 2.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(files) < 2:
        raise SystemExit(f"training: fewer than 2 photographs in {folder}; use {', '.join(_SUFFIXES)}")
    held_out = min(8, max(1, len(files) // 3))
    return files[:-held_out], files[-held_out:]


def create_block(files: list[Path], side: int, seed: int, number: int, for_test: bool) -> Block:
    """Return a block of training or validation samples; it depends on the arguments only.

    A validation block is of photograph `number`, and its odd samples are severely degraded. Raises SystemExit
    for a file that cannot be decoded or is too small.
    """
    degrade.seed(seed, number, int(for_test))
    file = files[number % len(files) if for_test else np.random.randint(len(files))]
    image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    if image is None or min(image.shape[:2]) < 4 * side:
        raise SystemExit(f"training: {file} must be a photograph with sides of {4 * side} pixels or more")
    photo = np.ascontiguousarray(image[..., ::-1])
    samples = [
        degrade.validation_sample(photo, side, severe=bool(i % 2))
        if for_test
        else degrade.sample(photo, side)
        for i in range(BLOCK)
    ]
    blank = np.zeros((4 * side, 4 * side, 3), np.uint8)
    return Block(
        np.stack([small for small, _ in samples]),
        np.stack([blank if truth is None else truth for _, truth in samples]),
        np.array([truth is not None for _, truth in samples]),
    )


class Workers:
    """Processes that create blocks. Create it before CUDA is initialised: on Linux they are forked."""

    def __init__(self, count: int) -> None:
        cv2.setNumThreads(1)  # a forked process must not use the threads of its parent
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.count = count
        self._executor = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)

    def blocks(self, arguments: list[tuple]) -> "Blocks":
        """Create a block for each tuple of arguments of create_block()."""
        return Blocks(self._executor, arguments, 3 * self.count)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


class Blocks:
    """Blocks in the order of their arguments; at most `ahead` of them wait in memory."""

    def __init__(self, executor: ProcessPoolExecutor, arguments: list[tuple], ahead: int) -> None:
        self._executor, self._arguments, self._ahead = executor, deque(arguments), ahead
        self._futures: deque[Future] = deque()
        self._submit()

    def __len__(self) -> int:
        return len(self._futures) + len(self._arguments)

    def ready(self) -> bool:
        """Return whether next() returns without waiting."""
        return bool(self._futures) and self._futures[0].done()

    def next(self) -> Block:
        block = self._futures.popleft().result()
        self._submit()
        return block

    def _submit(self) -> None:
        while self._arguments and len(self._futures) < self._ahead:
            self._futures.append(self._executor.submit(create_block, *self._arguments.popleft()))


def _start_worker() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(5)  # training must not wait for a processor


class Pool:
    """Samples: small (n, side, side, 3), teacher and truth (n, 4 side, 4 side, 3), uint8; `size` exist.

    Where the original is unknown, truth is the teacher's output. `folder` stores the pool on disk; a pool
    there with other arguments is overwritten.
    """

    def __init__(self, capacity: int, side: int, device: torch.device, folder: Path | None, key: str) -> None:
        self.capacity, self.size = -(-capacity // BLOCK) * BLOCK, 0
        self._state = folder and folder / "state.json"
        self._key = f"{key} {side} {self.capacity}"
        if folder and self._state and self._state.is_file():
            state = json.loads(self._state.read_text())
            self.size = state["size"] if state["key"] == self._key else 0
        tensors = []
        for name, length in (("small", side), ("teacher", 4 * side), ("truth", 4 * side)):
            shape = (self.capacity, length, length, 3)
            if folder:
                tensors.append(torch.from_numpy(_open(folder / f"{name}.npy", shape, existing=self.size > 0)))
            else:
                tensors.append(torch.zeros(shape, dtype=torch.uint8, device=device))
        self.small, self.teacher, self.truth = tensors

    def full(self) -> bool:
        return self.size >= self.capacity

    def add(self, block: Block, teacher: nn.Module) -> None:
        """Append a block and the teacher's outputs for it."""
        rows = slice(self.size, self.size + BLOCK)
        device = self.small.device
        small, truth, known = (torch.from_numpy(array).to(device) for array in block)
        outputs = upscale(teacher, small)
        self.small[rows], self.teacher[rows] = small, outputs
        self.truth[rows] = torch.where(known[:, None, None, None], truth, outputs)
        self.size += BLOCK
        if self._state:
            part = self._state.with_suffix(".part")
            part.write_text(json.dumps({"key": self._key, "size": self.size}))
            os.replace(part, self._state)


def _open(path: Path, shape: tuple[int, ...], *, existing: bool) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(path, "r+" if existing else "w+", np.uint8, shape)


def load_network(name: str, device: torch.device) -> nn.Module:
    """Return a model that needs no download, in 16 bits where they are fast. Raises SystemExit if absent."""
    folder = registry.weights_folder()
    source = sources.locate(registry.find(name, folder), folder)
    if source is None:
        raise SystemExit(f"training: the weights of {name} are missing; see weights/README.md")
    state = loader.load(source).state
    network = architectures.build(architectures.detect(state, name), state, name)
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    if device.type == "cuda":
        return network.half()
    return network.bfloat16() if has_bfloat16(device) else network


@torch.no_grad()
def upscale(network: nn.Module, small: torch.Tensor) -> torch.Tensor:
    """Upscale (n, h, w, 3) uint8 to (n, 4h, 4w, 3) uint8: on a GPU in batches of BLOCK, else one by one."""
    weight = next(network.parameters())
    outputs = []
    for batch in small.split(BLOCK if weight.is_cuda else 1):
        image = batch.permute(0, 3, 1, 2).to(weight.dtype) / 255
        output = network(image.contiguous(memory_format=torch.channels_last)).float()
        output = output.nan_to_num(0).clamp(0, 1).mul(255).round().to(torch.uint8)
        outputs.append(output.permute(0, 2, 3, 1))
    return torch.cat(outputs)
