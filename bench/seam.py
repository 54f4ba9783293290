"""`python -m bench.seam`: a network in tiles beside the same network on the whole photo.

The middle 192 x 192 pixels of assets/benchmark/coffee.jpg, real weights, float32, PyTorch on the CPU; two
minutes on two cores. Prints a Markdown table: the largest and the mean difference in levels of 255 over all
samples. Exits with 1 if ours exceeds 1 level. Peers:

RealESRGANer   the package, with its default context of 10 pixels; without pre_pad, which extends two edges
upscayl-ncnn   emulated: tiles of 100 (its choice for a GPU with 0.55 to 1.9 GB) and a context of 10 pixels
ComfyUI        emulated: tiled_scale() with its overlap of 32 pixels, blended linearly, and no context beyond;
               tiles of 128, its last resort when memory runs out, as 512 would not cut this photo
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restorer.images import photo
from restorer.inference import engine, network

from . import peers
from .rounds import OURS
from .subjects import X4PLUS, Subject, subject
from .table import seams

PHOTOS = sorted((Path(__file__).parents[1] / "assets/benchmark").glob("*.jpg"))
_NETWORKS = (X4PLUS, "RealESRGAN_x4plus_anime_6B")
_SIDE = 192
_TILES = (32, 128)  # of ours
_SHIPPED, _UPSCAYL, _PAD = 128, 100, 10
_COMFYUI, _OVERLAP = 128, 32


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.seam", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--photo", type=Path, default=PHOTOS[0], help="(%(default)s)")
    parser.add_argument("--networks", nargs="+", choices=_NETWORKS, default=_NETWORKS)
    arguments = parser.parse_args()
    rows = measure(arguments.networks, arguments.photo)
    print(seams(rows))
    return 1 if any(row["largest"] > 1 for row in rows if row["tiling"] == OURS) else 0


def measure(names: tuple[str, ...] = _NETWORKS, path: Path = PHOTOS[0]) -> list[dict[str, Any]]:
    """Return rows of the table, as results.json has them."""
    pixels = middle(photo.decode(path.read_bytes()).pixels, _SIDE)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            results = _results(subject(name, Path(folder)), pixels)
            whole = next(results)[2].astype(int)
            for tiling, tile, result in results:
                levels = np.abs(result - whole)
                difference = {"largest": int(levels.max()), "mean": float(levels.mean())}
                rows.append({"network": name, "tiling": tiling, "tile": tile, **difference})
    return rows


@torch.inference_mode()
def _results(own: Subject, pixels: np.ndarray) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield (tiling, side of a tile, levels): the whole photo, then each tiling."""
    module = own.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    scale = own.shape.scale

    def run(part: np.ndarray) -> np.ndarray:
        return peers.levels(module(peers.planes(part)))

    yield "", _SIDE, run(pixels)
    ours = engine.Engine(network.segments(module), scale=scale)
    for tile in _TILES:
        yield OURS, tile, np.concatenate(list(ours.bands(pixels, tile=tile)))
    theirs = peers.upsampler(own, torch.device("cpu"), tile=_SHIPPED)
    theirs.pre_pad = 0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each tile
        yield peers.SHIPPED, _SHIPPED, theirs.enhance(pixels[..., ::-1])[0][..., ::-1]
    upscayl = peers.in_tiles(pixels, run, scale=scale, tile=_UPSCAYL, pad=_PAD)
    yield "as upscayl-ncnn", _UPSCAYL, upscayl
    comfyui = blended(peers.planes(pixels), module, scale=scale, tile=_COMFYUI, overlap=_OVERLAP)
    yield "as ComfyUI", _COMFYUI, peers.levels(comfyui)


def blended(planes: torch.Tensor, run: peers.Network, *, scale: int, tile: int, overlap: int) -> torch.Tensor:
    """Return the mean of overlapping tiles, each weighted by a ramp over the overlap, as ComfyUI does."""
    height, width = planes.shape[-2:]
    total = torch.zeros(1, 3, height * scale, width * scale)
    weights = torch.zeros(1, 1, height * scale, width * scale)
    for top in range(0, max(height - overlap, 1), tile - overlap):
        for left in range(0, max(width - overlap, 1), tile - overlap):
            window = planes[..., top : top + tile, left : left + tile]
            weight = torch.outer(*(_ramp(side * scale, overlap * scale) for side in window.shape[-2:]))
            place = (
                ...,
                slice(top * scale, (top + tile) * scale),
                slice(left * scale, (left + tile) * scale),
            )
            total[place] += run(window) * weight
            weights[place] += weight
    return total / weights


def _ramp(length: int, rise: int) -> torch.Tensor:
    """Return weights that rise from 1/rise to 1 at both ends."""
    distance = torch.arange(1, length + 1)
    return torch.minimum(distance, distance.flip(0)).clamp(max=rise) / rise


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


if __name__ == "__main__":
    sys.exit(main())
