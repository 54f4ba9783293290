"""`python -m training PHOTOS`: train restore-lite-2 from a folder of photographs.

Degrades crops of the photographs, upscales them with the teacher, and trains students on both the teacher's
outputs and the originals. Writes OUT/restore-lite-2-SIZE.safetensors and OUT/checkpoint-SIZE.pt every 20
seconds. A run resumes from its checkpoints. With --steps on a CPU, the result is deterministic.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import safetensors.torch
import torch

from restorer.models import registry

from . import STARTED, learn, pool, report, student

_GPU_POOL, _CPU_POOL = 10_000, 512  # inputs; on a CPU the teacher needs up to a minute for one
_START = 1536  # inputs in the pool before training begins


def main() -> int:
    arguments = _parse()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    files, held_out_files = pool.find_photos(arguments.photos)
    on_gpu = arguments.device == "cuda"
    workers = pool.Workers(arguments.workers)
    try:
        # The first blocks start the processes, which must not inherit CUDA
        tests = [(held_out_files, arguments.side, 0, number, True) for number in range(len(held_out_files))]
        key = f"{arguments.teacher} {[file.name for file in files + held_out_files]}"
        waiting = workers.blocks(tests)
        device, disk = torch.device(arguments.device), None if on_gpu else out
        held_out = pool.Pool(pool.BLOCK * len(tests), arguments.side, device, disk and disk / "held-out", key)
        capacity = arguments.pool or (_GPU_POOL if on_gpu else _CPU_POOL)
        key += f" seed {arguments.seed}"
        samples = pool.Pool(capacity, arguments.side, device, disk and disk / "pool", key)
        # The GPU's pool is not stored: a resumed run draws other samples
        seed = int(time.time()) if on_gpu else arguments.seed
        numbers = range(samples.size // pool.BLOCK, samples.capacity // pool.BLOCK)
        blocks = workers.blocks([(files, arguments.side, seed, number, False) for number in numbers])
        _train(arguments, held_out, waiting, samples, blocks)
    finally:
        workers.close()
    return 0


def _train(
    arguments: argparse.Namespace,
    held_out: pool.Pool,
    waiting: pool.Blocks,
    samples: pool.Pool,
    blocks: pool.Blocks,
) -> None:
    device = held_out.small.device
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32
        print(torch.cuda.get_device_name(), flush=True)
    plan = learn.Plan(
        arguments.steps,
        60 * arguments.minutes,
        arguments.batch or (48 if device.type == "cuda" else 8),
        arguments.adversarial,
        seed=arguments.seed,
        first=arguments.share,
    )
    trainer = learn.Trainer(plan, arguments.students, device, arguments.out, STARTED)
    if arguments.start and not trainer.step:
        trainer.students[0].start_from(safetensors.torch.load_file(arguments.start))
    if arguments.critic and not trainer.step:
        checkpoint = torch.load(arguments.critic, map_location="cpu", weights_only=True)
        trainer.critics[0].load(checkpoint["critic"])
    teacher, present = pool.load_network(arguments.teacher, device), _present(device)
    for _ in range(held_out.size // pool.BLOCK):
        waiting.next()  # stored by an earlier run
    for target, source in ((held_out, waiting), (samples, blocks)):
        # A plan in steps is deterministic, which needs the whole pool before the first step
        early = target is samples and not arguments.steps
        enough = min(_START, target.capacity) if early else target.capacity
        while target.size < enough and (trainer.share() < 1 or target is held_out):
            target.add(source.next(), teacher)
            if target.size % (32 * pool.BLOCK) == 0 or device.type == "cpu" or target.size == enough:
                print(f"{trainer.elapsed():6.0f} s  {target.size}/{target.capacity} inputs", flush=True)
    learn.run(trainer, samples, blocks, teacher, held_out, {registry.BUILT_IN: present})


def _present(device: torch.device) -> report.Upscale:
    network = pool.load_network(registry.BUILT_IN, device)
    dtype = next(network.parameters()).dtype
    return lambda image: network(image.to(dtype)).float()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="training", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of 8-bit photographs, searched recursively")
    parser.add_argument(
        "--out", type=Path, default=Path("out/training"), help="folder of the results (%(default)s)"
    )
    parser.add_argument(
        "--students", type=_names, default="64x9,48x16", help="features x convolutions (%(default)s)"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes", type=float, help="time of all runs, start-up included (GPU 6.5, CPU 600)"
    )
    length.add_argument("--steps", type=int, default=0, help="number of steps instead of a time")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda if available")
    parser.add_argument("--pool", type=int, help=f"training inputs (GPU {_GPU_POOL:,}, CPU {_CPU_POOL:,})")
    parser.add_argument("--side", type=int, default=128, help="side of an input in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, help="crops per step (GPU 48, CPU 8)")
    parser.add_argument(
        "--adversarial", type=float, default=0.1, help="weight of the discriminator (%(default)s)"
    )
    parser.add_argument("--workers", type=int, help="processes that degrade photographs (CPUs, at most 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and all draws (%(default)s)")
    parser.add_argument("--start", type=Path, help="weights to start from; needs one student, of their size")
    parser.add_argument("--critic", type=Path, help="checkpoint whose discriminator to start from")
    parser.add_argument("--share", type=float, default=0, help="place in the schedules to start at, 0 to 1")
    parser.add_argument("--teacher", default="RealESRGAN_x4plus", help="a model by its name (%(default)s)")
    arguments = parser.parse_args()
    if arguments.start and len(arguments.students) > 1:
        parser.error("--start needs one student, of the size of its weights")
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    arguments.minutes = arguments.minutes or (6.5 if arguments.device == "cuda" else 600)
    arguments.workers = arguments.workers or min(12, os.cpu_count() or 1)
    return arguments


def _names(text: str) -> list[str]:
    names = text.split(",")
    try:
        for name in names:
            student.parse(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


if __name__ == "__main__":
    sys.exit(main())
