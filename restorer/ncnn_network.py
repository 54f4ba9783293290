"""RRDBNet and SRVGGNetCompact by ncnn: its kernels for the CPU are fast, and Vulkan drives most GPUs.

The graph is written from the tensors in ncnn's own two formats: a line of text for each layer, and the
weights in the layers' order. https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

import struct
import tempfile
from pathlib import Path

import numpy as np
import torch
from ncnn import ncnn  # type: ignore[attr-defined]

from .networks import Shape, State

_MAGIC = "7767517"
_PLAIN_FLOATS = struct.pack("<I", 0)  # before a convolution's weights: they are float32
_ADD, _TIMES = "0=0", "0=2 1=1 2={}"


class Ncnn:
    """A network: (1, 3, h, w) float32 in [0, 1] to (1, 3, h*scale, w*scale), both in main memory.

    shape, state  as networks.recognise() and networks.read_state() tell them
    vulkan        compute on the first GPU that Vulkan drives
    """

    def __init__(self, shape: Shape, state: State, *, vulkan: bool = False) -> None:
        graph = _Graph(state)
        self._unshuffle = shape.align
        self._input = graph.add("Input", [])
        self._output = (graph.compact if shape.arch == "SRVGGNetCompact" else graph.rrdb)(
            self._input, **shape.parameters
        )
        self._net = ncnn.Net()
        options = self._net.opt
        options.use_vulkan_compute = vulkan
        options.use_fp16_storage = options.use_fp16_packed = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        options.num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:  # from memory it takes no weights
            weights = Path(folder, "bin")
            weights.write_bytes(b"".join(graph.weights))
            if self._net.load_param_mem(graph.text()) or self._net.load_model(str(weights)):
                raise RuntimeError(f"ncnn does not take the graph of this {shape.arch}")

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Raises MemoryError when ncnn does not finish: it says no more, and it is why it would not."""
        picture = torch.nn.functional.pixel_unshuffle(batch, self._unshuffle)[0].contiguous()
        with self._net.create_extractor() as run:
            run.input(self._input, ncnn.Mat(picture.numpy()))
            failed, out = run.extract(self._output)
            if failed:
                raise MemoryError
            return torch.from_numpy(np.array(out))[None]


def gpus() -> int:
    """How many GPUs Vulkan drives here."""
    return ncnn.get_gpu_count()


class _Graph:
    """Layers of ncnn and their weights. A blob is read once: what several read is split first."""

    def __init__(self, state: State) -> None:
        self.weights: list[bytes] = []
        self._state, self._lines, self._blobs = state, list[str](), 0

    def text(self) -> str:
        return "\n".join([_MAGIC, f"{len(self._lines)} {self._blobs}", *self._lines, ""])

    def add(self, kind: str, inputs: list[str], settings: str = "") -> str:
        return self._add(kind, inputs, 1, settings)[0]

    def _add(self, kind: str, inputs: list[str], count: int, settings: str = "") -> list[str]:
        outputs = [f"b{self._blobs + index}" for index in range(count)]
        self._blobs += count
        name = f"l{len(self._lines)}"
        self._lines.append(
            " ".join([kind, name, str(len(inputs)), str(count), *inputs, *outputs, settings]).rstrip()
        )
        return outputs

    def _split(self, blob: str, readers: int) -> list[str]:
        return [blob] if readers == 1 else self._add("Split", [blob], readers)

    def _convolution(self, blob: str, name: str, *, leaky: bool = False) -> str:
        kernel, bias = self._state[f"{name}.weight"], self._state[f"{name}.bias"]
        settings = f"0={len(kernel)} 1={kernel.shape[2]} 4={kernel.shape[2] // 2} 5=1 6={kernel.numel()}"
        self.weights += [_PLAIN_FLOATS, _bytes(kernel), _bytes(bias)]
        return self.add("Convolution", [blob], settings + (" 9=2 -23310=1,0.2" if leaky else ""))

    def _larger(self, blob: str, scale: int) -> str:
        return self.add("Interp", [blob], f"0=1 1={float(scale)} 2={float(scale)}")

    def _plus(self, blob: str, other: str, share: float = 1) -> str:
        scaled = blob if share == 1 else self.add("BinaryOp", [blob], _TIMES.format(share))
        return self.add("BinaryOp", [scaled, other], _ADD)

    def compact(self, blob: str, *, num_conv: int, upscale: int, **_: object) -> str:
        """Convolutions, each with a PReLU; the last one's channels become pixels, on the enlarged picture."""
        blob, picture = self._split(blob, 2)
        for index in range(0, 2 * num_conv + 2, 2):
            blob = self._convolution(blob, f"body.{index}")
            slope = self._state[f"body.{index + 1}.weight"]
            self.weights.append(_bytes(slope))
            blob = self.add("PReLU", [blob], f"0={len(slope)}")
        blob = self._convolution(blob, f"body.{2 * num_conv + 2}")
        blob = self.add("PixelShuffle", [blob], f"0={upscale}")
        return self._plus(blob, self._larger(picture, upscale))

    def rrdb(self, blob: str, *, num_block: int, **_: object) -> str:
        """Dense blocks in threes, each with its residual; then nearest pixels and a convolution, twice."""
        blob, trunk = self._split(self._convolution(blob, "conv_first"), 2)
        for block in range(num_block):
            blob, before = self._split(blob, 2)
            for dense in (1, 2, 3):
                blob = self._dense(blob, f"body.{block}.rdb{dense}.conv")
            blob = self._plus(blob, before, 0.2)
        blob = self._plus(self._convolution(blob, "conv_body"), trunk)
        for name in ("conv_up1", "conv_up2"):
            blob = self._convolution(self._larger(blob, 2), name, leaky=True)
        return self._convolution(self._convolution(blob, "conv_hr", leaky=True), "conv_last")

    def _dense(self, blob: str, name: str) -> str:
        before, *rest = self._split(blob, 6)
        seen = [rest]  # of each feature map, one blob for each convolution that will read it
        for index in range(1, 6):
            inputs = [blobs.pop() for blobs in seen]
            joined = inputs[0] if index == 1 else self.add("Concat", inputs, "0=0")
            blob = self._convolution(joined, f"{name}{index}", leaky=index < 5)
            if index < 5:
                seen.append(self._split(blob, 5 - index))
        return self._plus(blob, before, 0.2)


def _bytes(tensor: torch.Tensor) -> bytes:
    return np.ascontiguousarray(tensor.numpy(), "<f4").tobytes()
