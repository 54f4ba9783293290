"""`python -m training.damage PHOTOS DAMAGE`: train the damage detector and the filler of old-photo repair.

Composes damage over crops of the photographs and trains both networks on the same batches, for a number of
minutes. Writes damage-detector.safetensors, damage-filler.safetensors and damage-checkpoint.pt to OUT every
30 seconds; a run that was interrupted resumes from the checkpoint, at its place in the learning rate's
schedule.
"""

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from restorer.repair.networks import STRIDE

from .. import STARTED
from . import compose, cutouts, draw
from .learn import Run
from .photos import Bank
from .validate import Validation

_HELD_OUT_PHOTOS = 8
_DRAW_SEED = 5
_SAVE_SECONDS, _PRINT_SECONDS, _REPORT_SECONDS = 30, 30, 300
_stopped = []  # signals received


def main() -> int:
    parser = argparse.ArgumentParser(prog="training.damage", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of 8-bit photographs, searched recursively")
    parser.add_argument("damage", type=Path, help="folder of cut-outs, or the file that cutouts.py packs")
    parser.add_argument("--out", type=Path, default=Path("out/damage"))
    parser.add_argument(
        "--minutes", type=float, default=6.5, help="from the start of the process (%(default)s)"
    )
    parser.add_argument("--device", help="cuda or cpu (the fastest available)")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 12), help="threads that load")
    parser.add_argument("--batch", type=int, help="crops per step (48; 16 on the CPU)")
    parser.add_argument("--only", choices=("detector", "filler"), help="train one of the networks")
    parser.add_argument("--side", type=int, default=256, help="of a crop, a multiple of 64 (%(default)s)")
    parser.add_argument("--drawn", type=int, default=3000, help="number of drawn masks (%(default)s)")
    parser.add_argument("--start", type=Path, help="folder with exported weights to start from")
    parser.add_argument("--share", type=float, help="position in the schedule to resume at, 0 to 1")
    arguments = parser.parse_args()
    if arguments.side % STRIDE:
        parser.error(f"--side {arguments.side} is no multiple of {STRIDE}")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: _stopped.append(received))
    torch.backends.cudnn.benchmark = True
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.batch = arguments.batch or (16 if device.type == "cpu" else 48)
    run = Run(device, arguments.out / "damage-checkpoint.pt", only=arguments.only)
    if arguments.start and not run.step:
        run.load_weights(arguments.start)
    if arguments.share is not None:
        run.share = arguments.share
    train(run, arguments)
    return 0


def train(run: Run, arguments: argparse.Namespace) -> None:
    """Train until the minutes are over or a signal arrives."""
    photos, validation, damage, content = _load(arguments, run.device)
    begin, first_step, first_share = time.monotonic(), run.step, run.share
    end = STARTED + 60 * arguments.minutes - _reserve(run, validation)
    saved = printed = reported = begin
    losses = torch.zeros(len(run.learners), device=run.device)
    since, composed = 0, Composer(photos, damage, content, arguments.batch)
    _say(f"step {run.step}, share {run.share:.3f}: {end - begin:.0f} s of training ahead")
    while not _stopped and run.share < 1:
        rng = run.generator()
        with torch.no_grad():
            batch = composed.next(run.step, rng)
        losses += run.train_step(batch, rng)
        since += 1
        now = time.monotonic()
        run.share = min(first_share + (1 - first_share) * max(now - begin, 0) / max(end - begin, 1), 1.0)
        if now - printed >= _PRINT_SECONDS or run.step == first_step + 1:
            means = zip(run.learners, (losses / since).tolist(), strict=True)  # waits for the device
            speed = (run.step - first_step) / (time.monotonic() - begin)
            text = "".join(f"  {name} {mean:.4f}" for name, mean in means)
            _say(f"step {run.step}  {speed:.2f} steps/s{text}")
            losses.zero_()
            since, printed = 0, time.monotonic()
        if now - saved >= _SAVE_SECONDS:
            run.save()
            run.export(arguments.out)
            saved = time.monotonic()
        if now - reported >= _REPORT_SECONDS:
            _say(f"step {run.step}  {validation.report(run)}")
            reported = time.monotonic()
    run.save()
    run.export(arguments.out)
    _say(f"step {run.step}, share {run.share:.3f}: saved")
    if not _stopped:
        _say(f"step {run.step}  {validation.report(run)}")


class Composer:
    """Compose batches of `size` crops, and use each several times: composing takes as long as training.

    POOL  batches to choose from; a crop of 256 x 256 takes 2.4 MB of the device's memory
    """

    POOL = 64

    def __init__(self, photos: Bank, damage: compose.Atlas, content: compose.Atlas, size: int) -> None:
        self._sources = photos, damage, content
        on_cpu = photos.device.type == "cpu"
        self._uses = 4 if on_cpu else 2
        part = 4 if on_cpu else size  # crops composed at once; on a CPU few enough to stay in the cache
        self._sizes = [min(part, size - start) for start in range(0, size, part)]
        self._pool: list[compose.Batch] = []

    def next(self, step: int, rng: torch.Generator) -> compose.Batch:
        """Return the batch of a step: a new one, or an earlier one turned by 90 degrees."""
        if step % self._uses and len(self._pool) == self.POOL:
            # Not drawn on the device, for which the host would wait
            chosen = random.Random(rng.initial_seed()).randrange(self.POOL)
            batch = compose.Batch(*(part.transpose(2, 3).flip(2) for part in self._pool[chosen]))
            self._pool[chosen] = batch
            return batch
        parts = [compose.compose(*self._sources, size, rng) for size in self._sizes]
        batch = compose.Batch(*(torch.cat(part) for part in zip(*parts, strict=True)))
        self._pool = [*self._pool[1 - self.POOL :], batch]
        return batch


def _load(
    arguments: argparse.Namespace, device: torch.device
) -> tuple[Bank, Validation, compose.Atlas, compose.Atlas]:
    """Return photographs, the validation, and atlases of damage and of content that resembles it."""
    workers, side = arguments.workers, arguments.side
    names, alphas = cutouts.load(arguments.damage, workers)
    _say(f"{len(names)} cut-outs")
    share = len(draw.DAMAGE) / (len(draw.DAMAGE) + len(draw.CONTENT))
    count = arguments.drawn
    drawn = draw.draw_all(list(draw.DAMAGE), round(count * share), workers, _DRAW_SEED)
    content = draw.draw_all(list(draw.CONTENT), round(count * (1 - share)), workers, _DRAW_SEED)
    _say(f"{len(drawn[0])} drawings of damage, {len(content[0])} of content")
    damage = names + drawn[0], np.concatenate((alphas, drawn[1]))
    learnt, judged = slice(None, -_HELD_OUT_PHOTOS), slice(-_HELD_OUT_PHOTOS, None)
    photos = Bank(arguments.photos, learnt, side, device=device, workers=workers, varied=True)
    judged_photos = Bank(arguments.photos, judged, side, device=device, workers=workers)
    _say(f"{photos.count} photographs, {judged_photos.count} held out")
    atlases = [compose.Atlas(*part, device) for pair in (damage, content) for part in hold_out(*pair)]
    small = device.type == "cpu"
    validation = Validation(
        judged_photos, atlases[1], atlases[3], batches=4 if small else 6, size=24 if small else 48
    )
    _say("validation crops composed")
    return photos, validation, atlases[0], atlases[2]


def hold_out(names: list[str], alphas: np.ndarray) -> list[tuple[list[str], np.ndarray]]:
    """Split alphas into those to learn and, of each kind, the last tenth by name, at least one."""
    kinds = [name.partition("/")[0] for name in names]
    held = np.zeros(len(names), bool)
    for kind in set(kinds):
        number, end = kinds.count(kind), kinds.index(kind) + kinds.count(kind)
        held[end - max(number // 10, 1) : end] = True
    return [([n for n, h in zip(names, part, strict=True) if h], alphas[part]) for part in (~held, held)]


def _reserve(run: Run, validation: Validation) -> float:
    """Return the seconds to keep for the last validation and for saving, as measured now."""
    validation.report(run)  # the first takes longer
    start = time.monotonic()
    report = validation.report(run)
    seconds = time.monotonic() - start
    _say(f"step {run.step}  {report}  ({seconds:.1f} s)")
    return 1.5 * seconds + 5


def _say(message: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
