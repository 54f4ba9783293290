"""The lines of the benchmark: a network, a picture, every contestant in turn, and whether pixels agree."""

import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

import restorer
from restorer.batch import manifest, plan, runner
from restorer.evaluation.metrics import psnr
from restorer.images import low_frequencies
from restorer.images.resample import to_uint8, to_uint16
from restorer.options import Options

from . import faces, peers
from .machine import matrix_product
from .peers import REFERENCE, SHIPPED, levels
from .rounds import EQUAL, OURS, interleaved, summary
from .subjects import GENERAL, LITE, NAMES, X2PLUS, X4PLUS, Subject, subject

_SAME = {"cpu": 60.0}  # dB to the same network in float32 from which on pixels are the same
_SAME_IN_HALF = 45.0
_SAME_IN_FILES = 48.0  # one level: RealESRGANer rounds before low frequencies are matched
# Pixels from the edges that RealESRGANer pads, up to which its result is another: the receptive field of
# realesr-general-x4v3, and of RRDBNet's a part, beyond which 63 dB are left
_EDGE = {"RRDBNet": 48, "SRVGGNetCompact": 34}
_WARM = 48  # side of the picture that warms up
NETWORK, FILE, FOLDER, FACES = "network", "file", "folder", "faces"
_PHOTOS = 8  # in a folder
MATRIX = "matrix product"
_ON_GPU = {(X4PLUS, "512 x 512"): 0.026, (GENERAL, "512 x 512"): 0.0016}  # seconds aimed at on an H200
TWICE = f"{SHIPPED}, x2plus"


class Line(NamedTuple):
    """What is timed.

    figure   "network", from memory to memory, "file", from a PNG's bytes to a PNG's bytes, or "folder", from
             a folder of PNGs to one of PNGs, the model's loading included
    network  by name
    side     of the square photo in pixels
    alpha    the photo has an opaque alpha channel
    twice    2x instead of 4x, with RealESRGAN_x2plus
    rounds   number of rounds; None: see rounds.interleaved()
    """

    figure: str
    network: str
    side: int
    alpha: bool = False
    twice: bool = False
    rounds: int | None = None

    @property
    def photo(self) -> str:
        kind = ", opaque RGBA" if self.alpha else ""
        count = f"{_PHOTOS} of " if self.figure == FOLDER else ""
        return f"{count}{self.side} x {self.side}{kind}{', 2x' if self.twice else ''}"


SIZES = (256, 512, 1024, 2048)  # 1024 x 1024 is 1 MP, 2048 x 2048 is 4 MP
QUICK = (
    Line(NETWORK, X4PLUS, 128),
    Line(FILE, X4PLUS, 128),
    Line(FILE, X4PLUS, 128, twice=True),
    Line(FILE, X4PLUS, 1024, rounds=1),  # 1 megapixel; minutes for each contestant
    *(Line(NETWORK, GENERAL, side) for side in (256, 512)),
    *(Line(FILE, GENERAL, side) for side in (256, 512)),
    Line(FILE, GENERAL, 512, alpha=True),
    *(Line(NETWORK, LITE, side) for side in (256, 512, 1024)),
    *(Line(FILE, LITE, side) for side in (512, 1024, 2048)),
    Line(FOLDER, LITE, 512),
)
_FOLDERS = 1024  # side of a folder's photos, where every size is measured


def every(sides: tuple[int, ...]) -> tuple[Line, ...]:
    """Every kind of line at every size, network by network."""
    lines = []
    for name in NAMES:
        for side in sides:
            lines += [Line(NETWORK, name, side), Line(FILE, name, side), Line(FILE, name, side, alpha=True)]
            if name == X4PLUS:
                lines.append(Line(FILE, name, side, twice=True))
            if side == _FOLDERS:
                lines.append(Line(FOLDER, name, side))
    return tuple(lines)


class Contestants:
    """The contestants for one network, created for the first of its lines.

    left_out  why a contestant is missing, by name
    """

    def __init__(self, own: Subject, device: torch.device) -> None:
        self.own, self.device = own, device
        self.left_out: dict[str, str] = {}
        self._ready: dict[str, peers.Ready] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._ready)

    def network(self, pixels: np.ndarray) -> dict[str, Callable[[], Any]]:
        """What is timed for this picture. All have run once before, on a small one."""
        runs = {}
        for name in peers.PEERS:
            if name in self.left_out:
                continue
            try:
                if name not in self._ready:
                    ready = peers.make(name, self.own, self.device)
                    if name != peers.COMPILED:  # compiled for one size, at which it has run
                        ready(_small(pixels))()
                    self._ready[name] = ready
                runs[name] = self._ready[name](pixels)
            except (ImportError, RuntimeError) as error:
                self.left_out[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                self._ready.pop(name, None)
        return runs

    def file(self, line: Line, pixels: np.ndarray) -> dict[str, Callable[[], bytes]]:
        """Ours and RealESRGANer from bytes to bytes. Both have run once before, on a small picture."""
        own, outscale = self.own, 4
        tile = 0 if peers.fits(own, pixels, self.device) else peers.TILE
        runs: dict[str, Callable[[bytes], bytes]] = {}
        if line.twice:
            own, outscale = subject(X2PLUS, self.own.weights), 2
            runs[TWICE] = file_by_realesrganer(own, self.device, outscale)
        runs[OURS] = file_by_ours(own, self.device, outscale)
        runs[SHIPPED] = file_by_realesrganer(self.own, self.device, outscale, tile)
        small, data = (png(image, alpha=line.alpha) for image in (_small(pixels), pixels))
        for run in runs.values():
            run(small)
        return {name: lambda run=run: run(data) for name, run in runs.items()}

    def folder(self, pixels: np.ndarray, place: Path) -> dict[str, Callable[[], bytes]]:
        """Ours and RealESRGANer from a folder to a folder. Both have run once before, on small pictures."""
        small, large = (_folder(place / name, one) for name, one in (("small", _small(pixels)), ("", pixels)))
        runs = {OURS: folder_by_ours, SHIPPED: folder_by_realesrganer}
        for run in runs.values():
            run(self.own, self.device, small)
        return {name: lambda run=run: run(self.own, self.device, large) for name, run in runs.items()}


def run(line: Line, contestants: Contestants, rounds: int | None) -> dict[str, Any]:
    """Time one line: seconds, ratios, GFLOP/s and PSNR of each contestant, as results.json has them.

    rounds  None: those of the line
    """
    with tempfile.TemporaryDirectory() as place:
        return _run(line, contestants, rounds, Path(place))


def _run(line: Line, contestants: Contestants, rounds: int | None, place: Path) -> dict[str, Any]:
    device, own = contestants.device, contestants.own
    pixels = picture(line.side)
    of_network = line.figure == NETWORK
    runs: Mapping[str, Callable[[], Any]]
    if of_network:
        runs = contestants.network(pixels)
    elif line.figure == FILE:
        runs = contestants.file(line, pixels)
    else:
        runs = contestants.folder(pixels, place)
    product, product_gflop = matrix_product(device)
    product()
    seconds, outputs = interleaved(
        {MATRIX: product, **runs},
        rounds=rounds or line.rounds,
        keep=lambda out: out if out is None else levels(out) if of_network else decoded(out),
    )
    products = seconds.pop(MATRIX)
    results: dict[str, dict[str, Any]] = {**summary(seconds)}
    if not of_network:
        outputs |= {name: matched(outputs[name], pixels) for name in results if name != OURS}
    gflop = own.flops * line.side**2 / 1e9
    same, like = _reference(line, contestants, pixels, outputs)
    same_from = _SAME.get(device.type, _SAME_IN_HALF)
    tiled = not peers.fits(own, pixels, device)  # the reference has seams
    for name, result in results.items():
        # RealESRGANer puts 10 reflected pixels at two edges
        seen = min(_EDGE[own.shape.arch], line.side * 3 // 8)
        edge = 0 if of_network and name != SHIPPED else seen
        result["gflops"] = gflop / result["min"] if of_network else None
        alike = min(psnr(same, outputs[name], border=edge * len(same) // line.side), EQUAL)
        result["psnr"] = None if tiled or (line.twice and name == SHIPPED) else alike
    return {
        "figure": line.figure,
        "network": line.network,
        "seeded": own.seeded,
        "photo": line.photo,
        "gflop": gflop,
        "rounds": len(products),
        "matrix_gflops": product_gflop / min(products),
        "same_from": same_from if of_network else min(same_from, _SAME_IN_FILES),
        "like": like,
        "contestants": results,
    }


def _reference(
    line: Line, contestants: Contestants, pixels: np.ndarray, outputs: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, str]:
    """Return the picture that the others must equal, and the name of its contestant."""
    if line.figure != NETWORK:
        name = TWICE if line.twice else SHIPPED
        return outputs[name], name
    if contestants.device.type == "cpu":
        return outputs[REFERENCE], REFERENCE
    return peers.in_float32(contestants.own, contestants.device, pixels), f"{REFERENCE} in float32"


def wrong(line: Mapping[str, Any]) -> list[str]:
    """The contestants whose pixels are not those of the line's reference."""
    return [
        name
        for name, result in line["contestants"].items()
        if result.get("psnr") is not None and result["psnr"] < line["same_from"]
    ]


def missed(line: Mapping[str, Any], *, gpu: bool) -> list[str]:
    """Return the goals that a line misses, in words."""
    figure, result = line["figure"], line["contestants"]
    goals = []
    most = _ON_GPU.get((line["network"], line["photo"])) if gpu and figure == NETWORK else None
    if most and result[OURS]["median"] > most:
        goals.append(f"{result[OURS]['median']} s; the goal is {most} s")
    least, shipped = _times(line, gpu=gpu), faces.THEIRS if figure == FACES else SHIPPED
    if least and shipped in result and result[shipped]["ratio"] < least:
        goals.append(f"{shipped} takes {result[shipped]['ratio']:.2f} times as long; the goal is {least}")
    if figure == FACES:
        return goals
    return goals + [
        f"{name} takes {one['ratio']:.2f} times as long: it is faster"
        for name, one in result.items()
        if one["ratio"] < 1
    ]


def _times(line: Mapping[str, Any], *, gpu: bool) -> float | None:
    """How many times as long RealESRGANer or GFPGANer should take."""
    figure, photo = line["figure"], line["photo"]
    if figure == FACES:
        return 4.0 if gpu else None
    if figure == NETWORK:
        return None if gpu or line["network"] == LITE else 1.4
    if gpu and figure == FOLDER:
        return 5.0
    return 3.5 if "2x" in photo else 3.0 if "RGBA" in photo else 1.5


def file_by_ours(own: Subject, device: torch.device, outscale: int) -> Callable[[bytes], bytes]:
    options = {"outscale": outscale, "format": "png", "face_enhance": "off"}
    loaded = restorer.load(f"custom/{own.name}", weights=own.weights, device=str(device), **options)
    return lambda data: loaded.restore(data).data


def file_by_realesrganer(
    own: Subject, device: torch.device, outscale: int, tile: int = 0
) -> Callable[[bytes], bytes]:
    """Decoded and encoded as its own command line does."""
    theirs = peers.upsampler(own, device, tile)

    def restore(data: bytes) -> bytes:
        photo = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        out, _ = theirs.enhance(photo, outscale=outscale)
        return cv2.imencode(".png", out)[1].tobytes()

    return restore


def folder_by_ours(own: Subject, device: torch.device, source: Path) -> bytes:
    """Restore a folder as `restorer batch` does; return the first result."""
    options = Options(model=f"custom/{own.name}", outscale=4, format="png", face_enhance="off")
    records: list[manifest.Record] = []
    with tempfile.TemporaryDirectory(dir=source.parent) as output:
        batch = plan.prepare(
            plan.Batch(str(source), output, options, weights=str(own.weights), device=str(device))
        )
        runner.run(batch, plan.entries(batch, plan.photos(batch), ()), records.append)
        return (Path(output) / records[0].output).read_bytes()


def folder_by_realesrganer(own: Subject, device: torch.device, source: Path) -> bytes:
    """The first result; one photo after the other, as its own command line does."""
    theirs = peers.upsampler(own, device)
    with tempfile.TemporaryDirectory(dir=source.parent) as output:
        results = [Path(output) / file.name for file in sorted(source.iterdir())]
        for result in results:
            photo = cv2.imread(str(source / result.name), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(result), theirs.enhance(photo, outscale=4)[0])
        return results[0].read_bytes()


def _folder(place: Path, pixels: np.ndarray) -> Path:
    """Photos of which no two are alike."""
    photos = place / "photos"
    photos.mkdir(parents=True)
    for number in range(_PHOTOS):
        (photos / f"{number}.png").write_bytes(png(np.roll(pixels, number, axis=1)))
    return photos


def picture(side: int) -> np.ndarray:
    """(side, side, 3) uint8: gradients, edges and grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    base = np.stack([128 + 90 * np.sin(x / 11 + c) * np.cos(y / 17 - c) for c in range(3)], axis=2)
    base[side // 3 : side // 2, side // 4 : side // 2] = 220
    return np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)


def png(pixels: np.ndarray, *, alpha: bool = False) -> bytes:
    image = Image.fromarray(pixels)
    if alpha:
        image.putalpha(255)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def matched(result: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """Give a result, (H, W, 3) uint8, the photo's low frequencies, as this project does after its network."""
    larger = to_uint16(result)
    low_frequencies.match(larger, to_uint16(photo))
    return to_uint8(larger)


def decoded(data: bytes) -> np.ndarray:
    """Red, green and blue: RealESRGANer's alpha is what its network makes of a white picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _small(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[:_WARM, :_WARM])
