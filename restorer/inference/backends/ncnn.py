"""Run RRDBNet and SRVGGNetCompact with ncnn, on the CPU or on a GPU by Vulkan.

The graph is written from the tensors in ncnn's two formats: a text with one line per layer, and the weights
in the order of the layers. https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

import struct
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ncnn import ncnn  # type: ignore[attr-defined]

from ...models.architectures import NetworkSpec, StateDict

_MAGIC = "7767517"
_FLOAT32 = struct.pack("<I", 0)  # precedes the weights of a convolution: their type


class NcnnNetwork:
    """A network that maps (1, 3, h, w) float32 in [0, 1] to (1, 3, h*scale, w*scale), both on the CPU.

    spec    see architectures.detect()
    state   see architectures.read_state()
    vulkan  compute on the first Vulkan GPU
    """

    def __init__(self, spec: NetworkSpec, state: StateDict, *, vulkan: bool = False) -> None:
        layers = _Layers(state)
        self._unshuffle = spec.align
        self._input = layers.add("Input", [])
        self._output = layers.network(spec, self._input)
        self._net = ncnn.Net()
        options = self._net.opt
        options.use_vulkan_compute = vulkan
        options.use_fp16_storage = options.use_fp16_packed = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        options.num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:  # ncnn cannot load weights from memory
            weights = Path(folder, "bin")
            weights.write_bytes(b"".join(layers.weights))
            if self._net.load_param_mem(layers.text()) or self._net.load_model(str(weights)):
                raise RuntimeError(f"ncnn failed to load the {spec.arch}")

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Run the network.

        Raises MemoryError on any failure: ncnn gives no reason, and lack of memory is the likely one.
        """
        image = torch.nn.functional.pixel_unshuffle(batch, self._unshuffle)[0].contiguous()
        with self._net.create_extractor() as extractor:
            extractor.input(self._input, ncnn.Mat(image.numpy()))
            failed, out = extractor.extract(self._output)
            if failed:
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

    def __init__(self, state: StateDict) -> None:
        self.weights: list[bytes] = []
        self._state, self._layers = state, list[_Layer]()

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

    def network(self, spec: NetworkSpec, image: str) -> str:
        """Add a network; `image` is already unshuffled if the network starts with a pixel unshuffle."""
        if spec.arch == "SRVGGNetCompact":
            return self._compact(image, spec.parameters["num_conv"], spec.scale)
        return self._rrdb(image, spec.parameters["num_block"])

    def _compact(self, image: str, convolutions: int, scale: int) -> str:
        """Convolutions with PReLUs and a pixel shuffle, added to the enlarged image."""
        node, last = image, 2 * convolutions + 2
        for index in range(0, last, 2):
            node = self.prelu(self.convolution(node, f"body.{index}"), f"body.{index + 1}")
        node = self.shuffle(self.convolution(node, f"body.{last}"), scale)
        return self.sum(node, self.enlarge(image, scale))

    def _rrdb(self, image: str, blocks: int) -> str:
        """Residual-in-residual dense blocks, then nearest-neighbour upsampling and a convolution, twice."""
        node = trunk = self.convolution(image, "conv_first")
        for block in range(blocks):
            residual = node
            for dense in (1, 2, 3):
                node = self._dense(node, f"body.{block}.rdb{dense}.conv")
            node = self.sum(node, residual, gain=0.2)
        node = self.sum(self.convolution(node, "conv_body"), trunk)
        for name in ("conv_up1", "conv_up2"):
            node = self.convolution(self.enlarge(node, 2), name, slope=0.2)
        return self.convolution(self.convolution(node, "conv_hr", slope=0.2), "conv_last")

    def _dense(self, node: str, name: str) -> str:
        features = [node]
        for index in range(1, 5):
            features.append(self.convolution(self.concat(features), f"{name}{index}", slope=0.2))
        return self.sum(self.convolution(self.concat(features), f"{name}5"), node, gain=0.2)

    def convolution(self, node: str, name: str, *, slope: float | None = None) -> str:
        kernel, bias = self._state[f"{name}.weight"], self._state[f"{name}.bias"]
        settings = f"0={len(kernel)} 1={kernel.shape[2]} 4={kernel.shape[2] // 2} 5=1 6={kernel.numel()}"
        self.weights += [_FLOAT32, _bytes(kernel), _bytes(bias)]
        return self.add("Convolution", [node], settings + ("" if slope is None else f" 9=2 -23310=1,{slope}"))

    def prelu(self, node: str, name: str) -> str:
        slopes = self._state[f"{name}.weight"]
        self.weights.append(_bytes(slopes))
        return self.add("PReLU", [node], f"0={len(slopes)}")

    def concat(self, nodes: Sequence[str]) -> str:
        return nodes[0] if len(nodes) == 1 else self.add("Concat", list(nodes), "0=0")

    def sum(self, node: str, other: str, *, gain: float = 1) -> str:
        if gain != 1:
            node = self.add("BinaryOp", [node], f"0=2 1=1 2={gain}")
        return self.add("BinaryOp", [node, other], "0=0")

    def enlarge(self, node: str, scale: int) -> str:
        return self.add("Interp", [node], f"0=1 1={float(scale)} 2={float(scale)}")

    def shuffle(self, node: str, scale: int) -> str:
        return self.add("PixelShuffle", [node], f"0={scale}")


def _line(kind: str, inputs: list[str], outputs: list[str], settings: str = "") -> str:
    fields = [kind, f"of_{outputs[0]}", str(len(inputs)), str(len(outputs)), *inputs, *outputs, settings]
    return " ".join(fields).rstrip()


def _bytes(tensor: torch.Tensor) -> bytes:
    return np.ascontiguousarray(tensor.numpy(), "<f4").tobytes()
