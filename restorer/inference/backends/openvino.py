"""Run a network with OpenVINO, which fuses activations into direct convolutions."""

import sys
import warnings
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else every import is reported
import openvino  # noqa: E402

# Limits of the cache of compiled shapes, each with its buffers: two of the largest tiles, or a few small
# ones, for threads with different photos
_MAX_SHAPES, _MAX_PIXELS = 4, 2 * 600**2
_TRACE_SIDE = 8  # of the input that is traced


class OpenVinoNetwork:
    """A network on the CPU that maps (1, 3, h, w) float32 in [0, 1] to (1, 3, h*scale, w*scale).

    The output is valid until the next call.
    """

    def __init__(self, network: nn.Module) -> None:
        network = network.eval()
        with warnings.catch_warnings(), torch.no_grad(), torch.inference_mode(False):
            # torch.jit.trace is deprecated, but converting an exported program takes 10 times as long
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(network, torch.zeros(1, 3, _TRACE_SIDE, _TRACE_SIDE), check_trace=False)
            self._model = openvino.convert_model(traced, input=[1, 3, -1, -1])
        self._core = openvino.Core()
        self._hints = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled: OrderedDict[torch.Size, Any] = OrderedDict()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        batch = batch.contiguous()
        request = self._request(batch.shape)
        request.infer([batch.numpy()])
        return torch.from_numpy(request.get_output_tensor().data)

    def _request(self, shape: torch.Size) -> Any:  # noqa: ANN401  untyped in openvino
        compiled = self._compiled
        if shape not in compiled:
            while compiled and (
                len(compiled) >= _MAX_SHAPES or sum(map(_pixels, compiled)) + _pixels(shape) > _MAX_PIXELS
            ):
                compiled.popitem(last=False)
            self._model.reshape(list(shape))
            compiled[shape] = self._core.compile_model(self._model, "CPU", self._hints).create_infer_request()
        compiled.move_to_end(shape)
        return compiled[shape]


def _pixels(shape: torch.Size) -> int:
    return shape[2] * shape[3]
