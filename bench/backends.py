"""`python -m bench.backends`: compare CPU backends and 16-bit types with PyTorch in float32.

One network's real weights on photos, untiled. Prints PSNR of the float output and of the 8-bit result over
all photos, and the largest difference in levels of 255. With --rounds also seconds per megapixel,
interleaved.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from restorer.images import photo
from restorer.inference import backends, network
from restorer.inference.backends import Backend
from restorer.inference.network import Segment
from restorer.models import architectures, loader
from restorer.options import BFLOAT16

from . import machine, peers, present
from .rounds import interleaved
from .seam import PHOTOS, middle
from .subjects import X4PLUS
from .table import rows

_REFERENCE, _HALF = "cpu:torch", "float16 (half=True)"
_NAMES = (_REFERENCE, "cpu:openvino", "cpu:ncnn", BFLOAT16)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.backends", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", nargs="*", type=Path, default=PHOTOS, help="(those of assets/benchmark)")
    parser.add_argument("--network", default=X4PLUS, help="(%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="of the photos' middle, in pixels (%(default)s)")
    parser.add_argument("--rounds", type=int, default=0, help="timed on a middle of 128 x 128 pixels (none)")
    arguments = parser.parse_args()
    pixels = [photo.decode(path.read_bytes()).pixels.copy() for path in arguments.photos]
    runs = _networks(arguments.network)
    head = ["backend", "float, dB", "8 bits, dB", "largest difference, levels"]
    print(rows([head, *_distances(runs, [middle(one, arguments.side) for one in pixels])]))
    if arguments.rounds:
        print("\n" + rows(_seconds(runs, middle(pixels[0], 128), arguments.rounds)))
        cpu = machine.describe(torch.device("cpu"))
        print(f"\n{cpu['device']}, {cpu['threads']} threads; load {os.getloadavg()[0]:.1f} at the end.")
    return 0


def _networks(name: str) -> dict[str, peers.Network]:
    state = loader.load(present(name)).state
    shape = architectures.detect(state, name)
    module = architectures.build(shape, state, name).eval().requires_grad_(False)
    parts = network.segments(module.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    computed = {one: backends.build(one, parts) for one in _NAMES}
    computed[_HALF] = backends.modules(parts, torch.float16)
    return {one: _whole(parts, backend) for one, backend in computed.items()}


def _whole(parts: list[Segment], backend: Backend) -> peers.Network:
    """Return a function that runs all segments on whole maps, in float32 outside."""

    def run(image: torch.Tensor) -> torch.Tensor:
        maps = {network.IMAGE: image.to(backend.dtype, memory_format=backend.layout)}
        for part, compute in zip(parts, backend.compute, strict=True):
            maps[part.writes] = compute(*(maps[name] for name in part.reads)).clone()
        return maps[parts[-1].writes].float()

    return run


def _distances(runs: dict[str, peers.Network], photos: list[np.ndarray]) -> list[list[str]]:
    """Return a row per backend except the reference, over all samples of all photos."""
    results = {name: [_result(run, pixels) for pixels in photos] for name, run in runs.items()}
    reference = results.pop(_REFERENCE)
    return [[name, *_compare(outs, reference)] for name, outs in results.items()]


def _compare(outs: list[torch.Tensor], reference: list[torch.Tensor]) -> tuple[str, str, str]:
    pairs = list(zip(outs, reference, strict=True))
    floats = np.concatenate([(out.double() - same).numpy().ravel() for out, same in pairs])
    levels = np.concatenate(
        [(peers.levels(out).astype(int) - peers.levels(same)).ravel() for out, same in pairs]
    )
    return _decibels(floats), _decibels(levels / 255), str(np.abs(levels).max())


@torch.inference_mode()
def _result(run: peers.Network, pixels: np.ndarray) -> torch.Tensor:
    return run(peers.planes(pixels))


def _decibels(differences: np.ndarray) -> str:
    """Return the PSNR in dB for a peak value of 1."""
    mean = np.mean(differences**2)
    return f"{-10 * np.log10(mean):.1f}" if mean else "equal"


def _seconds(runs: dict[str, peers.Network], pixels: np.ndarray, rounds: int) -> list[list[str]]:
    """Median and minimum for each, in seconds per input megapixel; without float16, which is slow on CPUs."""
    calls = {name: lambda run=run: _result(run, pixels) for name, run in runs.items() if name != _HALF}
    for call in calls.values():
        call()
    seconds, _ = interleaved(calls, rounds=rounds)
    megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
    table = [["backend", "median, s/MP", "minimum, s/MP"]]
    for name, own in seconds.items():
        table.append([name, f"{statistics.median(own) / megapixels:.0f}", f"{min(own) / megapixels:.0f}"])
    return table


if __name__ == "__main__":
    sys.exit(main())
