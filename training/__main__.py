"""`python -m training PHOTOS`: make restore-lite-x4 from a folder of photographs and a teacher.

First pictures are made small and worse, and the teacher's answers to them kept; then the student learns from
these. Both go on where they stopped, in OUT, and repeat exactly: same arguments, same device, same network.
Writes OUT/restore-lite-x4.safetensors with every checkpoint.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import safetensors.torch
import torch

from restorer.inference import backends
from restorer.models import architectures, download, loader, registry

from . import learn, pairs

_HELD = 1  # shards that are only looked at


def main() -> int:
    plan = learn.Plan()
    parser = argparse.ArgumentParser(prog="training", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of 8-bit photographs, searched with its subfolders")
    parser.add_argument(
        "--teacher", default="realesr-general-x4v3", help="a model of the table, or custom/NAME"
    )
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--device", help="cuda, mps or cpu (the fastest there is)")
    parser.add_argument("--shards", type=int, default=112, help=f"of {pairs.SHARD} pairs (%(default)s)")
    for field in dataclasses.fields(plan):
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=field.default, help="%(default)s"
        )
    arguments = vars(parser.parse_args())
    plan = learn.Plan(**{field.name: arguments[field.name] for field in dataclasses.fields(plan)})
    device = backends.pick_device(arguments["device"])
    out: Path = arguments["out"]
    shards = pairs.make(
        out / "pairs",
        arguments["photos"],
        _teacher(arguments["teacher"], device),
        shards=arguments["shards"],
        seed=plan.seed,
    )
    run = learn.Run(plan, device, out / "checkpoint.pt")
    for line in learn.learn(run, shards[_HELD:], shards[:_HELD]):
        safetensors.torch.save_file(run.state(), out / "restore-lite-x4.safetensors")
        print(line, flush=True)
    return 0


def _teacher(name: str, device: torch.device) -> torch.nn.Module:
    folder = registry.weights_folder()
    state = loader.load(download.ensure(registry.find(name, folder), folder)).state
    network = architectures.build(architectures.detect(state, name), state, name)
    return network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


if __name__ == "__main__":
    sys.exit(main())
