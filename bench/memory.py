"""`python -m bench.memory`: peak memory of a contestant for one photo, in a process of its own.

Memory beyond the imported packages and the photo. On a GPU, the peak of PyTorch's allocator.
"""

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from restorer.inference import backends

from . import lines, peers
from .machine import resident
from .rounds import OURS
from .subjects import GENERAL, LITE, NAMES, Subject, subject

QUICK = (lines.Line(lines.NETWORK, GENERAL, 512), lines.Line(lines.FILE, LITE, 1024))
FULL = (*QUICK, lines.Line(lines.NETWORK, LITE, 1024), lines.Line(lines.FILE, GENERAL, 1024))
_RESET = Path("/proc/self/clear_refs")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.memory", description=str(__doc__).partition("\n")[0])
    parser.add_argument("contestant", choices=peers.PEERS)
    parser.add_argument("--figure", choices=(lines.NETWORK, lines.FILE), default=lines.NETWORK)
    parser.add_argument("--network", choices=NAMES, default=LITE)
    parser.add_argument("--side", type=int, default=512, help="of the photo in pixels")
    parser.add_argument("--weights", type=Path, required=True, help="folder for the contestants' files")
    parser.add_argument("--device", help="cuda, mps or cpu (the fastest available)")
    arguments = parser.parse_args()
    device = backends.pick_device(arguments.device)
    peers.imported(arguments.contestant)
    own = subject(arguments.network, arguments.weights)
    pixels = lines.picture(arguments.side)
    data = lines.png(pixels)

    def run() -> None:
        if arguments.figure == lines.NETWORK:
            peers.make(arguments.contestant, own, device)(pixels)()
        else:
            ours = arguments.contestant == OURS
            (lines.file_by_ours if ours else lines.file_by_realesrganer)(own, device, 4)(data)

    print(f"{peak(run, device):.0f}")
    return 0


def peak(run: Callable[[], None], device: torch.device) -> float:
    """MiB that a call takes at most beyond what the process held before (Linux), or PyTorch on the GPU."""
    if device.type == "cuda":
        run()
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):  # not allowed in every container: the imports' own peak may count then
        _RESET.write_text("5")
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 1024


def line(spec: lines.Line, own: Subject, device: torch.device, names: Iterable[str]) -> dict[str, Any]:
    """MiB of each contestant for one line, as results.json has it."""
    mebibytes = {}
    names = names if spec.figure == lines.NETWORK else (OURS, peers.SHIPPED)
    for name in names:
        command = [sys.executable, "-m", "bench.memory", name, "--figure", spec.figure]
        command += ["--network", own.name, "--side", str(spec.side)]
        command += ["--weights", str(own.weights), "--device", str(device)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        mebibytes[name] = float(done.stdout.splitlines()[-1])
    return {"network": own.name, "photo": f"{spec.photo}, {spec.figure}", "contestants": mebibytes}


if __name__ == "__main__":
    sys.exit(main())
