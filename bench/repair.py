"""`python -m bench.repair SETS DAMAGE`: the damage detector and the filler against their targets.

Composes 200 damaged crops of SETS/kodak24 and SETS/set14, with seeds of its own, from the held-out cut-outs
below DAMAGE and from drawings of other seeds than in training. Prints recall, precision, fill quality, time,
and what the app marks on the undamaged photographs of SETS/kodak24. Exits with 1 if a target is missed.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from restorer.images import photo
from restorer.models import registry
from restorer.options import Options
from restorer.repair import damage
from restorer.repair import pipeline as repair
from restorer.repair.networks import Detector, Filler
from training.damage import compose, cutouts, draw
from training.damage.__main__ import hold_out
from training.damage.compose import Batch
from training.damage.photos import Bank

_BATCHES, _SIZE, _SIDE = 25, 8, 256  # 200 crops of 256 x 256 pixels
_SEED, _DRAW_SEED, _DRAWN = 24_000, 991, 120
_PRECISION, _RECALL = 0.70, 0.85
_OVER_TELEA, _OVER_NOTHING = 1.0, 6.0  # dB
_MARKED, _SECONDS = 0.001, 3.0  # share of undamaged pixels; per megapixel
_DEFAULT = Options.repair_sensitivity
_CPU = torch.device("cpu")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.repair", description=str(__doc__).partition("\n")[0])
    parser.add_argument("sets", type=Path, help="folder that contains kodak24/ and set14/")
    parser.add_argument("damage", type=Path, help="folder of cut-outs, see training/damage/cutouts.py")
    parser.add_argument("--batches", type=int, default=_BATCHES, help="of 8 crops each (%(default)s)")
    arguments = parser.parse_args()
    weights = registry.weights_folder()
    detector, filler = (
        repair.load(registry.find(name, weights, kind), weights, "cpu")
        for name, kind in ((repair.DETECTOR, "damage"), (repair.FILLER, "fill"))
    )
    crops = list(composites(arguments.sets, arguments.damage, arguments.batches))
    met = [measure_detection(crops, detector), measure_filling(crops, filler)]
    met.append(measure_undamaged(sorted((arguments.sets / "kodak24").glob("*.png")), detector, filler))
    return 0 if all(met) else 1


def composites(sets: Path, cut_outs: Path, batches: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield photo, clean (h, w, 3) uint8, and damage and counted (h, w) bool of each crop."""
    names, alphas = hold_out(*cutouts.load(cut_outs, 2))[1]
    drawn_names, drawn = draw.draw_all(list(draw.DAMAGE), _DRAWN, 2, _DRAW_SEED)
    atlas = compose.Atlas(names + drawn_names, np.concatenate((alphas, drawn)), _CPU)
    content = compose.Atlas(*draw.draw_all(list(draw.CONTENT), _DRAWN, 2, _DRAW_SEED), _CPU)
    with tempfile.TemporaryDirectory() as folder:
        for file in [*(sets / "kodak24").glob("*.png"), *(sets / "set14").glob("*HR.png")]:
            (Path(folder) / file.name).symlink_to(file.resolve())
        bank = Bank(Path(folder), slice(None), _SIDE, device=_CPU, workers=2)
    for number in range(batches):
        rng = torch.Generator().manual_seed(_SEED + number)
        yield from _crops(compose.compose(bank, atlas, content, _SIZE, rng, undamaged=0, plain=1))


def _crops(batch: Batch) -> Iterator[tuple[np.ndarray, ...]]:
    for index in range(len(batch.photo)):
        images = (
            np.ascontiguousarray((image[index] * 255).round().byte().permute(1, 2, 0).numpy())
            for image in (batch.photo, batch.clean)
        )
        yield *images, batch.damage[index, 0].numpy() > 0, batch.weight[index, 0].numpy() > 0


def measure_detection(crops: list[tuple[np.ndarray, ...]], detector: Detector) -> bool:
    """Print recall and precision of damaged pixels; return whether the targets are met."""
    probability = np.stack([damage.detect(crop[0], detector) for crop in crops])
    damaged, counted = (np.stack([crop[part] for crop in crops]) for part in (2, 3))

    def rates(marked: np.ndarray) -> tuple[float, float]:
        hits = (marked & damaged).sum()
        return hits / damaged.sum(), hits / max(hits + (marked & ~damaged & counted).sum(), 1)

    thresholds = np.linspace(0.01, 0.99, 99)
    table = np.array([rates(probability > threshold) for threshold in thresholds])
    good = np.flatnonzero(table[:, 1] >= _PRECISION)
    recall, index = (table[good[0], 0], good[0]) if len(good) else (0.0, 0)
    print(f"{len(crops)} crops, {100 * damaged.mean():.1f} % of the pixels damaged")
    text = f"recall at a precision of {_PRECISION}: {recall:.3f} (sensitivity {1 - thresholds[index]:.2f})"
    met = _show(text, f"{_RECALL}", recall >= _RECALL)
    recall, precision = rates(probability > 1 - _DEFAULT)
    print(f'  "on", sensitivity {_DEFAULT}: recall {recall:.3f}, precision {precision:.3f}')
    sure = np.stack([damage.chosen(one, _DEFAULT, confident=True) for one in probability])
    recall, precision = rates(sure)
    touched = sure.any((1, 2)).sum()
    print(f'  "auto": recall {recall:.3f}, precision {precision:.3f}, {touched} of {len(crops)} crops')
    return met


def measure_filling(crops: list[tuple[np.ndarray, ...]], filler: Filler) -> bool:
    """Print the PSNR inside the true mask, and whether pixels outside changed."""
    table, outside = [], 0
    for damaged, clean, hit, _ in crops:
        mask = cv2.dilate(hit.astype(np.uint8), np.ones((5, 5), np.uint8))
        inside = mask > 0
        if not inside.any():
            continue
        filled = damage.fill(damaged, inside, filler)
        telea = cv2.inpaint(damaged, mask, 3, cv2.INPAINT_TELEA)
        table.append([cv2.PSNR(image[inside], clean[inside]) for image in (filled, telea, damaged)])
        deep = damaged.astype(np.uint16) * 257 + 13
        for before, after in ((damaged, filled), (deep, damage.fill(deep, inside, filler))):
            outside += int((before != after).any(-1)[~inside].sum())
    own, telea, nothing = np.mean(table, axis=0)
    print(f"PSNR inside the true mask: filler {own:.2f} dB, Telea {telea:.2f} dB, no repair {nothing:.2f} dB")
    return all(
        [
            _show(f"above Telea {own - telea:+.2f} dB", f"{_OVER_TELEA:+} dB", own - telea >= _OVER_TELEA),
            _show(
                f"above no repair {own - nothing:+.2f} dB",
                f"{_OVER_NOTHING:+} dB",
                own - nothing >= _OVER_NOTHING,
            ),
            _show(f"pixels changed outside the mask, 8 and 16 bits: {outside}", "0", outside == 0),
        ]
    )


def measure_undamaged(files: list[Path], detector: Detector, filler: Filler) -> bool:
    """Print the share of pixels that is marked on undamaged photographs, and the time for a megapixel."""
    masks: dict[str, list[np.ndarray]] = {"auto": [], "on": []}
    seconds, busy, pixels = 0.0, 0.0, 0
    for file in files:
        image = photo.decode(file.read_bytes()).pixels
        start, started = time.perf_counter(), time.process_time()
        probability = damage.detect(image, detector)
        masks["on"].append(damage.mask(probability, _DEFAULT))
        damage.fill(image, masks["on"][-1], filler)
        seconds, busy = seconds + time.perf_counter() - start, busy + time.process_time() - started
        pixels += probability.size
        masks["auto"].append(damage.mask(probability, _DEFAULT, confident=True))
    met = []
    for name, marked in masks.items():
        shares = np.array([mask.mean() for mask in marked])
        clean = f"{(shares == 0).sum()} of {len(shares)} photographs unchanged"
        text = f'undamaged pixels marked, "{name}": {100 * shares.mean():.3f} %, {clean}'
        met.append(_show(text, f"{100 * _MARKED} %", shares.mean() <= _MARKED))
    pace, processor = seconds / pixels * 1e6, busy / pixels * 1e6
    cores = torch.get_num_threads()
    text = f"{pace:.1f} s for a megapixel, {processor:.1f} s of processor time on {cores} cores"
    return all([*met, _show(text, f"{_SECONDS} s", pace <= _SECONDS)])


def _show(text: str, target: str, met: bool) -> bool:
    print(f"{'met   ' if met else 'MISSED'} {text}; target {target}", flush=True)
    return met


if __name__ == "__main__":
    sys.exit(main())
