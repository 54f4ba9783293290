"""`make bench`: this project and its peers, with the same weights and pictures, interleaved in one run.

Prints each line, except those of faces, when it is measured, then the tables; writes bench/results.json.
See bench/README.md.
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

from . import faces, lines, machine, memory, seam, table
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
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), help="(the fastest available)")
    parser.add_argument("--table", action="store_true", help="only print the tables of the last results")
    arguments = parser.parse_args()
    try:
        device = backends.pick_device(arguments.device)
    except errors.InvalidOption as error:
        parser.error(str(error))
    results = json.loads(RESULTS.read_text()) if arguments.table else measure(arguments, device)
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


def measure(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the contents of results.json, written line by line unless only a part was selected."""
    complete = not (arguments.sizes or arguments.rounds or arguments.networks != NAMES)
    results: dict[str, Any] = {"machine": machine.describe(device), "lines": [], "memory": [], "left_out": {}}
    chosen = lines.QUICK
    if arguments.full or arguments.sizes or device.type == "cuda":
        chosen = lines.every(tuple(arguments.sizes) if arguments.sizes else lines.SIZES)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.networks:
            own = subject(name, Path(folder))
            contestants = lines.Contestants(own, device)
            for line in (line for line in chosen if line.network == name):
                results["lines"].append(lines.run(line, contestants, arguments.rounds))
                show(results["lines"][-1])
                _save(results, complete)
                _print_left_out(contestants.left_out, results["left_out"])
            for line in () if arguments.sizes else memory.FULL if arguments.full else memory.QUICK:
                if line.network == name:
                    results["memory"].append(memory.line(line, own, device, contestants.names))
    try:
        size = (2, 1) if arguments.sizes else (8, 8 if device.type == "cuda" else 4)
        results["lines"] += faces.lines(*size, rounds=arguments.rounds or 2, device=device)
    except errors.RestoreError as error:
        _print_left_out({"GFPGANer": str(error)}, results["left_out"])
    if complete:
        results["seams"] = seam.measure()
    _save(results, complete)
    return results


def _save(results: dict[str, Any], complete: bool) -> None:
    rates = [line["matrix_gflops"] for line in results["lines"] if "matrix_gflops" in line]
    results["machine"]["matrix_gflops"] = max(rates)
    if complete:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _print_left_out(reasons: dict[str, str], printed: dict[str, str]) -> None:
    """Print each contestant that is left out, once."""
    for name, reason in reasons.items():
        if name not in printed:
            print(f"{name} is left out: {reason}", flush=True)
            printed[name] = reason


def show(line: dict[str, Any]) -> None:
    """Print one line of the results."""
    print(f"\n{line['network']}, {line['photo']}, {line['figure']}, {line['rounds']} rounds")
    for name, seconds in line["contestants"].items():
        cells = f"  {name:22} {seconds['min']:8.3f} / {seconds['median']:8.3f} s"
        if name != OURS:
            cells += f"  {seconds['ratio']:5.2f} times ours"
        if seconds["gflops"]:
            cells += f"  {seconds['gflops']:6.0f} GFLOP/s"
        if seconds["psnr"] is not None:
            cells += f"  {seconds['psnr']:5.1f} dB{'  OTHER PIXELS' if name in lines.wrong(line) else ''}"
        print(cells, flush=True)


if __name__ == "__main__":
    sys.exit(main())
