"""RRDBNet and SRVGGNetCompact by OpenVINO: direct convolution at a CPU's full rate, activations fused."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13 as ops

from . import graph
from .networks import Shape, State

# Of tiles for whose sizes the network is kept compiled, with its buffers: two of the largest, or some small
# ones, for which threads ask in turn whose photos differ
_SIZES, _PIXELS = 4, 2 * 600**2


class OpenVino:
    """A network: (1, 3, h, w) float32 in [0, 1] to (1, 3, h*scale, w*scale), valid until the next call.

    shape, state  as networks.recognise() and networks.read_state() tell them
    """

    def __init__(self, shape: Shape, state: State) -> None:
        self._unshuffle = shape.align
        channels = 3 * shape.align**2
        picture = ops.parameter([1, channels, -1, -1], np.float32)
        result = graph.network(shape, _Layers(state), picture)
        self._model = openvino.Model([result], [picture])  # type: ignore[misc]
        self._core = openvino.Core()
        self._hints = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled: OrderedDict[torch.Size, Any] = OrderedDict()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        picture = torch.nn.functional.pixel_unshuffle(batch, self._unshuffle).contiguous()
        request = self._request(picture.shape)
        request.infer([picture.numpy()])
        return torch.from_numpy(request.get_output_tensor().data)

    def _request(self, size: torch.Size) -> Any:  # noqa: ANN401  untyped in openvino
        if size not in self._compiled:
            kept = self._compiled
            while kept and (len(kept) >= _SIZES or sum(map(_pixels, kept)) + _pixels(size) > _PIXELS):
                kept.popitem(last=False)
            self._model.reshape(list(size))
            kept[size] = self._core.compile_model(self._model, "CPU", self._hints).create_infer_request()
        self._compiled.move_to_end(size)
        return self._compiled[size]


def _pixels(size: torch.Size) -> int:
    return size[2] * size[3]


class _Layers:
    def __init__(self, state: State) -> None:
        self._state = state

    def convolution(self, node: Any, name: str, *, slope: float | None = None) -> Any:  # noqa: ANN401
        kernel, bias = self._state[f"{name}.weight"], self._state[f"{name}.bias"]
        pad = [kernel.shape[2] // 2] * 2
        out = ops.convolution(node, _constant(kernel), [1, 1], pad, pad, [1, 1])
        out = ops.add(out, _constant(bias.view(1, -1, 1, 1)))
        return out if slope is None else ops.prelu(out, np.array([slope], np.float32))

    def prelu(self, node: Any, name: str) -> Any:  # noqa: ANN401
        return ops.prelu(node, _constant(self._state[f"{name}.weight"]))

    def joined(self, nodes: Sequence[Any]) -> Any:  # noqa: ANN401
        return nodes[0] if len(nodes) == 1 else ops.concat(list(nodes), axis=1)

    def sum(self, node: Any, other: Any, *, share: float = 1) -> Any:  # noqa: ANN401
        return ops.add(node if share == 1 else ops.multiply(node, np.float32(share)), other)

    def larger(self, node: Any, scale: int) -> Any:  # noqa: ANN401
        return ops.interpolate(
            node,
            np.array([scale, scale], np.float32),
            mode="nearest",
            shape_calculation_mode="scales",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=np.array([2, 3]),
        )

    def shuffled(self, node: Any, scale: int) -> Any:  # noqa: ANN401
        return ops.depth_to_space(node, "depth_first", scale)


def _constant(tensor: torch.Tensor) -> Any:  # noqa: ANN401
    return ops.constant(tensor.contiguous().numpy())
