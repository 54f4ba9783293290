"""`make bench`: this project and its peers side by side, the same weights and pictures, in turn, in one run.

Prints every line as it comes, then the tables; writes bench/results.json. bench/README.md tells the method.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from restorer import errors
from restorer.inference import backends

from . import faces, lines, machine, memory, table
from .rounds import OURS
from .subjects import NAMES, subject

RESULTS = Path(__file__).with_name("results.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="every size: an hour on a GPU, a day on a CPU")
    sizes = "every kind of line, at these sides in pixels"
    parser.add_argument("--sizes", type=_positive, nargs="+", help=sizes)
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rounds", type=_positive, help="of each line (as many as a minute holds, 2 to 15)")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), help="(the fastest there is)")
    parser.add_argument("--table", action="store_true", help="only print the tables of the last results")
    told = parser.parse_args()
    try:
        device = backends.pick_device(told.device)
    except errors.InvalidOption as error:
        parser.error(str(error))
    results = json.loads(RESULTS.read_text()) if told.table else measured(told, device)
    print("\n" + table.markdown(results))
    gpu = not results["machine"]["cores"]
    short = [(line, why) for line in results["lines"] for why in lines.missed(line, gpu=gpu)]
    for line, why in short:
        print(f"missed: {line['network']}, {line['photo']}, {line['figure']}: {why}")
    return 1 if short or any(map(lines.wrong, results["lines"])) else 0


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def measured(told: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What results.json has; it is written, line by line, unless only a part was asked for."""
    whole = not (told.sizes or told.rounds or told.networks != NAMES)
    found: dict[str, Any] = {"machine": machine.described(device), "lines": [], "memory": [], "left_out": {}}
    chosen = lines.QUICK
    if told.full or told.sizes or device.type == "cuda":
        chosen = lines.every(tuple(told.sizes) if told.sizes else lines.SIZES)
    with tempfile.TemporaryDirectory() as folder:
        for name in told.networks:
            own = subject(name, Path(folder))
            contestants = lines.Contestants(own, device)
            for line in (line for line in chosen if line.network == name):
                found["lines"].append(lines.run(line, contestants, told.rounds))
                show(found["lines"][-1])
                _note(found, whole)
                _tell(contestants.left_out, found["left_out"])
            for line in () if told.sizes else memory.FULL if told.full else memory.QUICK:
                if line.network == name:
                    found["memory"].append(memory.line(line, own, device, contestants.names))
    try:
        given = (2, 1) if told.sizes else (8, 8 if device.type == "cuda" else 4)
        found["lines"] += faces.lines(*given, rounds=told.rounds or 2, device=device)
    except errors.RestoreError as error:
        _tell({"GFPGANer": str(error)}, found["left_out"])
    _note(found, whole)
    return found


def _note(found: dict[str, Any], whole: bool) -> None:
    rates = [line["matrix_gflops"] for line in found["lines"] if "matrix_gflops" in line]
    found["machine"]["matrix_gflops"] = max(rates)
    if whole:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _tell(reasons: dict[str, str], told: dict[str, str]) -> None:
    """Print once who is left out."""
    for name, reason in reasons.items():
        if name not in told:
            print(f"{name} is left out: {reason}", flush=True)
            told[name] = reason


def show(line: dict[str, Any]) -> None:
    """Print one line of the results."""
    print(f"\n{line['network']}, {line['photo']}, {line['figure']}, {line['rounds']} rounds")
    for name, told in line["contestants"].items():
        cells = f"  {name:22} {told['min']:8.3f} / {told['median']:8.3f} s"
        if name != OURS:
            cells += f"  {told['ratio']:5.2f} times ours"
        if told["gflops"]:
            cells += f"  {told['gflops']:6.0f} GFLOP/s"
        if told["psnr"] is not None:
            cells += f"  {told['psnr']:5.1f} dB{'  OTHER PIXELS' if name in lines.wrong(line) else ''}"
        print(cells, flush=True)


if __name__ == "__main__":
    sys.exit(main())
