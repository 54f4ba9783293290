"""`python -m bench.pad`: how much context a tile needs, measured.

Tiles of 32 pixels against the whole image, for several pads: the largest difference in 8-bit levels and the
share of samples that move by more than one. The compact network is the real one if it is in the weights
folder. RealESRGAN_x4plus is measured with its real weights if present; else seeded random weights of its
true shape stand in, which say what the architecture does at initialisation and no more.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from restorer import compat, engine, networks, photo, tiling

from .subjects import here

_PADS = (4, 8, 12, 16, 20, 24, 28, 32)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.pad", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", nargs="+", type=Path, help="small photos; their middle 128 pixels are used")
    arguments = parser.parse_args()
    crops = [_middle(photo.decode(path.read_bytes()).pixels, 128) for path in arguments.photos]
    for name in ("realesr-general-x4v3", "RealESRGAN_x4plus"):
        shape, state, source = _weights(name)
        run = engine.Engine(networks.build(shape, state, name), scale=shape.scale, device=torch.device("cpu"))
        print(f"{name} ({source})")
        wholes = [run(crop) for crop in crops]
        for pad in _PADS:
            tiled = [tiling.run(crop, run, scale=shape.scale, tile=32, pad=pad) for crop in crops]
            off = np.concatenate(
                [np.abs(t.astype(int) - w).ravel() for t, w in zip(tiled, wholes, strict=True)]
            )
            print(f"  pad {pad:2}: at most {off.max():3} levels; {np.mean(off > 1):.1e} move by over 1")
    return 0


def _weights(name: str) -> tuple[networks.Shape, networks.State, str]:
    if file := here(f"{name}.pth"):
        state = networks.read_state(file)
        return networks.recognise(state, name), state, file.name
    torch.manual_seed(0)
    network = compat.load("basicsr.archs.rrdbnet_arch", "RRDBNet")(3, 3, num_block=23)
    return networks.recognise(network.state_dict(), name), network.state_dict(), "seeded random weights"


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


if __name__ == "__main__":
    sys.exit(main())
