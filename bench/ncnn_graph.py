"""The two networks as ncnn's own files, written from their tensors; docs of the format: ncnn's wiki."""

import struct
from pathlib import Path

import torch

State = dict[str, torch.Tensor]
_LEAKY = " 9=2 -23310=1,0.2"  # an activation within the convolution


class Graph:
    """Layers in order, each with the text of its line and the bytes of its weights."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.weights: list[bytes] = []
        self.blobs = 0

    def add(self, kind: str, given: list[str], parameters: str = "", *, outs: int = 1) -> list[str]:
        made = [f"b{self.blobs + index}" for index in range(outs)]
        self.blobs += outs
        cells = [kind, f"l{len(self.lines)}", len(given), outs, *given, *made, parameters]
        self.lines.append(" ".join(map(str, cells)).rstrip())
        return made

    def convolution(self, given: str, state: State, name: str, activation: str = "") -> str:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        sizes = f"0={len(weight)} 1={weight.shape[-1]} 4={weight.shape[-1] // 2} 5=1 6={weight.numel()}"
        self.weights += [struct.pack("<I", 0), _bytes(weight), _bytes(bias)]
        return self.add("Convolution", [given], sizes + activation)[0]

    def scaled_sum(self, given: str, share: float, other: str) -> str:
        """given * share + other"""
        scaled = self.add("BinaryOp", [given], f"0=2 1=1 2={share}")
        return self.add("BinaryOp", [*scaled, other], "0=0")[0]

    def write(self, stem: Path) -> tuple[Path, Path]:
        parameters, weights = stem.with_suffix(".param"), stem.with_suffix(".bin")
        parameters.write_text("\n".join(["7767517", f"{len(self.lines)} {self.blobs}", *self.lines, ""]))
        weights.write_bytes(b"".join(self.weights))
        return parameters, weights


def compact(state: State, scale: int) -> tuple[Graph, str, str]:
    """SRVGGNetCompact with PReLU: the graph, and the names of its input and its output."""
    graph = Graph()
    (given,) = graph.add("Input", [])
    here, aside = graph.add("Split", [given], outs=2)
    last = max(int(key.split(".")[1]) for key in state)
    for index in range(0, last, 2):
        here = graph.convolution(here, state, f"body.{index}")
        slopes = state[f"body.{index + 1}.weight"]
        graph.weights.append(_bytes(slopes))
        (here,) = graph.add("PReLU", [here], f"0={len(slopes)}")
    here = graph.convolution(here, state, f"body.{last}")
    (here,) = graph.add("PixelShuffle", [here], f"0={scale}")
    (base,) = graph.add("Interp", [aside], f"0=1 1={float(scale)} 2={float(scale)}")
    return graph, given, graph.add("BinaryOp", [here, base], "0=0")[0]


def rrdb(state: State, blocks: int) -> tuple[Graph, str, str]:
    """RRDBNet of scale 4: the graph, and the names of its input and its output."""
    graph = Graph()
    (given,) = graph.add("Input", [])
    first, here = graph.add("Split", [graph.convolution(given, state, "conv_first")], outs=2)
    for block in range(blocks):
        aside, here = graph.add("Split", [here], outs=2)
        for dense in (1, 2, 3):
            here = _dense(graph, here, state, f"body.{block}.rdb{dense}")
        here = graph.scaled_sum(here, 0.2, aside)
    (here,) = graph.add("BinaryOp", [graph.convolution(here, state, "conv_body"), first], "0=0")
    for name in ("conv_up1", "conv_up2"):
        (here,) = graph.add("Interp", [here], "0=1 1=2.0 2=2.0")
        here = graph.convolution(here, state, name, _LEAKY)
    here = graph.convolution(here, state, "conv_hr", _LEAKY)
    return graph, given, graph.convolution(here, state, "conv_last")


def _dense(graph: Graph, given: str, state: State, name: str) -> str:
    *copies, aside = graph.add("Split", [given], outs=6)
    seen = [copies]  # of every map so far, one copy for each convolution that is still to read it
    for index in range(1, 6):
        read = [copies.pop() for copies in seen]
        here = read[0] if len(read) == 1 else graph.add("Concat", read, "0=0")[0]
        here = graph.convolution(here, state, f"{name}.conv{index}", _LEAKY if index < 5 else "")
        if index == 5:
            return graph.scaled_sum(here, 0.2, aside)
        seen.append([here] if index == 4 else graph.add("Split", [here], outs=5 - index))
    raise AssertionError("a dense block has five convolutions")


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().astype("<f4").tobytes()
