"""`restorer backends`: time the backends of this machine's CPU, and choose the fastest."""

import argparse
import math
import threading
import time
from pathlib import Path

from ..atomic import check_writable
from ..errors import InvalidOption
from ..models import registry, sources
from ..tables import align_columns

# One model of each family of networks, and the side of the image that is timed
_MODELS = (("RealESRGAN_x4plus", 128), (registry.BUILT_IN, 512))


def run(parsed: argparse.Namespace) -> int:
    """Print the seconds per megapixel of each backend and model; with --save, later runs use the fastest."""
    from ..inference import backends  # torch

    if parsed.rounds < 1:
        raise InvalidOption(f"--rounds is {parsed.rounds}; it must be 1 or more")
    weights = registry.weights_folder(parsed.weights_dir)
    if parsed.save:
        check_writable(weights)
    rows, fastest = [("MODEL", "BACKEND", "S/MEGAPIXEL", "")], {}
    for name, side in _MODELS:
        model = registry.find(name, weights)
        if sources.locate(model, weights) is None:
            print(f"{name} is not present; its backends are not timed", flush=True)
            continue
        family, seconds = _time(model, weights, side, parsed.rounds)
        float32 = {name: value for name, value in seconds.items() if name in backends.CHOICES}
        fastest[family] = min(float32, key=float32.__getitem__)
        used = backends.choose(family, weights)
        for backend, value in sorted(seconds.items(), key=lambda item: item[1]):
            notes = ["used"] if backend == used else []
            if backend == backends.BFLOAT16:
                notes.append("less exact")
            rows.append((model.name, backend, f"{value:.3g}", ", ".join(notes)))
    print(align_columns(rows, left=2))
    if parsed.save:
        print(f"\nSaved to {backends.save(fastest, weights)}: {', '.join(fastest.values())}")
    return 0


def _time(model: registry.Model, weights: Path, side: int, rounds: int) -> tuple[str, dict[str, float]]:
    """Return the family of a model's network, and the fewest seconds per megapixel of each backend."""
    import numpy as np

    from ..inference import backends, engine

    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    engines = {
        name: engine.load(model, weights, device=name, half=None, lock=threading.Lock())
        for name in backends.available()
    }
    seconds = dict.fromkeys(engines, math.inf)
    for number in range(rounds + 1):  # alternating, so that other work disturbs all alike
        for name, run_network in engines.items():
            start = time.perf_counter()
            for _ in run_network.bands(image, tile=run_network.best_tile()):
                pass
            if number:  # the first prepares the network
                seconds[name] = min(seconds[name], (time.perf_counter() - start) / image[..., 0].size * 1e6)
    return next(iter(engines.values())).family, seconds
