"""`python -m bench.pad`: compare tiled and untiled results for several contexts (pad) of a tile.

Photos by each network's real weights, in tiles as the app cuts them and whole. Prints a Markdown table: the
largest difference of all samples in levels of 255, and the mean. About ten minutes on two cores, nearly all
for the two RRDBNets.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from restorer.images import photo
from restorer.inference import backends, engine, tiling
from restorer.models import architectures, loader

from . import locate
from .table import rows

_NAMES = (
    "RealESRGAN_x4plus",
    "RealESRGAN_x4plus_anime_6B",
    "realesr-general-x4v3",
    "realesr-animevideov3",
    "restore-lite-x4",
)
PHOTOS = sorted((Path(__file__).parents[1] / "assets/benchmark").glob("*.jpg"))
_BACKEND = "cpu:openvino"
# By tile: the side of the crop, in which several fit with their context, and the pads
_CASES = {64: (224, (10, 24, 48, 64)), 128: (256, (10, 24, 48)), 256: (512, (10, 24))}
_PADS = (10, 24, 48, 64)  # 10 is RealESRGANer's default


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.pad", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", nargs="*", type=Path, default=PHOTOS, help="(those of assets/benchmark)")
    parser.add_argument("--networks", nargs="+", choices=_NAMES, default=_NAMES)
    parser.add_argument("--tiles", nargs="+", type=int, choices=_CASES, default=tuple(_CASES))
    arguments = parser.parse_args()
    photos = [photo.decode(path.read_bytes()).pixels for path in arguments.photos]
    table = [["network", "tile", "own pad", *(f"pad {pad}" for pad in _PADS)]]
    for name in arguments.networks:
        source = locate(name)
        if source is None:
            print(f"{name} is left out: its weights are not present", file=sys.stderr)
            continue
        run = _engine(loader.load(source).state, name)
        for tile in arguments.tiles:
            side, pads = _CASES[tile]
            crops = [middle(pixels, side) for pixels in photos]
            wholes = [run(crop) for crop in crops]
            cells = {pad: _difference(run, crops, wholes, tile, pad) for pad in {run.pad, *pads}}
            own = f"{run.pad}: {cells[run.pad]}"
            table.append([name, str(tile), own, *(cells.get(pad, "") for pad in _PADS)])
            print(*table[-1], sep="  ", file=sys.stderr, flush=True)
    print(rows(table))
    return 0


def _engine(state: architectures.StateDict, name: str) -> engine.Engine:
    shape = architectures.detect(state, name)
    network, _ = backends.build(_BACKEND, shape, state, name)
    return engine.Engine(network, scale=shape.scale, pad=shape.pad, device=torch.device("cpu"))


def _difference(
    run: engine.Engine, crops: list[np.ndarray], wholes: list[np.ndarray], tile: int, pad: int
) -> str:
    """The largest and the mean difference in levels over all photos of which a tile is only a part."""
    apart = [
        np.abs(tiling.run(crop, run, scale=run.scale, tile=tile, pad=pad).astype(np.int16) - whole)
        for crop, whole in zip(crops, wholes, strict=True)
        if len(tiling.tiles(*crop.shape[:2], tile=tile, pad=pad)) > 1
    ]
    if not apart:
        return ""
    levels = np.concatenate([one.ravel() for one in apart])
    return f"{levels.max()} / {levels.mean():.2g}"


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


if __name__ == "__main__":
    sys.exit(main())
