"""`python -m training PHOTOS`: distil restore-lite-x4 from a teacher network and a folder of photographs.

Degrades crops of the photographs, saves the teacher's output for each, and trains the student on these pairs.
Both steps resume from the files in OUT and are deterministic: the same arguments and device give the same
network. Writes OUT/restore-lite-x4.safetensors at every checkpoint.
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

_VALIDATION_SHARDS = 1


def main() -> int:
    plan = learn.Plan()
    parser = argparse.ArgumentParser(prog="training", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of 8-bit photographs, searched recursively")
    parser.add_argument(
        "--teacher", default="realesr-general-x4v3", help="a registered model, or custom/NAME (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--device", help="cuda, mps or cpu (the fastest available)")
    parser.add_argument(
        "--shards", type=int, default=112, help=f"number of files of {pairs.SHARD} pairs (%(default)s)"
    )
    for field in dataclasses.fields(plan):
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=field.default, help="%(default)s"
        )
    arguments = vars(parser.parse_args())
    plan = learn.Plan(**{field.name: arguments[field.name] for field in dataclasses.fields(plan)})
    device = backends.pick_device(arguments["device"])
    out: Path = arguments["out"]
    shards = pairs.create(
        out / "pairs",
        arguments["photos"],
        _teacher(arguments["teacher"], device),
        shards=arguments["shards"],
        seed=plan.seed,
    )
    run = learn.Run(plan, device, out / "checkpoint.pt")
    for message in learn.train(run, shards[_VALIDATION_SHARDS:], shards[:_VALIDATION_SHARDS]):
        safetensors.torch.save_file(run.state(), out / "restore-lite-x4.safetensors")
        print(message, flush=True)
    return 0


def _teacher(name: str, device: torch.device) -> torch.nn.Module:
    folder = registry.weights_folder()
    state = loader.load(download.ensure(registry.find(name, folder), folder)).state
    network = architectures.build(architectures.detect(state, name), state, name)
    return network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


if __name__ == "__main__":
    sys.exit(main())
