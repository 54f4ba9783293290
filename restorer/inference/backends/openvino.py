"""Compute segments with OpenVINO, which fuses activations into direct convolutions."""

import sys
import warnings
from typing import Any

import torch

from ..network import Segment

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else every import is reported
import openvino  # noqa: E402

_TRACE_SIDE = 8  # of the input that is traced


class OpenVinoSegment:
    """A segment on the CPU, from and to contiguous float32; converted when first called."""

    def __init__(self, part: Segment) -> None:
        self._part, self._request = part, None

    def __call__(self, *windows: torch.Tensor) -> torch.Tensor:
        if self._request is None:
            self._request = _compile(self._part)
        self._request.infer([window.contiguous().numpy() for window in windows])
        # a copy, as another thread may call the segment before this output is used
        return torch.from_numpy(self._request.get_output_tensor().data.copy())


def _compile(part: Segment) -> Any:  # noqa: ANN401  untyped in openvino
    with warnings.catch_warnings(), torch.no_grad(), torch.inference_mode(False):
        # torch.jit.trace is deprecated, but converting an exported program takes 10 times as long
        warnings.simplefilter("ignore")
        examples = tuple(torch.zeros(1, channels, _TRACE_SIDE, _TRACE_SIDE) for channels in part.inputs)
        traced = torch.jit.trace(part.module, examples, check_trace=False)
        model = openvino.convert_model(traced, input=[[1, channels, -1, -1] for channels in part.inputs])
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
