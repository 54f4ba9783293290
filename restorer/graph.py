"""The two upscaling networks as graphs, for libraries that are told of layers one by one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from .networks import Shape

Node = TypeVar("Node")


class Layers(Protocol, Generic[Node]):
    """What a library can do, its tensors by their names in the weights. Any number of layers read a node."""

    def convolution(self, node: Node, name: str, *, slope: float | None = None) -> Node:
        """3 x 3 with bias, the same size; then a leaky ReLU of that slope."""
        ...

    def prelu(self, node: Node, name: str) -> Node: ...

    def joined(self, nodes: Sequence[Node]) -> Node:
        """Their channels, one after the other."""
        ...

    def sum(self, node: Node, other: Node, *, share: float = 1) -> Node:
        """share * node + other"""
        ...

    def larger(self, node: Node, scale: int) -> Node:
        """Every pixel scale times in each direction."""
        ...

    def shuffled(self, node: Node, scale: int) -> Node:
        """Channels become pixels, as torch.nn.PixelShuffle has it."""
        ...


def network(shape: "Shape", layers: Layers[Node], picture: Node) -> Node:
    """The result of a network for a picture, which is unshuffled already where the network begins so."""
    parameters = shape.parameters
    if shape.arch == "SRVGGNetCompact":
        return _compact(layers, picture, parameters["num_conv"], shape.scale)
    return _rrdb(layers, picture, parameters["num_block"])


def _compact(layers: Layers[Node], picture: Node, convolutions: int, scale: int) -> Node:
    """Convolutions, each with a PReLU; the last one's channels become pixels, on the enlarged picture."""
    node, last = picture, 2 * convolutions + 2
    for index in range(0, last, 2):
        node = layers.prelu(layers.convolution(node, f"body.{index}"), f"body.{index + 1}")
    node = layers.shuffled(layers.convolution(node, f"body.{last}"), scale)
    return layers.sum(node, layers.larger(picture, scale))


def _rrdb(layers: Layers[Node], picture: Node, blocks: int) -> Node:
    """Dense blocks in threes, each with its residual; then nearest pixels and a convolution, twice."""
    node = trunk = layers.convolution(picture, "conv_first")
    for block in range(blocks):
        before = node
        for dense in (1, 2, 3):
            node = _dense(layers, node, f"body.{block}.rdb{dense}.conv")
        node = layers.sum(node, before, share=0.2)
    node = layers.sum(layers.convolution(node, "conv_body"), trunk)
    for name in ("conv_up1", "conv_up2"):
        node = layers.convolution(layers.larger(node, 2), name, slope=0.2)
    return layers.convolution(layers.convolution(node, "conv_hr", slope=0.2), "conv_last")


def _dense(layers: Layers[Node], node: Node, name: str) -> Node:
    seen = [node]
    for index in range(1, 5):
        seen.append(layers.convolution(layers.joined(seen), f"{name}{index}", slope=0.2))
    return layers.sum(layers.convolution(layers.joined(seen), f"{name}5"), node, share=0.2)
