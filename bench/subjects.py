"""The networks that are timed: one file of weights each, which every contestant reads."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from restorer.models import architectures, compat, loader, registry

from . import locate, present

X4PLUS, X2PLUS = "RealESRGAN_x4plus", "RealESRGAN_x2plus"
GENERAL, LITE = "realesr-general-x4v3", registry.BUILT_IN
NAMES = (X4PLUS, GENERAL, LITE)

# Networks whose weights no package includes; random weights replace absent files
_RRDB = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 23, "num_grow_ch": 32}
_SHAPES = {
    X2PLUS: ("basicsr.archs.rrdbnet_arch", "RRDBNet", {**_RRDB, "scale": 2}),
    GENERAL: ("basicsr.archs.srvgg_arch", "SRVGGNetCompact", {"num_feat": 64, "num_conv": 32, "upscale": 4}),
}
_LITTLE = 0.05


@dataclass(frozen=True)
class Subject:
    """A network and its file.

    name     as the models' table has it
    file     {"params": tensors}, below a folder of weights as custom/NAME.pth
    flops    floating-point operations for each input pixel, borders counted as if they were none
    seeded   random weights, as no real ones are present
    """

    name: str
    file: Path
    shape: architectures.NetworkSpec
    network: nn.Module
    flops: float
    seeded: bool

    @property
    def weights(self) -> Path:
        return self.file.parent.parent


def subject(name: str, weights: Path) -> Subject:
    """The network of that name; its file is written to weights/custom unless it is there."""
    file = weights / "custom" / f"{name}.pth"
    source = locate(name) if name in _SHAPES else present(name)
    if not file.is_file():
        state = loader.load(source).state if source else _seeded(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"params": state}, file)
    state = architectures.read_state(file)
    shape = architectures.detect(state, name)
    network = architectures.build(shape, state, name).eval().requires_grad_(False)
    return Subject(name, file, shape, network, flops(network), source is None)


def flops(network: nn.Module) -> float:
    """Floating-point operations of a network for each input pixel, multiply and add being two."""
    side = 32
    nowhere = copy.deepcopy(network).to("meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        nowhere(torch.zeros(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / side**2


def _seeded(name: str) -> architectures.StateDict:
    """Random weights that keep a picture's light, as trained ones do: the last layer adds a little to it."""
    module, arch, parameters = _SHAPES[name]
    torch.manual_seed(0)
    network = compat.load_attribute(module, arch)(**parameters).eval().requires_grad_(False)
    last = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)][-1]
    picture = torch.rand(1, 3, 16, 16)
    if arch == "RRDBNet":
        for layer in (network.conv_first, network.conv_up1, network.conv_up2, network.conv_hr):
            layer.weight[:3] = layer.bias[:3] = 0
            _pass_through(layer)
        network.conv_body.weight[:3] = network.conv_body.bias[:3] = 0
        added = network(picture)
    else:  # which adds the picture by itself
        added = network(picture) - functional.interpolate(picture, scale_factor=4)
    last.weight *= _LITTLE / added.std()
    mean = added.mean(dim=(0, 2, 3))
    last.bias -= mean.repeat_interleave(last.out_channels // 3)  # several features of one colour are shuffled
    last.bias *= _LITTLE / added.std()
    if arch == "RRDBNet":
        _pass_through(last)
    return network.state_dict()


def _pass_through(layer: nn.Conv2d) -> None:
    """Add the first three input features (red, green, blue) to the first three output features."""
    inputs = layer.in_channels // 3 if layer.in_channels in (3, 12) else 1  # pixels of a colour: unshuffled
    for colour in range(3):
        layer.weight[colour, colour * inputs : (colour + 1) * inputs, 1, 1] += 1 / inputs
