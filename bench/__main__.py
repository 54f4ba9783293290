"""`make bench`: seconds of this project beside RealESRGANer as shipped, and of the built-in network.

The first two have the same weights and photo. Runs are interleaved, so that whatever else the
machine does hits both. Needs realesr-general-x4v3 in the weights folder (the official file, or a copy in
custom/). Prints a table and writes bench/results.json.
"""

import argparse
import io
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

import restorer
from restorer import compat
from restorer.engine import Engine

from . import present

RESULTS = Path(__file__).with_name("results.json")
_NETWORK, _BUILT_IN = "realesr-general-x4v3", "restore-lite-x4"
_TILE = 256  # of the networks alone: what a large photo is cut into on a CPU


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512], help="sides of the photo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", help="cuda, mps or cpu (the fastest there is)")
    arguments = parser.parse_args()
    name, file = present(_NETWORK)
    ours = restorer.load(name, device=arguments.device, format="png")
    theirs = _reference(file, ours)
    lines = []
    for size in arguments.sizes:
        for kind, photo in (("RGB", _photo(size)), ("opaque RGBA", _photo(size, alpha=True))):
            runs = {"restorer": lambda p=photo: ours.restore(p), "RealESRGANer": lambda p=photo: theirs(p)}
            lines.append({"photo": f"{size} x {size} {kind}", **_compare(runs, arguments.rounds)})
            _show(lines[-1])
    lite = restorer.load(_BUILT_IN, device=arguments.device)
    tile = np.array(Image.open(io.BytesIO(_photo(_TILE))))
    engines = {name: _engine(run) for name, run in ((_BUILT_IN, lite), (_NETWORK, ours))}
    runs = {name: lambda run=run: run(tile) for name, run in engines.items()}
    lines.append({"photo": f"{_TILE} x {_TILE} network alone", **_compare(runs, 4 * arguments.rounds)})
    _show(lines[-1])
    machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.write_text(json.dumps({**machine, "torch": torch.__version__, "lines": lines}, indent=1) + "\n")
    return 0


def _reference(path: Path, ours: "restorer.Restorer") -> Callable[[bytes], bytes]:
    """File to file by RealESRGANer, tile 0 as shipped, on the device and precision that ours took."""
    compat.install()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from basicsr.archs.srvgg_arch import SRVGGNetCompact
        from realesrgan import RealESRGANer

    engine = _engine(ours)
    upsampler = RealESRGANer(
        4,
        str(path),
        model=SRVGGNetCompact(num_feat=64, num_conv=32, upscale=4),
        half=engine.half_network is not None,
        device=engine.device,
    )

    def restore(photo: bytes) -> bytes:
        out, _ = upsampler.enhance(
            cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_UNCHANGED), outscale=4
        )
        return cv2.imencode(".png", out)[1].tobytes()

    return restore


def _engine(loaded: "restorer.Restorer") -> Engine:
    _, engine, _ = next(iter(loaded._engines.loaded.values()))
    return engine


def _compare(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """{name: {"min", "median"} in seconds, "ratio": median of the second over the first, a round}."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    first, second = seconds.values()
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    found: dict[str, Any] = {
        name: {"min": min(values), "median": statistics.median(values)} for name, values in seconds.items()
    }
    return {**found, "ratio": statistics.median(ratios)}


def _show(line: dict[str, Any]) -> None:
    cells = [
        f"{name} {value['min']:.2f} / {value['median']:.2f} s"
        for name, value in line.items()
        if isinstance(value, dict)
    ]
    print(f"{line['photo']:24}", *cells, f"{line['ratio']:.2f} times as fast", sep="  ", flush=True)


def _photo(side: int, *, alpha: bool = False) -> bytes:
    """A PNG with gradients, edges and grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side]
    base = np.stack([128 + 90 * np.sin(x / 11 + c) * np.cos(y / 17 - c) for c in range(3)], axis=2)
    base[side // 3 : side // 2, side // 4 : side // 2] = 220
    pixels = np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    if alpha:
        image.putalpha(255)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
