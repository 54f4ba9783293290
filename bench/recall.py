"""`python -m bench.recall SETS`: faces found at several image sizes.

SETS holds gfpgan_inputs/ and old_photos/; scikit-image's astronaut is the last photograph. Each is looked at
as it is, as a large scan (long side 4,000 pixels), and as a part of a crowd, all of them beside one another.
Prints, for each choice of long sides: faces found, boxes that hold none, and milliseconds for all. Writes
OUT/faces.png: what the chosen sides find, boxes and landmarks drawn in. Needs yunet.
"""

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from skimage import data

from restorer.faces import detect
from restorer.images import photo
from restorer.models import registry

# Tips of the noses, x and y, as seen by eye; photographs that are not named show no face
NOSES = {
    "00.jpg": [(858, 500), (593, 889)],
    "10045.png": [(219, 169), (422, 177), (408, 484)],
    "Adele_crop.png": [(264, 316)],
    "Blake_Lively.jpg": [(500, 213), (189, 229)],
    "Julia_Roberts_crop.png": [(259, 312)],
    "Justin_Timberlake_crop.png": [(275, 319)],
    "Paris_Hilton_crop.png": [(254, 313)],
    "a.png": [(175, 203)],
    "b.png": [(285, 293)],
    "c.png": [(265, 408)],
    "g.png": [(307, 290)],
    "h.png": [(245, 208)],
    "astronaut": [(223, 125)],
}
CHOICES = ((320,), (640,), (1280,), (2560,), (320, 640), detect.CAPS, (320, 640, 1280), (320, 2560))
LARGE = 4000
Known = tuple[np.ndarray, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.recall", description=str(__doc__).partition("\n")[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/faces"))
    arguments = parser.parse_args()
    weights = registry.weights_folder()
    detector = detect.YuNet(weights / registry.find("yunet", weights, "detect").file)
    plain = photographs(arguments.sets)
    views = {
        "as they are": plain,
        "large scans": [enlarged(*known, LARGE) for known in plain],
        "a crowd": [crowd(plain)],
    }
    for view, known in views.items():
        print(f"{view}: {sum(len(noses) for _, noses in known)} faces")
        for caps in CHOICES:
            hits, false, start = 0, 0, time.perf_counter()
            for pixels, noses in known:
                boxes = [face.box for face in detect.detect_faces(pixels, detector, caps=caps)]
                held = [[_holds(box, nose) for nose in noses] for box in boxes]
                hits += int(np.any(held, axis=0).sum()) if held else 0
                false += sum(not any(row) for row in held)
            took = (time.perf_counter() - start) * 1e3
            sides = " and ".join(map(str, caps)) + " (chosen)" * (caps == detect.CAPS)
            print(f"  {sides:21} {hits:3} found {false:3} false {took:6.0f} ms")
    arguments.out.mkdir(parents=True, exist_ok=True)
    pixels = views["a crowd"][0][0]
    sheet = detect.draw(pixels, detect.detect_faces(pixels, detector))
    cv2.imwrite(str(arguments.out / "faces.png"), cv2.resize(sheet, None, fx=0.5, fy=0.5)[..., ::-1])
    return 0


def photographs(sets: Path) -> list[Known]:
    """Pixels, and (N, 2) the places of the noses in them."""
    files = [file for name in ("gfpgan_inputs", "old_photos") for file in sorted((sets / name).iterdir())]
    read = {file.name: photo.decode(file.read_bytes()).pixels for file in files}
    read["astronaut"] = data.astronaut()
    return [(pixels, np.array(NOSES.get(name, [])).reshape(-1, 2)) for name, pixels in read.items()]


def enlarged(pixels: np.ndarray, noses: np.ndarray, long: int) -> Known:
    times = long / max(pixels.shape[:2])
    return cv2.resize(pixels, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC), noses * times


def crowd(known: list[Known]) -> Known:
    """All in one picture, each in its cell."""
    cell = LARGE // int(np.ceil(len(known) ** 0.5))
    picture, places = np.full((LARGE, LARGE, 3), 90, np.uint8), []
    for index, (pixels, noses) in enumerate(known):
        part, moved = enlarged(pixels, noses, cell)
        top, left = index // (LARGE // cell) * cell, index % (LARGE // cell) * cell
        picture[top : top + part.shape[0], left : left + part.shape[1]] = part
        places.append(moved + (left, top))
    return picture, np.concatenate(places)


def _holds(box: tuple[float, float, float, float], nose: np.ndarray) -> bool:
    return bool(box[0] <= nose[0] <= box[2] and box[1] <= nose[1] <= box[3])


if __name__ == "__main__":
    sys.exit(main())
