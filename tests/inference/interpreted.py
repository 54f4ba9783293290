"""Write how far Triton's results are from PyTorch's in float32, as a share of the latter's size.

Run as `TRITON_INTERPRET=1 python -m tests.inference.interpreted`: on the CPU, before anything imports triton.
"""

import json
import sys

import torch

from restorer.errors import InvalidOutput
from restorer.inference import backends, network
from restorer.inference.backends import triton
from restorer.models import architectures

triton._TILE = 16  # the interpreter is slow


def main() -> None:
    torch.manual_seed(0)
    parameters = {"num_feat": 64, "num_block": 1, "num_grow_ch": 32, "scale": 4}
    module = architectures.create("RRDBNet", parameters).to_empty(device="cpu").requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0, 0.05)
    parts = network.segments(module)
    modules = backends.modules(parts, torch.float16).compute
    functions = triton.replace(parts, modules, torch.device("cpu"))
    errors = {}
    for part, function in zip(parts, functions, strict=True):
        if isinstance(function, torch.nn.Module):
            continue
        for height, width in ((1, 1), (3, 19), (6, 1)) if part.scale == 1 else ((1, 1), (2, 5)):
            windows = [torch.randn(1, channels, height, width).half() for channels in part.inputs]
            windows = [window.contiguous(memory_format=torch.channels_last) for window in windows]
            actual = function(*windows).float()
            expected = part.module(*(window.float() for window in windows))
            kind = f"{type(part.module).__name__} {height} x {width}"
            errors[kind] = float((actual - expected).norm() / expected.norm())
    try:  # a device that computes wrong features
        triton.replace(parts, [lambda *maps, f=f: 1.02 * f(*maps) for f in modules], torch.device("cpu"))
    except InvalidOutput:
        json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
