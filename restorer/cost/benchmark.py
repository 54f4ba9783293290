"""Measure how long photos take on this machine, and the work of the networks, for `restorer cost`."""

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..errors import RestoreError
from ..images import photo
from ..pipeline import Restorer
from .pricing import Work

_PROJECT = Path(__file__).resolve().parents[2]
_PHOTOS = _PROJECT / "assets/benchmark"


@dataclass(frozen=True)
class Timing:
    """Timings of one photo and model.

    width, height  size of the photo in pixels
    bytes          size of its JPEG file
    faces          number of restored faces
    first          seconds of the first photo: the model is loaded, but face models are loaded meanwhile
    warm           seconds of each photo after the first
    codec_seconds  seconds of decoding and encoding in `warm`, always on the CPU; the median
    plan_seconds   estimate of Restorer.plan() after the first photo, without faces
    work           work of the networks
    """

    model: str
    width: int
    height: int
    bytes: int
    faces: int
    first: float
    warm: tuple[float, ...]
    codec_seconds: float
    plan_seconds: float | None
    work: Work

    @property
    def seconds(self) -> float:
        """Seconds of a photo after the first; the median."""
        return statistics.median(self.warm)


def sample(width: int, height: int, *, face: bool) -> bytes:
    """Return a width x height JPEG of quality 90 from the project's benchmark photos, mirrored to that size.

    face  paste a portrait into the top left corner
    """
    picture = np.asarray(Image.open(_PHOTOS / "coffee.jpg").convert("RGB"))
    rows, columns = (max(0, side - own) for side, own in zip((height, width), picture.shape, strict=False))
    canvas = np.pad(picture, ((0, rows), (0, columns), (0, 0)), "symmetric")[:height, :width].copy()
    if face:
        portrait = np.asarray(Image.open(_PHOTOS / "portrait.jpg").convert("RGB"))
        side = min(width, height, len(portrait))
        canvas[:side, :side] = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
    out = io.BytesIO()
    Image.fromarray(canvas).save(out, "JPEG", quality=90)
    return out.getvalue()


def measure(
    load: Callable[..., Restorer], width: int, height: int, *, face: bool = False, repeats: int = 3
) -> Timing:
    """Time a photo of width x height pixels.

    load  returns a fresh Restorer with its model loaded; takes an optional `device`

    Raises any RestoreError; WeightsUnavailable if `face` is set and the face models are absent.
    """
    data = sample(width, height, face=face)
    restorer = load()
    face_enhance = "on" if face else "off"
    first = restorer.restore(data, face_enhance=face_enhance)
    plan_seconds = restorer.plan(photo.decode(data), face_enhance=face_enhance).seconds
    warm = [restorer.restore(data, face_enhance=face_enhance) for _ in range(repeats)]
    # The counter sees only PyTorch's operations. Other backends compute the same network
    counted = restorer if first.device.startswith("cuda") else load(device="cpu:torch")
    with count_work() as work:
        counted.restore(data, face_enhance=face_enhance)
    return Timing(
        model=first.model,
        width=width,
        height=height,
        bytes=len(data),
        faces=sum(detected.restored for detected in first.faces),
        first=first.seconds,
        warm=tuple(result.seconds for result in warm),
        codec_seconds=statistics.median(result.stages["decode"] + result.stages["encode"] for result in warm),
        plan_seconds=plan_seconds,
        work=work(),
    )


def cold_start(model: str, *, weights: str | None, device: str | None) -> float:
    """Return the seconds from starting Python to a loaded model, with its files in the system's cache.

    Raises RestoreError if the process fails.
    """
    script = "import json, sys, restorer; restorer.load(**json.loads(sys.argv[1]))"
    arguments = json.dumps({"model": model, "weights": weights, "device": device})
    env = {**os.environ, "PYTHONPATH": str(_PROJECT)}
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", script, arguments], env=env, capture_output=True, text=True
    )
    if process.returncode:
        raise RestoreError(f"a new process could not load {model}: {process.stderr.strip()[-300:]}")
    return time.perf_counter() - start


def device_name(device: str | None) -> tuple[str, int]:
    """Return the hardware name of the device, and its number of physical cores, 0 for a GPU."""
    import torch

    from ..inference import backends

    chosen = backends.pick_device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen), 0
    if chosen.type != "cpu":
        return chosen.type.upper(), 0
    import psutil

    return _processor(), psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def _processor() -> str:
    import platform

    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def count_work() -> Iterator[Callable[[], Work]]:
    """Count the work of PyTorch in this thread; yields a function that returns the work so far.

    Floating-point operations are those of matrix products and convolutions, by the formulas of
    torch.utils.flop_counter. Bytes are two for each element that an operation reads or writes.
    """
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        flops = elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            with self:  # in inference mode conv2d arrives undecomposed, and only convolution has a formula
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
            out = func(*args, **(kwargs or {}))
            if not func.is_view:
                leaves: Sequence = tree_leaves((args, kwargs, out))
                self.elements += sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
            if formula := flop_registry.get(func.overloadpacket):
                self.flops += formula(*args, **(kwargs or {}), out_val=out)
            return out

    with Counter() as counter:
        yield lambda: Work(float(counter.flops), 2.0 * counter.elements)
