"""How long photos take on this machine, and what work they are: what `python -m restorer cost` measures."""

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
    """One kind of photo, timed.

    width, height  of the photo in pixels
    bytes          of its file, a JPEG
    faces          that were restored
    first          seconds of the first photo, the model being loaded; face models are loaded meanwhile
    following      seconds of each of the ones that follow
    elsewhere      seconds of those in decoding and encoding, which no GPU does
    quoted         seconds that Restorer.plan() told after the first photo, without faces
    work           of the networks
    """

    model: str
    width: int
    height: int
    bytes: int
    faces: int
    first: float
    following: tuple[float, ...]
    elsewhere: float
    quoted: float | None
    work: Work

    @property
    def steady(self) -> float:
        """Seconds, the median of the photos that follow."""
        return statistics.median(self.following)


def sample(width: int, height: int, *, face: bool) -> bytes:
    """A JPEG of that size, quality 90, of the project's benchmark photos mirrored, with or without a face."""
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
    loaded: Callable[..., Restorer], width: int, height: int, *, face: bool = False, repeats: int = 3
) -> Timing:
    """Time a photo of that size.

    loaded  gives a Restorer with its model loaded that restored nothing yet, of another device on request

    Raises any RestoreError; WeightsUnavailable for `face` where the face models are not here.
    """
    data = sample(width, height, face=face)
    restorer = loaded()
    wanted = "on" if face else "off"
    first = restorer.restore(data, face_enhance=wanted)
    quoted = restorer.plan(photo.decode(data), face_enhance=wanted).seconds
    results = [restorer.restore(data, face_enhance=wanted) for _ in range(repeats)]
    # what is not torch's own way is not seen by its counter, and a quicker way does the same work
    seen = restorer if first.device.startswith("cuda") else loaded(device="cpu:torch")
    with count_work() as work:
        seen.restore(data, face_enhance=wanted)
    return Timing(
        model=first.model,
        width=width,
        height=height,
        bytes=len(data),
        faces=sum(one.restored for one in first.faces),
        first=first.seconds,
        following=tuple(one.seconds for one in results),
        elsewhere=statistics.median(one.stages["decode"] + one.stages["encode"] for one in results),
        quoted=quoted,
        work=work(),
    )


def cold_start(model: str, *, weights: str | None, device: str | None) -> float:
    """Seconds from starting Python to a loaded model, files in the system's cache.

    Raises RestoreError where that fails.
    """
    script = "import json, sys, restorer; restorer.load(**json.loads(sys.argv[1]))"
    given = json.dumps({"model": model, "weights": weights, "device": device})
    known = {**os.environ, "PYTHONPATH": str(_PROJECT)}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, given], env=known, capture_output=True, text=True)
    if done.returncode:
        raise RestoreError(f"a process of its own could not load {model}: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - start


def device_name(device: str | None) -> tuple[str, int]:
    """What computes, as its maker calls it, and how many physical cores that is: 0 for a GPU."""
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

    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def count_work() -> Iterator[Callable[[], Work]]:
    """Count what PyTorch does meanwhile in this thread.

    Floating-point operations as torch.utils.flop_counter has them, matrix products and convolutions; and
    the elements that every operation reads and writes, as if each had two bytes.
    """
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        flops = elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            with self:  # without gradients, operations come as they were called: a conv2d holds a convolution
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
