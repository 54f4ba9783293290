"""`python -m bench.tiles`: measured over estimated memory of a tile on each CPU backend.

The estimate chooses the size of tiles; the exit status is 1 unless each ratio is from 0.3 to 1.5. Each
backend runs one tile through a short RRDBNet in a process of its own. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from restorer.inference import backends, engine
from restorer.models import compat
from restorer.models.registry import find

from .memory import resident

_SIDE = 160  # pixels
_LOWEST, _HIGHEST = 0.3, 1.5
_MODEL = "custom/short"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.tiles", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--backend", choices=_backends(), help="measure this one here, and print its ratio")
    parser.add_argument("--weights", type=Path, help="folder with custom/short.pth; with --backend only")
    options = parser.parse_args()
    if options.backend:
        print(ratio(options.backend, options.weights))
        return 0
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        _save_network(Path(folder))
        for backend in _backends():
            command = [sys.executable, "-m", "bench.tiles", "--backend", backend, "--weights", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            ratios[backend] = float(done.stdout.splitlines()[-1])
            print(f"{backend:14} {ratios[backend]:.2f}")
    return 0 if all(_LOWEST < ratio < _HIGHEST for ratio in ratios.values()) else 1


def ratio(backend: str, weights: Path) -> float:
    """Peak memory of one tile in this process, over Engine.bytes for its pixels."""
    run = engine.load(find(_MODEL, weights), weights, device=backend, half=None, lock=Lock())
    picture = np.zeros((_SIDE, _SIDE, 3), np.uint8)
    run(picture[:32, :32])
    before = resident("VmHWM")
    run(picture)
    return (resident("VmHWM") - before) * 1024 / run.bytes / _SIDE**2


def _backends() -> list[str]:
    names = [name for name in backends.NAMES if name.startswith("cpu")]
    return [name for name in names if name != backends.BFLOAT16 or backends.has_bfloat16_kernels()]


def _save_network(folder: Path) -> None:
    torch.manual_seed(0)
    network = compat.load("basicsr.archs.rrdbnet_arch", "RRDBNet")(3, 3, num_block=1)
    (folder / "custom").mkdir()
    torch.save({"params": network.state_dict()}, folder / f"{_MODEL}.pth")


if __name__ == "__main__":
    sys.exit(main())
