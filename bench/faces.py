"""`python -m bench.faces`: the time that faces take, compared with GFPGANer and facexlib as shipped.

Same photo, landmarks and restored crops; detection, cropping and pasting are timed interleaved, in one
run. The reference finds faces with RetinaFace (ResNet50) on the whole photo and masks them with ParseNet.
Both have seeded random weights here, which cost what trained ones do; the landmarks they would find are given
to it. Then the restoration itself, by one GFPGAN of seeded random weights, whatever the photo's size. Prints
a line a case, and the peak memory at 8 MP with 4 faces. Needs yunet in the weights folder.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from skimage import data

from restorer.errors import WeightsUnavailable
from restorer.evaluation.metrics import psnr
from restorer.faces import detect, paste, pipeline
from restorer.faces.engine import FaceEngine
from restorer.models import compat, registry

from . import here
from .machine import resident
from .rounds import EQUAL, OURS, interleaved, summary

OUTSCALE = 4
THEIRS = "GFPGANer"
STEPS = ("detection", "cutting out", "putting back")
Case = tuple[np.ndarray, np.ndarray, list[detect.Detection]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.faces", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--megapixels", type=float, nargs="+", default=[2, 8, 48], help="of the result")
    parser.add_argument("--faces", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=(OURS, THEIRS), help="run this one once and print its peak memory")
    arguments = parser.parse_args()
    sides = {OURS: Ours, THEIRS: Theirs}
    if arguments.only:
        timed(sides[arguments.only](), case(arguments.megapixels[0], arguments.faces[0]))
        print(resident("VmHWM") / 1024)  # getrusage would count what the process was forked from
        return 0
    ready = {name: make() for name, make in sides.items()}
    device = torch.device("cpu")
    for megapixels in arguments.megapixels:
        for count in arguments.faces:
            compare(ready, case(megapixels, count), arguments.rounds, f"{megapixels:g} MP, {count} faces")
    del ready
    for count in arguments.faces:
        contestants = _restored(count, arguments.rounds, device)["contestants"]
        ours, theirs = contestants[OURS], contestants[THEIRS]
        times = f"{ours['median']:.1f} / {theirs['median']:.1f} s ({theirs['ratio']:.2f}x)"
        print(f"restoration of {count} faces  {times}", flush=True)
    for name in sides:
        command = [sys.executable, "-m", "bench.faces", "--only", name, "--megapixels", "8", "--faces", "4"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"peak memory at 8 MP with 4 faces, {name}: {float(done.stdout.splitlines()[-1]):.0f} MiB")
    return 0


def case(megapixels: float, count: int) -> Case:
    """A photo with `count` copies of a face in a row of squares, its enlargement, and where the faces are."""
    face = data.astronaut()[0:256, 96:352]
    side = round((megapixels * 1e6) ** 0.5 / OUTSCALE)
    grid = int(np.ceil(count**0.5))
    cell = side // grid
    tile = cv2.resize(face, (cell, cell), interpolation=cv2.INTER_AREA)
    pixels = np.full((side, side, 3), 90, np.uint8)
    landmarks = np.array([(107, 107), (144, 105), (126, 132), (113, 148), (143, 147)]) * cell / 256
    detections = []
    for index in range(count):
        top, left = index // grid * cell, index % grid * cell
        pixels[top : top + cell, left : left + cell] = tile
        moved = landmarks + (left, top)
        (left, top), (right, bottom) = moved.min(0) - cell / 8, moved.max(0) + cell / 8
        box = float(left), float(top), float(right), float(bottom)
        detections.append(detect.Detection(box, 0.9, moved))
    large = cv2.resize(pixels, None, fx=OUTSCALE, fy=OUTSCALE, interpolation=cv2.INTER_CUBIC)
    return pixels, large, detections


def timed(side: "Ours | Theirs", faces: Case) -> dict[str, float]:
    """Seconds of each step beside running the network of faces."""
    times = {}
    for step, call in zip(STEPS, (side.detect, side.crop, side.paste), strict=True):
        start = time.perf_counter()
        call(*faces)
        times[step] = time.perf_counter() - start
    return times


class Ours:
    def __init__(self) -> None:
        model = registry.find("yunet", registry.weights_folder(), "detect")
        file = here(model.file)
        if file is None:
            raise WeightsUnavailable(f"{model.file} is not in the weights folder")
        self.detector = detect.YuNet(file)

    def detect(self, photo: np.ndarray, large: np.ndarray, detections: list) -> None:
        detect.detect_faces(photo, self.detector)

    def crop(self, photo: np.ndarray, large: np.ndarray, detections: list) -> None:
        cut = pipeline.crop_faces(photo, detections, large=True)
        self.faces = pipeline.restore(cut, lambda crops: [255 - crop for crop in crops])

    def paste(self, photo: np.ndarray, large: np.ndarray, detections: list) -> None:
        paste.paste(large.copy(), self.faces, outscale=OUTSCALE, strength=1)


class Theirs:
    def __init__(self, device: torch.device | None = None) -> None:
        device = device or torch.device("cpu")
        compat.install()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from facexlib.detection.retinaface import RetinaFace
            from facexlib.parsing.parsenet import ParseNet
            from facexlib.utils import face_restoration_helper as reference

            torch.manual_seed(0)
            detector = RetinaFace("resnet50", device=device).eval().to(device)
            reference.init_detection_model = lambda *_, **__: detector
            reference.init_parsing_model = lambda *_, **__: ParseNet(512, 512, 19).eval().to(device)
            # as GFPGANer makes it
            self.helper = reference.FaceRestoreHelper(
                OUTSCALE, face_size=512, crop_ratio=(1, 1), save_ext="png", use_parse=True, device=device
            )

    def detect(self, photo: np.ndarray, large: np.ndarray, detections: list) -> None:
        self.helper.clean_all()
        self.helper.read_image(photo[..., ::-1])
        self.helper.get_face_landmarks_5(only_center_face=False, eye_dist_threshold=5)

    def crop(self, photo: np.ndarray, large: np.ndarray, detections: list) -> None:
        self.helper.clean_all()
        self.helper.all_landmarks_5 = [face.landmarks for face in detections]
        self.helper.det_faces = [np.array([*face.box, face.score]) for face in detections]
        self.helper.align_warp_face()
        for crop in self.helper.cropped_faces:
            self.helper.add_restored_face(255 - crop)

    def paste(self, photo: np.ndarray, large: np.ndarray, detections: list) -> None:
        self.helper.get_inverse_affine(None)
        self.helper.paste_faces_to_input_image(upsample_img=large[..., ::-1])


def restoration(count: int, device: torch.device) -> dict[str, Callable[[], list]]:
    """What restores so many crops by one GFPGAN of seeded random weights, here and as GFPGANer does."""
    compat.install()
    from basicsr.utils import img2tensor, tensor2img

    torch.manual_seed(0)
    shape = {"num_mlp": 8, "input_is_latent": True, "different_w": True, "sft_half": True}
    network = compat.load_attribute("gfpgan.archs.gfpganv1_clean_arch", "GFPGANv1Clean")(512, **shape)
    ours = FaceEngine(copy.deepcopy(network), device=device, half=device.type == "cuda")
    network = network.eval().to(device)
    crop = cv2.resize(data.astronaut()[0:256, 96:352], (512, 512), interpolation=cv2.INTER_CUBIC)

    @torch.no_grad()
    def theirs() -> list[np.ndarray]:
        restored = []
        for _ in range(count):
            batch: Any = img2tensor(crop / 255.0, bgr2rgb=False, float32=True)
            batch = ((batch - 0.5) / 0.5)[None].to(device)
            out = network(batch, return_rgb=False, randomize_noise=False)[0]
            restored.append(tensor2img(out.squeeze(0), rgb2bgr=False, min_max=(-1, 1)))
        return restored

    return {OURS: lambda: ours([crop] * count), THEIRS: theirs}


def lines(megapixels: float, count: int, *, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """All but the network, and the network, as lines of bench/results.json. Raises WeightsUnavailable."""
    sides = {OURS: Ours(), THEIRS: Theirs(device)}
    small = case(1, 1)
    for side in sides.values():
        timed(side, small)
    times = _steps(sides, case(megapixels, count), rounds)
    seconds = {name: [sum(took.values()) for took in of_side] for name, of_side in times.items()}
    photo = f"{megapixels:g} MP, {count} faces, all but the network"
    return [_line(photo, seconds, {}), _restored(count, rounds, device)]


def _restored(count: int, rounds: int, device: torch.device) -> dict[str, Any]:
    runs = restoration(count, device)
    for run in runs.values():
        run()
    seconds, outputs = interleaved(runs, rounds=rounds)
    alike = psnr(np.concatenate(outputs[THEIRS]), np.concatenate(outputs[OURS]))
    return _line(f"{count} faces, the network", seconds, {OURS: min(alike, EQUAL)})


def _line(photo: str, seconds: dict[str, list[float]], alike: dict[str, float]) -> dict[str, Any]:
    line = {"figure": "faces", "network": "GFPGAN", "seeded": True, "photo": photo}
    line |= {"rounds": len(seconds[OURS]), "same_from": 60.0}
    contestants: dict[str, dict[str, Any]] = {**summary(seconds)}
    return {
        **line,
        "contestants": {n: {**one, "gflops": None, "psnr": alike.get(n)} for n, one in contestants.items()},
    }


def _steps(sides: dict[str, Any], faces: Case, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of every step, round by round, both sides in turn."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    runs = {name: lambda n=name: times[n].append(timed(sides[n], faces)) for name in sides}
    interleaved(runs, rounds=rounds)
    return times


def compare(sides: dict[str, Any], faces: Case, rounds: int, title: str) -> None:
    """Print the medians of every step."""
    times = _steps(sides, faces, rounds)
    cells = []
    for step in (*STEPS, "all"):
        ours, theirs = (
            statistics.median(sum(t.values()) if step == "all" else t[step] for t in times[name])
            for name in (OURS, THEIRS)
        )
        cells.append(f"{step} {ours * 1e3:.0f} / {theirs * 1e3:.0f} ms ({theirs / ours:.1f}x)")
    print(f"{title:18}", *cells, sep="  ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
