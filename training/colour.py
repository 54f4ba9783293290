"""`python -m training.colour PHOTOS`: train the estimator of fading, fading-estimator.safetensors.

PHOTOS is a folder of undamaged colour photographs. Each step fades crops of them at random, as
bench/colour.py does, and minimises the distance of the corrected pixels to the original's, close to CIE
deltaE2000. Photographs are few, so crops, light, saturation and the strength of the fading vary. The weights
are an exponential moving average.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch

from bench.colour import fading
from restorer.images import colour, file_types, photo
from restorer.images import fading as estimator
from restorer.images.icc import decode_srgb, encode_srgb
from restorer.images.resample import luma, shrunk

_CROPS, _SIDE, _LEAST_AREA = 40, 384, 0.15  # per photograph; of its copy in pixels; share of it
_PIXELS = 256  # of a crop, in the loss
_WIDTH = 96
_RATE, _DECAY = 2e-3, 1.0  # AdamW
_AVERAGE = 0.998  # of the weights, per step
_WEAK = 0.25  # share of crops with weaker fading
_GAMMA, _LIGHT, _DARKER = 0.2, 0.08, 0.25  # deviations of logarithms, largest logarithm
_SATURATION = 0.8, 1.15
_XYZ = ((0.4125, 0.3576, 0.1804), (0.2127, 0.7152, 0.0722), (0.0193, 0.1192, 0.9503))


class Crops(NamedTuple):
    """Crops of photographs, in linear light, float32.

    percentiles  (n, len(PERCENTILES), 3)
    pixels       (n, _PIXELS, 3)
    """

    percentiles: np.ndarray
    pixels: np.ndarray


def load(folder: Path, rng: np.random.Generator) -> Crops:
    """Read the photographs and crop them at random."""
    files = [path for path in sorted(folder.rglob("*")) if file_types.is_photo(path)]
    crops = [_crop(pixels, rng) for file in files for pixels in _views(file, rng)]
    return Crops(*(np.stack(part).astype(np.float32) for part in zip(*crops, strict=True)))


def _views(file: Path, rng: np.random.Generator) -> Iterator[np.ndarray]:
    whole = shrunk(photo.decode(file.read_bytes()).pixels, _SIDE)
    yield whole
    for _ in range(_CROPS - 1):
        side, aspect = np.sqrt(rng.uniform(_LEAST_AREA, 1)), np.exp(rng.uniform(-0.35, 0.35))
        height, width = (
            min(full, int(full * part))
            for full, part in zip(whole.shape, (side * aspect, side / aspect), strict=False)
        )
        top, left = (
            int(rng.integers(full - part + 1))
            for full, part in zip(whole.shape, (height, width), strict=False)
        )
        yield np.ascontiguousarray(whole[top : top + height, left : left + width])


def _crop(pixels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    grey, saturation = luma(pixels)[..., None].astype(float), rng.uniform(*_SATURATION)
    pixels = np.clip(np.rint(grey + saturation * (pixels - grey)), 0, 255).astype(np.uint8)
    small, _ = colour.reduced(pixels, None)
    light = decode_srgb(small.reshape(-1, 3) / 255)
    chosen = decode_srgb(rng.choice(pixels.reshape(-1, 3), _PIXELS) / 255)
    return np.percentile(light, estimator.PERCENTILES, axis=0), chosen


def batch(crops: Crops, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Fade random crops: (count, ...) statistics, black, white, faded pixels and originals."""
    chosen = rng.integers(len(crops.pixels), size=count)
    originals = _varied([crops.percentiles[chosen], crops.pixels[chosen]], rng)
    percentiles, pixels = fade(originals, rng)
    statistics = estimator.statistics(percentiles, pixels)
    parts = statistics, percentiles[:, 0], percentiles[:, -1], pixels, originals[1]
    return tuple(torch.from_numpy(part.astype(np.float32)) for part in parts)


def _varied(parts: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Change gamma, colour of the light and exposure of each crop slightly."""
    shape = len(parts[0]), 1, 1
    gamma, light = np.exp(rng.normal(0, _GAMMA, shape)), np.exp(rng.normal(0, _LIGHT, (len(parts[0]), 1, 3)))
    light = light * np.exp(-_DARKER * rng.uniform(0, 1, shape) ** 2)
    return [np.clip(light * part**gamma, 0, 1) for part in parts]


def fade(parts: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Fade each crop, with 8 bits."""
    fadings = [fading(rng) for _ in parts[0]]
    gain, gamma, veil = (np.stack(values)[:, None] for values in zip(*fadings, strict=True))
    strength = np.where(rng.random(len(gain)) < _WEAK, rng.uniform(0, 1, len(gain)), 1)[:, None, None]
    gain, gamma, veil = gain**strength, gamma**strength, veil * strength
    light = (np.clip(gain * part**gamma + veil, 0, 1) for part in parts)
    return [decode_srgb(np.rint(255 * encode_srgb(one)) / 255) for one in light]


def distance(light: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Return the distance of colours (..., 3) in linear light: CIE deltaE2000 without its terms in hue."""
    lab, expected = _lab(light), _lab(original)
    chroma = expected[..., 1:].norm(dim=-1)
    stretch = 1.5 - 0.5 * (chroma**7 / (chroma**7 + 25.0**7)).sqrt()
    middle = (expected[..., 0] - 50) ** 2
    lightness = (lab[..., 0] - expected[..., 0]) / (1 + 0.015 * middle / (20 + middle).sqrt())
    a, b = lab[..., 1] * stretch, lab[..., 2]
    expected_a, expected_b = expected[..., 1] * stretch, expected[..., 2]
    chromas = [(x**2 + y**2 + 1e-3).sqrt() for x, y in ((a, b), (expected_a, expected_b))]
    mean, change = (chromas[0] + chromas[1]) / 2, chromas[0] - chromas[1]
    hue = ((a - expected_a) ** 2 + (b - expected_b) ** 2 - change**2).clip(min=0)
    return (lightness**2 + (change / (1 + 0.045 * mean)) ** 2 + hue / (1 + 0.015 * mean) ** 2 + 1e-3).sqrt()


def _lab(light: torch.Tensor) -> torch.Tensor:
    matrix = torch.tensor(_XYZ)
    xyz = light @ (matrix / matrix.sum(1, keepdim=True)).T
    cubic = torch.where(xyz > 0.008856, xyz.clip(min=1e-5) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = cubic.unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -1)


def initial(crops: Crops, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Return random weights; mean and deviation are those of the statistics of faded crops."""
    statistics = batch(crops, 2000, rng)[0]
    weights = {"mean": statistics.mean(0), "deviation": statistics.std(0) + 1e-3}
    sizes = zip(estimator.LAYERS, ((statistics.shape[1], _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, 9)), strict=True)
    for name, size in sizes:
        scale = 0.0 if name == estimator.LAYERS[-1] else np.sqrt(2 / size[0])
        weights[f"{name}.weight"] = torch.from_numpy(rng.normal(0, scale, size).astype(np.float32))
        weights[f"{name}.bias"] = torch.zeros(size[1])
    return weights


def loss(weights: dict[str, torch.Tensor], parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the mean distance of corrected crops, as a share of the faded ones'."""
    statistics, black, white, pixels, originals = parts
    outputs = estimator.forward(weights, statistics, torch)
    veil, reach, gamma = estimator.inverse(outputs, black, white, torch).unbind(1)
    light = ((pixels - veil[:, None]) / (reach - veil)[:, None]).clip(min=1e-5) ** gamma[:, None]
    after = distance(colour.bent(light, torch), originals).mean(1)
    return (after / (distance(pixels, originals).mean(1) + 2)).mean()


def main() -> None:
    parser = argparse.ArgumentParser(prog="training.colour", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of photographs, searched recursively")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=2000, help="%(default)s")
    parser.add_argument("--batch", type=int, default=32, help="crops per step (%(default)s)")
    arguments = parser.parse_args()
    crops = load(arguments.photos, np.random.default_rng(0))
    weights = train(crops, arguments.steps, arguments.batch)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state = {name: value.numpy().astype(np.float16) for name, value in weights.items()}
    safetensors.numpy.save_file(state, arguments.out / "fading-estimator.safetensors")


def train(crops: Crops, steps: int, count: int) -> dict[str, torch.Tensor]:
    """Return the averaged weights after a number of steps of `count` crops."""
    rng, start, running = np.random.default_rng(1), time.monotonic(), 0.0
    torch.manual_seed(1)
    weights = initial(crops, rng)
    fixed = {name: weights[name] for name in ("mean", "deviation")}
    learned = {name: value.requires_grad_() for name, value in weights.items() if name not in fixed}
    average = {name: value.detach().clone() for name, value in learned.items()}
    optimiser = torch.optim.AdamW(learned.values(), _RATE, weight_decay=_DECAY)
    for step in range(steps):
        share = step / steps
        optimiser.param_groups[0]["lr"] = _RATE * min(1, step / 100, 2 * (1 - share))
        value = loss(fixed | learned, batch(crops, count, rng))
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(learned.values(), 5.0)
        optimiser.step()
        weight = min(_AVERAGE, step / (step + 20))
        for name, mean in average.items():
            mean.lerp_(learned[name].detach(), 1 - weight)
        running += (value.item() - running) * max(0.01, 1 / (step + 1))
        if (step + 1) % 500 == 0:
            print(f"[{time.monotonic() - start:5.0f} s] step {step + 1}  loss {running:.3f}", flush=True)
    return fixed | average


if __name__ == "__main__":
    main()
