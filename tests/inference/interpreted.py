"""Write how far Triton's results are from PyTorch's in float32, as a share of the latter's size.

Run as `TRITON_INTERPRET=1 python -m tests.inference.interpreted`: on the CPU, before anything imports triton.
"""

import json
import sys

import torch

from restorer.errors import InvalidOutput
from restorer.inference import backends, network
from restorer.inference.backends import triton, triton_kernel
from restorer.models import architectures

triton_kernel.TILE = 16  # the interpreter is slow
NETWORKS = {
    "x4": ("RRDBNet", {"num_feat": 64, "num_block": 1, "num_grow_ch": 32, "scale": 4}),
    "x2": ("RRDBNet", {"num_feat": 64, "num_block": 1, "num_grow_ch": 32, "scale": 2}),
    "compact": ("SRVGGNetCompact", {"num_feat": 64, "num_conv": 12, "upscale": 4}),
}


def main() -> None:
    torch.manual_seed(0)
    errors = {}
    for name, (arch, parameters) in NETWORKS.items():
        module = architectures.create(arch, parameters).to_empty(device="cpu").requires_grad_(False)
        for parameter in module.parameters():
            parameter.normal_(0, 0.05)
        errors |= {f"{name} {key}": error for key, error in _errors(network.segments(module)).items()}
    json.dump(errors, sys.stdout)


def _errors(parts: list[network.Segment]) -> dict[str, float]:
    modules = backends.modules(parts, torch.float16).compute
    functions = triton.replace(parts, modules, torch.device("cpu"))
    errors = {}
    for index, (part, function) in enumerate(zip(parts, functions, strict=True)):
        for height, width in ((1, 1), (2, 17), (4, 1)) if part.scale == 1 else ((1, 1), (1, 5)):
            windows = [torch.randn(1, channels, height, width).half() for channels in part.inputs]
            windows = [window.contiguous(memory_format=torch.channels_last) for window in windows]
            actual = function(*windows).float()
            expected = part.module(*(window.float() for window in windows))
            name = f"{type(part.module).__name__} {index}, {type(function).__name__}, {height} x {width}"
            errors[name] = float((actual - expected).norm() / expected.norm())
    wrong = [lambda *maps, module=module: 1.02 * module(*maps) for module in modules]
    for part, module, function in zip(parts, wrong, functions, strict=True):
        try:  # a device that computes something else is found
            triton._compare(part, module, function, torch.device("cpu"))
        except InvalidOutput:
            continue
        raise AssertionError(f"{part.module} was not compared")
    return errors


if __name__ == "__main__":
    main()
