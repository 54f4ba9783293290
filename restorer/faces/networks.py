"""Load the face networks: detectors, restorers and parsers."""

from collections.abc import Callable
from pathlib import Path

from ..models import download
from ..models.registry import Model
from ..progress import Progress
from . import detect


def load(
    model: Model, weights: Path, *, device: str | None, half: bool | None, progress: Progress | None = None
) -> Callable:
    """Load a model of kind "detect", "face" or "parse", downloading its file if it is absent.

    weights, device, half  see Restorer
    progress               see download.ensure()

    Raises WeightsUnavailable, BadWeights and OutOfMemory.
    """
    source = download.ensure(model, weights, progress)
    if source.path.suffix == ".onnx":
        return detect.YuNet(source.path)
    from ..inference import backends, memory
    from ..models import architectures, loader
    from . import engine, parsenet, retinaface

    state = loader.load(source).state
    network = architectures.build(
        architectures.detect_face_network(state, model.kind, model.name), state, model.name
    )
    target = backends.pick_device(device)
    with memory.out_of_memory():
        if model.kind == "detect":
            return retinaface.RetinaFace(network, device=target)
        if model.kind == "parse":
            return parsenet.ParseNet(network, device=target)
        return engine.FaceEngine(network, device=target, half=target.type == "cuda" if half is None else half)
