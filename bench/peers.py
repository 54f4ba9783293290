"""The contestants. Each is built for one network; given a picture, it returns the call to time.

Ours and RealESRGANer take and return 8-bit levels; the others float arrays, or tensors on a GPU. What a
contestant does once for a size of picture is not timed.
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
import torch
from torch import nn

import restorer
from restorer.inference import memory, network
from restorer.models import compat

from .machine import synchronise
from .rounds import OURS
from .subjects import Subject

if TYPE_CHECKING:
    from realesrgan import RealESRGANer

    from restorer.inference.engine import Engine

Ready = Callable[[np.ndarray], Callable[[], Any]]  # (h, w, 3) uint8 RGB to the call that is timed
Network = Callable[[torch.Tensor], torch.Tensor]
REFERENCE, SHIPPED, COMPILED = "PyTorch", "RealESRGANer", "torch.compile"
TILE, _PAD = 512, 10  # where a whole picture does not fit into memory; the context is RealESRGANer's default
# Working memory of a whole picture per pixel in float32: measured with PyTorch, rounded up
_BYTES = {"RRDBNet": 9600, "SRVGGNetCompact": 1536}


def levels(out: np.ndarray | torch.Tensor) -> np.ndarray:
    """What a contestant gave as (h, w, 3) uint8: (1, 3, h, w) floats from 0 to 1 are clipped and rounded."""
    if isinstance(out, np.ndarray) and out.dtype == np.uint8:
        return out
    planes = torch.as_tensor(out).reshape(-1, *out.shape[-2:]).float()
    return planes.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def make(name: str, subject: Subject, device: torch.device) -> Ready:
    """Import a contestant's package and build it. Raises ImportError if it is not installed."""
    if device.type != "cpu" and name not in _ON_GPU:
        raise RuntimeError(f"it is not run on {device.type} here")
    imported(name)
    ready = PEERS[name][1](subject, device)
    return ready if name == OURS else _in_parts(ready, subject, device)


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
    return next(iter(loaded.networks.cache.loaded.values()))[1]


def fits(subject: Subject, pixels: np.ndarray, device: torch.device) -> bool:
    """Return whether half of the free memory holds the whole picture."""
    return pixels[..., 0].size * _BYTES[subject.shape.arch] < memory.free(device) // 2


def _in_parts(ready: Ready, subject: Subject, device: torch.device) -> Ready:
    """The picture whole where it fits, else in tiles."""

    def run(part: np.ndarray) -> np.ndarray:
        return levels(ready(part)())

    def parts(pixels: np.ndarray) -> Callable[[], Any]:
        if fits(subject, pixels, device):
            return ready(pixels)
        return lambda: in_tiles(pixels, run, scale=subject.shape.scale, tile=TILE, pad=_PAD)

    return parts


def in_tiles(
    pixels: np.ndarray, run: Callable[[np.ndarray], np.ndarray], *, scale: int, tile: int, pad: int
) -> np.ndarray:
    """Run a whole network on tiles with `pad` pixels of context, which is cut off, as most programs do."""
    height, width = pixels.shape[:2]
    result = np.empty((height * scale, width * scale, 3), np.uint8)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            above, before = max(top - pad, 0), max(left - pad, 0)
            window = pixels[above : top + tile + pad, before : left + tile + pad]
            out = run(np.ascontiguousarray(window))[(top - above) * scale :, (left - before) * scale :]
            core = result[top * scale : (top + tile) * scale, left * scale : (left + tile) * scale]
            core[:] = out[: core.shape[0], : core.shape[1]]
    return result


def in_float32(subject: Subject, device: torch.device, pixels: np.ndarray) -> np.ndarray:
    """What the network gives in full precision, as levels."""
    from restorer.inference.engine import without_tf32

    with torch.inference_mode(), without_tf32(device):
        return levels(copy.deepcopy(subject.network).to(device)(planes(pixels).to(device)))


def _ours(subject: Subject, device: torch.device) -> Ready:
    loaded = restorer.load(f"custom/{subject.name}", weights=subject.weights, device=str(device))
    engine = engine_of(loaded)

    return lambda pixels: lambda: np.concatenate(list(engine.bands(pixels, tile=engine.best_tile())))


def upsampler(subject: Subject, device: torch.device, tile: int = 0) -> "RealESRGANer":
    """RealESRGANer as shipped: whole pictures unless there is a tile size, half precision on a GPU only."""
    imported(SHIPPED)
    from realesrgan import RealESRGANer

    model, half = copy.deepcopy(subject.network), device.type == "cuda"
    return RealESRGANer(
        subject.shape.scale, str(subject.file), model=model, tile=tile, half=half, device=device
    )


def _shipped(subject: Subject, device: torch.device) -> Ready:
    theirs = upsampler(subject, device)

    def ready(pixels: np.ndarray) -> Callable[[], np.ndarray]:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        return lambda: theirs.enhance(bgr)[0][..., ::-1]

    return ready


def _module(run_network: Network, device: torch.device) -> Ready:
    half = device.type == "cuda"

    def ready(pixels: np.ndarray) -> Callable[[], torch.Tensor]:
        batch = planes(pixels).to(device)
        batch = batch.half() if half else batch

        @torch.inference_mode()
        def run() -> torch.Tensor:
            out = run_network(batch)
            synchronise(device)
            return out

        return run

    return ready


def _placed(module: nn.Module, device: torch.device) -> nn.Module:
    placed = copy.deepcopy(module).to(device)
    return placed.half() if device.type == "cuda" else placed


def _eager(subject: Subject, device: torch.device) -> Ready:
    return _module(_placed(subject.network, device), device)


def _compiled(subject: Subject, device: torch.device) -> Ready:
    module: Any = torch.compile(_placed(subject.network, device), dynamic=False)
    ready = _module(module, device)

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
        model = compiled(*pixels.shape[:2])
        return lambda: model(batch)[0]

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
    """The whole network, by the layers that restorer writes for its segments: no converter is needed."""
    from ncnn import ncnn  # type: ignore[attr-defined]

    from restorer.inference.backends.ncnn import _Layers

    layers = _Layers()
    nodes = {network.IMAGE: layers.add("Input", [])}
    for part in network.segments(subject.network):
        sources = (nodes[name] for name in part.reads)
        nodes[part.writes] = layers.segment(part.module, *sources)
    net, weights = ncnn.Net(), subject.file.with_suffix(".bin")
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    net.opt.num_threads = torch.get_num_threads()
    weights.write_bytes(b"".join(layers.weights))
    if net.load_param_mem(layers.text()) or net.load_model(str(weights)):
        raise RuntimeError("ncnn failed to load the network")

    def run(batch: torch.Tensor) -> torch.Tensor:
        with net.create_extractor() as extractor:
            extractor.input(nodes[network.IMAGE], ncnn.Mat(batch[0].numpy()))
            failed, out = extractor.extract(nodes["output"])
            if failed:
                raise RuntimeError(f"ncnn failed with {failed}")
            return torch.from_numpy(np.array(out))[None]

    return _module(run, device)


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
