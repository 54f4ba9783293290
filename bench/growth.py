"""`python -m bench.growth`: time and memory of the command line against the size of the result, as a plot.

Each point is one `python -m restorer PHOTO -o RESULT.png` with the built-in model, in a process of its own:
seconds from start to end, and peak memory, less that of a process that has imported the libraries and loaded
the model. The last run is 4 MP in and 64 MP out, with a goal of 1.2 GB. Linux only.

Memory is RssAnon, sampled every 5 ms: the kernel drops unused pages of the libraries' files, so the full RSS
of a long run is too low.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from restorer.cost import benchmark
from restorer.models import registry

MODEL, SCALE = registry.BUILT_IN, 4
_PROJECT = Path(__file__).resolve().parents[1]
_RESULTS, _PLOT = Path(__file__).with_name("growth.json"), _PROJECT / "docs/growth.svg"
_MEGAPIXELS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_LARGE, _AIM = 64, 1.2e9  # megapixels of the result, bytes
_LOOK = 0.005  # seconds
_WHOLE_TILE = 2.0  # megapixels of the result from which on tiles have their full size
_LIBRARIES = f"""
import re, restorer.__main__, tqdm
from restorer import pipeline, result
from restorer.images import encode
from restorer.inference import upscale
pipeline.Restorer(model="{MODEL}").load()
print(*re.findall(r"(?:VmRSS|RssAnon):\\s+(\\d+)", open("/proc/self/status").read()))
"""


class Held(NamedTuple):
    """Bytes that a process holds: those that are resident, and of them those that no file backs."""

    resident: int
    anonymous: int


class Point(NamedTuple):
    """One run: megapixels of the result, seconds, bytes beyond the libraries': anonymous, resident."""

    megapixels: float
    seconds: float
    memory: int
    resident: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.growth", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--megapixels", type=float, nargs="+", default=_MEGAPIXELS, help="of the results")
    parser.add_argument("--plot", type=Path, default=_PLOT, help="file of the plot")
    arguments = parser.parse_args()
    own = libraries()
    print(f"libraries and model: {own.resident / 1e6:.0f} MB, {own.anonymous / 1e6:.0f} of them anonymous")
    points = [measure(megapixels, own) for megapixels in arguments.megapixels]
    large = measure(_LARGE, own)
    most = max(large.memory, large.resident)
    summary = f"{large.memory / 1e9:.2f} GB beyond the libraries (by RSS {large.resident / 1e9:.2f})"
    print(f"{_LARGE} MP: {summary}; the goal is {_AIM / 1e9:g} GB")
    memory, time_ = fitted([*points, large])
    print(f"memory: {memory[0] / 1e6:.0f} MB + {memory[1]:.2f} bytes for each byte of the result's pixels")
    print(f"time: {time_[0]:.1f} s + {time_[1]:.2f} s for each megapixel of the result")
    results: dict[str, Any] = {"libraries": own, "points": points, "large": large}
    _RESULTS.write_text(json.dumps({**results, "memory": memory, "time": time_}, indent=1) + "\n")
    plot([*points, large], memory, time_, arguments.plot)
    return 0 if most < _AIM else 1


def libraries() -> Held:
    """What a process holds with everything imported and the model loaded, before a photo."""
    done = subprocess.run([sys.executable, "-c", _LIBRARIES], capture_output=True, text=True, check=True)
    return Held(*(int(kilobytes) * 1024 for kilobytes in done.stdout.split()))


def measure(megapixels: float, own: Held) -> Point:
    """One run of the command line for a result of so many megapixels.

    own  the libraries', which is taken off
    """
    side = round((megapixels * 1e6) ** 0.5 / SCALE)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "photo.jpg"), Path(folder, "result.png")
        source.write_bytes(benchmark.sample(side, side, face=False))
        options = ["-o", str(target), "--model", MODEL, "--face-enhance", "off"]
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-m", "restorer", str(source), *options], cwd=_PROJECT)
        anonymous = _anonymous(child.pid)
        while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
            anonymous = max(anonymous, _anonymous(child.pid))
            time.sleep(_LOOK)
        _, status, used = ended
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode or not target.is_file():
            raise SystemExit("bench.growth: the command line failed")
    beyond = anonymous - own.anonymous, used.ru_maxrss * 1024 - own.resident
    return Point((side * SCALE) ** 2 / 1e6, seconds, *beyond)


def _anonymous(pid: int) -> int:
    """Bytes; none of a process that has ended and was not waited for."""
    match = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0


def fitted(points: Sequence[Point]) -> tuple[tuple[float, float], tuple[float, float]]:
    """(bytes at rest, bytes for each byte of the result), (seconds at rest, seconds a megapixel).

    Least squares; memory from where on tiles have their full size, for smaller ones take less.
    """
    whole = [point for point in points if point.megapixels >= _WHOLE_TILE] or points
    memory = _line([3e6 * point.megapixels for point in whole], [point.memory for point in whole])
    return memory, _line([point.megapixels for point in points], [point.seconds for point in points])


def plot(
    points: Sequence[Point], memory: tuple[float, float], time_: tuple[float, float], file: Path
) -> None:
    """Time and memory over the result's megapixels, in greys and colours that show on light and on dark."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    grey, blue, orange = "#808080", "#3b82c4", "#d9822b"
    plt.rcParams.update({"text.color": grey, "axes.labelcolor": grey, "axes.edgecolor": grey})
    plt.rcParams.update({"xtick.color": grey, "ytick.color": grey, "font.size": 11, "svg.hashsalt": "growth"})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    x = np.linspace(0, max(point.megapixels for point in points), 2)
    shown = (
        (axes[0], "seconds", [point.seconds for point in points], time_[0] + time_[1] * x, blue),
        (
            axes[1],
            "MB beyond the libraries",
            [point.memory / 1e6 for point in points],
            memory[0] / 1e6 + 3 * memory[1] * x,
            orange,
        ),
    )
    for panel, label, values, line, colour in shown:
        panel.plot(x, line, color=grey, linewidth=1, linestyle="--")
        panel.plot([point.megapixels for point in points], values, "o", color=colour)
        panel.set(xlabel="megapixels of the result", ylabel=label, xlim=(0, None), ylim=(0, None))
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_title(f"{time_[1]:.2f} s a megapixel", fontsize=11)
    axes[1].set_title(f"{memory[1]:.2f} bytes for each byte of the result", fontsize=11)
    figure.savefig(file, transparent=True, metadata={"Date": None} if file.suffix == ".svg" else None)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope."""
    slope, intercept = np.polyfit(x, y, 1)
    return float(intercept), float(slope)


if __name__ == "__main__":
    sys.exit(main())
