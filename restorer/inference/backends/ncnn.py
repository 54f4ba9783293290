"""Compute segments with ncnn, on the CPU or on a GPU by Vulkan.

The graph is written from the tensors in ncnn's two formats: a text with one line per layer, and the weights
in the order of the layers. https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

import struct
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ncnn import ncnn  # type: ignore[attr-defined]
from torch import nn

from .. import network
from ..network import Segment

_MAGIC = "7767517"
_FLOAT32 = struct.pack("<I", 0)  # precedes the weights of a convolution: their type
_BLOBS, _WORKSPACE = ncnn.PoolAllocator(), ncnn.PoolAllocator()  # of all segments; thread-safe


class NcnnSegment:
    """A segment on the CPU or, with Vulkan, on the first GPU, from and to contiguous float32 on the CPU."""

    def __init__(self, part: Segment, *, vulkan: bool = False) -> None:
        layers = _Layers()
        self._inputs = [layers.add("Input", []) for _ in part.reads]
        self._output = layers.segment(part.module, *self._inputs)
        self._net = ncnn.Net()
        options = self._net.opt
        # by default each network keeps the memory of its largest call: 300 MB for each of 72 segments
        options.blob_allocator, options.workspace_allocator = _BLOBS, _WORKSPACE
        options.use_vulkan_compute = vulkan
        options.use_fp16_storage = options.use_fp16_packed = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        options.num_threads = torch.get_num_threads()
        options.openmp_blocktime = 0  # waiting threads sleep, while others cut and write tiles
        with tempfile.TemporaryDirectory() as folder:  # ncnn cannot load weights from memory
            weights = Path(folder, "bin")
            weights.write_bytes(b"".join(layers.weights))
            if self._net.load_param_mem(layers.text()) or self._net.load_model(str(weights)):
                raise RuntimeError(f"ncnn failed to load the segment that writes {part.writes}")

    def __call__(self, *windows: torch.Tensor) -> torch.Tensor:
        """Run the segment.

        Raises MemoryError on any failure: ncnn gives no reason, and lack of memory is the likely one.
        """
        images = [window[0].contiguous() for window in windows]
        with self._net.create_extractor() as extractor:
            for name, image in zip(self._inputs, images, strict=True):
                extractor.input(name, ncnn.Mat(image.numpy()))
            failed, out = extractor.extract(self._output)
            if failed:
                _BLOBS.clear()
                _WORKSPACE.clear()
                raise MemoryError
            return torch.from_numpy(np.array(out))[None]


def gpus() -> int:
    """Return the number of Vulkan GPUs."""
    return ncnn.get_gpu_count()


class _Layer(NamedTuple):
    kind: str
    inputs: list[str]
    output: str
    settings: str


class _Layers:
    """Builds a graph of layers with one output blob each; methods return the blob's name."""

    def __init__(self) -> None:
        self.weights: list[bytes] = []
        self._layers: list[_Layer] = []

    def add(self, kind: str, inputs: list[str], settings: str = "") -> str:
        output = f"b{len(self._layers)}"
        self._layers.append(_Layer(kind, inputs, output, settings))
        return output

    def text(self) -> str:
        """Return the graph. ncnn allows one reader per blob, so a blob with several is split first."""
        readers = Counter(blob for layer in self._layers for blob in layer.inputs)
        copies = {blob: [f"{blob}_{index}" for index in range(count)] for blob, count in readers.items()}
        lines = []
        for kind, inputs, output, settings in self._layers:
            sources = [copies[blob].pop() if readers[blob] > 1 else blob for blob in inputs]
            lines.append(_line(kind, sources, [output], settings))
            if readers[output] > 1:
                lines.append(_line("Split", [output], copies[output]))
        blobs = len(self._layers) + sum(count for count in readers.values() if count > 1)
        return "\n".join([_MAGIC, f"{len(lines)} {blobs}", *lines, ""])

    def segment(self, module: Any, node: str, other: str = "") -> str:  # noqa: ANN401  of basicsr
        """Add a module of network.segments() with one or two inputs."""
        if isinstance(module, nn.Conv2d):
            return self.convolution(node, module)
        if isinstance(module, nn.PReLU):
            return self.prelu(node, module)
        if isinstance(module, nn.Sequential):
            for layer in module:
                node = self.segment(layer, node)
            return node
        if isinstance(module, network.Residual):
            return self.sum(self.segment(module.layer, node), other)
        if isinstance(module, network.LastDense):
            return self.sum(self._dense(node, module.dense), other, gain=0.2)
        if isinstance(module, network.RrdbTail):
            for layer in (module.up1, module.up2):
                node = self.convolution(self.enlarge(node, 2), layer, slope=0.2)
            return self.segment(module.last, self.convolution(node, module.hr, slope=0.2))
        if isinstance(module, network.CompactTail):
            node = self.add("PixelShuffle", [self.segment(module.layers, node)], f"0={module.scale}")
            return self.sum(node, self.enlarge(other, module.scale))
        return self._dense(node, module)

    def _dense(self, node: str, dense: Any) -> str:  # noqa: ANN401  of basicsr
        features = [node]
        for layer in (dense.conv1, dense.conv2, dense.conv3, dense.conv4):
            features.append(self.convolution(self.concat(features), layer, slope=0.2))
        return self.sum(self.convolution(self.concat(features), dense.conv5), node, gain=0.2)

    def convolution(self, node: str, layer: nn.Conv2d, *, slope: float | None = None) -> str:
        kernel = layer.weight
        settings = f"0={len(kernel)} 1={kernel.shape[2]} 4={kernel.shape[2] // 2} 5=1 6={kernel.numel()}"
        self.weights += [_FLOAT32, _bytes(kernel), _bytes(layer.bias)]  # type: ignore[arg-type]
        return self.add("Convolution", [node], settings + ("" if slope is None else f" 9=2 -23310=1,{slope}"))

    def prelu(self, node: str, layer: nn.PReLU) -> str:
        self.weights.append(_bytes(layer.weight))
        return self.add("PReLU", [node], f"0={len(layer.weight)}")

    def concat(self, nodes: Sequence[str]) -> str:
        return nodes[0] if len(nodes) == 1 else self.add("Concat", list(nodes), "0=0")

    def sum(self, node: str, other: str, *, gain: float = 1) -> str:
        if gain != 1:
            node = self.add("BinaryOp", [node], f"0=2 1=1 2={gain}")
        return self.add("BinaryOp", [node, other], "0=0")

    def enlarge(self, node: str, scale: int) -> str:
        return self.add("Interp", [node], f"0=1 1={float(scale)} 2={float(scale)}")


def _line(kind: str, inputs: list[str], outputs: list[str], settings: str = "") -> str:
    fields = [kind, f"of_{outputs[0]}", str(len(inputs)), str(len(outputs)), *inputs, *outputs, settings]
    return " ".join(fields).rstrip()


def _bytes(tensor: torch.Tensor) -> bytes:
    return np.ascontiguousarray(tensor.detach().numpy(), "<f4").tobytes()
