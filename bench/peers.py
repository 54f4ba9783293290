"""Who runs a network here. Each is made for one network, and then for a picture gives what is timed.

Ours takes levels and gives levels, RealESRGANer too; the others begin and end with float arrays, on a GPU
with tensors that lie there. What a contestant does once for a size of picture is not timed.
"""

import copy
import functools
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import psutil
import torch
from torch import nn

import restorer
from restorer.inference import tiling
from restorer.models import compat

from .machine import synchronise
from .rounds import OURS
from .subjects import Subject

if TYPE_CHECKING:
    from realesrgan import RealESRGANer

    from restorer.inference.engine import Engine

Ready = Callable[[np.ndarray], Callable[[], Any]]  # (h, w, 3) uint8 RGB to the call that is timed
REFERENCE, SHIPPED, COMPILED = "PyTorch", "RealESRGANer", "torch.compile"
_TILE = 512  # where a whole picture does not fit into memory


def levels(out: np.ndarray | torch.Tensor) -> np.ndarray:
    """What a contestant gave as (h, w, 3) uint8: (1, 3, h, w) floats from 0 to 1 are clipped and rounded."""
    if isinstance(out, np.ndarray) and out.dtype == np.uint8:
        return out
    planes = torch.as_tensor(out).reshape(-1, *out.shape[-2:]).float()
    return planes.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def make(name: str, subject: Subject, device: torch.device) -> Ready:
    """A contestant, its package imported. Raises ImportError where that is not here."""
    if device.type != "cpu" and name not in _ON_GPU:
        raise RuntimeError(f"it is not run on {device.type} here")
    imported(name)
    ready = PEERS[name][1](subject, device)
    return ready if name == OURS else _in_parts(ready, subject)


def imported(name: str) -> None:
    """Import what the contestant needs. Raises ImportError."""
    if name == SHIPPED:
        compat.install()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in PEERS[name][0]:
            importlib.import_module(module)


def engine_of(loaded: "restorer.Restorer") -> "Engine":
    """The engine of the one model that a Restorer has loaded."""
    return next(iter(loaded._models.loaded.values()))[1]


def _in_parts(ready: Ready, subject: Subject) -> Ready:
    """The picture whole where half of the free memory holds it, else in tiles."""

    def parts(pixels: np.ndarray) -> Callable[[], Any]:
        height, width = pixels.shape[:2]
        if height * width * subject.shape.bytes < psutil.virtual_memory().available // 2:
            return ready(pixels)
        _, _, scale, align, pad, _ = subject.shape
        return lambda: tiling.run(
            pixels, lambda tile: levels(ready(tile)()), scale=scale, tile=_TILE, pad=pad, align=align
        )

    return parts


def in_float32(subject: Subject, device: torch.device, pixels: np.ndarray) -> np.ndarray:
    """What the network gives in full precision, as levels."""
    from restorer.inference.engine import without_tf32

    with torch.inference_mode(), without_tf32():
        return levels(copy.deepcopy(subject.network).to(device)(planes(pixels).to(device)))


def _ours(subject: Subject, device: torch.device) -> Ready:
    loaded = restorer.load(f"custom/{subject.name}", weights=subject.weights, device=str(device))
    engine = engine_of(loaded)

    def ready(pixels: np.ndarray) -> Callable[[], np.ndarray]:
        tile = engine.best_tile()
        if max(pixels.shape) <= tile:
            return lambda: engine(pixels)
        return lambda: tiling.run(
            pixels, engine, scale=engine.scale, tile=tile, pad=engine.pad, align=engine.align
        )

    return ready


def upsampler(subject: Subject, device: torch.device) -> "RealESRGANer":
    """RealESRGANer as shipped: whole pictures, half precision on a GPU only."""
    imported(SHIPPED)
    from realesrgan import RealESRGANer

    network = copy.deepcopy(subject.network)
    half = device.type == "cuda"
    return RealESRGANer(subject.shape.scale, str(subject.file), model=network, half=half, device=device)


def _shipped(subject: Subject, device: torch.device) -> Ready:
    theirs = upsampler(subject, device)

    def ready(pixels: np.ndarray) -> Callable[[], np.ndarray]:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        return lambda: theirs.enhance(bgr)[0][..., ::-1]

    return ready


def _module(network: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Ready:
    half = device.type == "cuda"

    def ready(pixels: np.ndarray) -> Callable[[], torch.Tensor]:
        batch = planes(pixels).to(device)
        batch = batch.half() if half else batch

        @torch.inference_mode()
        def run() -> torch.Tensor:
            out = network(batch)
            synchronise(device)
            return out

        return run

    return ready


def _placed(network: nn.Module, device: torch.device) -> nn.Module:
    placed = copy.deepcopy(network).to(device)
    return placed.half() if device.type == "cuda" else placed


def _eager(subject: Subject, device: torch.device) -> Ready:
    return _module(_placed(subject.network, device), device)


def _compiled(subject: Subject, device: torch.device) -> Ready:
    network: Any = torch.compile(_placed(subject.network, device), dynamic=False)
    ready = _module(network, device)

    def compiled(pixels: np.ndarray) -> Callable[[], Any]:
        run = ready(pixels)
        run()  # compiles for this size: a minute for RealESRGAN_x4plus
        return run

    return compiled


def _spandrel(subject: Subject, device: torch.device) -> Ready:
    spandrel: Any = importlib.import_module("spandrel")
    loaded = spandrel.ModelLoader(device=device).load_from_file(str(subject.file))
    return _module((loaded.half() if device.type == "cuda" else loaded).eval(), device)


def _onnx_runtime(subject: Subject, device: torch.device) -> Ready:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_onnx(subject), options, providers=["CPUExecutionProvider"])

    def ready(pixels: np.ndarray) -> Callable[[], Any]:
        batch = planes(pixels).numpy()
        return lambda: session.run(None, {"photo": batch})[0]

    return ready


def _openvino(subject: Subject, device: torch.device) -> Ready:
    openvino: Any = importlib.import_module("openvino")
    core, file = openvino.Core(), _onnx(subject)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())

    @functools.lru_cache(maxsize=4)
    def compiled(height: int, width: int) -> Callable[[np.ndarray], Any]:
        model = core.read_model(file)
        model.reshape([1, 3, height, width])
        return core.compile_model(model, "CPU", hints)

    def ready(pixels: np.ndarray) -> Callable[[], Any]:
        batch = planes(pixels).numpy()
        network = compiled(*pixels.shape[:2])
        return lambda: network(batch)[0]

    return ready


def _onnx(subject: Subject) -> Path:
    """The network as an ONNX file beside its weights; any size of picture."""
    file = subject.file.with_suffix(".onnx")
    if not file.is_file():
        sizes = {2: "height", 3: "width"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                copy.deepcopy(subject.network),
                (torch.zeros(1, 3, 16, 16),),
                str(file),
                dynamo=False,
                input_names=["photo"],
                output_names=["result"],
                dynamic_axes={"photo": sizes, "result": sizes},
            )
    return file


def _ncnn(subject: Subject, device: torch.device) -> Ready:
    """By the graph that restorer writes: nobody else's converter is needed."""
    from restorer.inference.backends.ncnn import NcnnNetwork

    return _module(NcnnNetwork(subject.shape, subject.network.state_dict()), device)


def planes(pixels: np.ndarray) -> torch.Tensor:
    """(1, 3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(255).contiguous()


PEERS: dict[str, tuple[tuple[str, ...], Callable[[Subject, torch.device], Ready]]] = {
    OURS: (("restorer.pipeline", "restorer.inference.engine", "restorer.models.architectures"), _ours),
    SHIPPED: (("realesrgan",), _shipped),
    REFERENCE: (("torch",), _eager),
    COMPILED: (("torch._inductor.compile_fx",), _compiled),
    "ONNX Runtime": (("onnx", "onnxruntime"), _onnx_runtime),
    "OpenVINO": (("onnx", "openvino"), _openvino),
    "ncnn": (("ncnn",), _ncnn),
    "spandrel": (("spandrel",), _spandrel),
}
_ON_GPU = (OURS, SHIPPED, REFERENCE, COMPILED, "spandrel")
