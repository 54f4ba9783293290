"""What a photo takes in memory: measured in a process of its own, whose peak the system knows."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_SCRIPT = """
import re, sys
import cv2, imagecodecs, numpy as np
from restorer import encode, upscale
from restorer.photo import Meta, Photo

class Nearest:
    scale, align, pad = 4, 1, 8
    def __call__(self, tile):
        return tile.repeat(4, axis=0).repeat(4, axis=1)

def peak():
    # Of this program alone; getrusage() tells the peak of the process that it was started from
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

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


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("form", "channels", "depth"),
    [("png", 3, 8), ("png", 4, 8), ("png", 3, 16), ("jpeg", 3, 8), ("tiff", 3, 8)],
)
def test_a_photo_takes_little_more_than_its_result(form, channels, depth):
    """32 MP out: 1 is the result's own pixels; transparency has a picture of its own for a time."""
    told = subprocess.run(
        [sys.executable, "-c", _SCRIPT, form, str(channels), str(depth)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.8 < float(told.stdout) < 1.8
