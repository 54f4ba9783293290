"""What a photo takes in memory: measured in a process of its own, whose peak the system knows."""

import subprocess
import sys
from pathlib import Path

import pytest

from restorer import backends

ROOT = Path(__file__).parent.parent
_PEAK = """
import re

def peak():
    # Of this program alone; getrusage() tells the peak of the process that it was started from
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
"""
_PHOTO = """
import sys
import cv2, imagecodecs, numpy as np
from restorer import encode, upscale
from restorer.photo import Meta, Photo

class Nearest:
    scale, align, pad = 4, 1, 8
    def __call__(self, tile):
        return tile.repeat(4, axis=0).repeat(4, axis=1)

form, channels, depth = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def restored(height, width):
    ramp = np.add.outer(np.arange(height), np.arange(width)) % (2 ** depth)
    ramp = ramp.astype(f"uint{depth}")
    pixels = np.repeat(ramp[..., None], 3, axis=2)
    before = Photo(pixels, ramp if channels == 4 else None, Meta("png", depth=depth))
    after = upscale.upscale(before, Nearest(), outscale=4, tile=256)
    file = encode.encode(after, form, quality=90)
    return after.pixels.nbytes + (after.alpha.nbytes if channels == 4 else 0), len(file.data)

restored(300, 300)
small = peak()
made, file = restored(1000, 2000)
print((peak() - small - file) / made)
"""


_TILE = """
import sys
from pathlib import Path
from threading import Lock
import numpy as np
import torch
from restorer import compat
from restorer.engines import Engines
from restorer.models import find

torch.manual_seed(0)
network = compat.load("basicsr.archs.rrdbnet_arch", "RRDBNet")(3, 3, num_block=1)
folder, device, side = sys.argv[1], sys.argv[2], 160
torch.save({"params": network.state_dict()}, f"{folder}/custom/short.pth")
engines = Engines(Path(folder), device=device, half=None, running=Lock())
engine = engines.get(find("custom/short", Path(folder)), 1)._engine
picture = np.zeros((side, side, 3), np.uint8)
engine(picture[:32, :32])
before = peak()
engine(picture)
print((peak() - before) / engine.bytes / side**2)
"""


def measured(script: str, *arguments: object) -> float:
    """What a program prints."""
    command = [sys.executable, "-c", _PEAK + script, *map(str, arguments)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("form", "channels", "depth"),
    [("png", 3, 8), ("png", 4, 8), ("png", 3, 16), ("jpeg", 3, 8), ("tiff", 3, 8)],
)
def test_a_photo_takes_little_more_than_its_result(form, channels, depth):
    """32 MP out: 1 is the result's own pixels; transparency has a picture of its own for a time."""
    assert 0.8 < measured(_PHOTO, form, channels, depth) < 1.8


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("way", [name for name in backends.NAMES if name.startswith("cpu")])
def test_a_tile_takes_what_its_size_is_chosen_by(way, tmp_path):
    (tmp_path / "custom").mkdir()
    assert 0.3 < measured(_TILE, tmp_path, way) < 1.5
