"""Write the files of a result that a browser shows, and cache results on disk."""

import io
import itertools
import math
import pickle
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..atomic import write_atomic
from ..errors import UnsupportedImage
from ..faces.paste import Face
from ..images.file_types import SUFFIXES
from ..images.photo import Photo
from ..images.resample import to_uint8
from ..repair.pipeline import mask_png
from ..result import Result

PREVIEW_SIDE = 2048  # largest side of a preview in pixels
VIEW = (1200, 720)  # width and height in pixels of the view at 100 %
DETAIL = 192  # side in pixels of the crop on which options are tried
_MARGIN = 4  # pixels around a box that resampling reads
MARK = (255, 0, 110)  # RGB; mask.js marks in the same colour
MASK = "mask.png"  # file of the mask beside a result
CACHED = "kept"  # folder of cached results, beside the results; never served


@dataclass(frozen=True)
class ResultFiles:
    """Paths of the files of a result.

    file  the full-size result
    root  the folder of all results, which it is below
    """

    file: Path
    root: Path

    @property
    def before(self) -> Path:
        """The preview of before, of the same size as that of after."""
        return self.file.with_name("before.jpg")

    @property
    def after(self) -> Path:
        """The preview of after."""
        return self.file.with_name("after.jpg")

    @property
    def marked(self) -> Path:
        """The preview of before with the repaired pixels in a colour, absent if there are none."""
        return self.file.with_name("marked.jpg")

    def face(self, index: int) -> Path:
        """The picture of a face before and after, side by side."""
        return self.file.with_name(f"face-{index}.jpg")

    @property
    def cache(self) -> Path:
        """The folder of what cache_result() writes."""
        return self.root / CACHED / self.file.parent.relative_to(self.root)


def write(result: Result, name: str, folder: Path, mark: str) -> Path:
    """Write a result's file into `folder`, named after the upload, and its mask; return the file's path.

    mark  added to the name, see Options.size_mark
    """
    stem = _safe_stem(Path(name.replace("\\", "/")).stem) + mark
    file = folder / (stem + SUFFIXES[result.format][0])
    write_atomic(file, result.data)
    if result.repair and mask_name(result):
        write_atomic(folder / MASK, mask_png(result.repair.mask))
    return file


def mask_name(result: Result) -> str:
    """Return the name of the mask's file that write() writes, "" if nothing was repaired."""
    return MASK if result.repair and result.repair.mask.any() else ""


def _safe_stem(stem: str) -> str:
    """Return a stem that every file system and header accepts: no separators or control characters, short."""
    safe = "".join(char if char.isprintable() and char not in '/\\:*?"<>|' else "_" for char in stem)
    return safe.encode()[:120].decode(errors="ignore").strip(" .") or "photo"


def write_previews(result: Result, files: ResultFiles) -> None:
    """Write the previews of a result, of what was repaired, and of its faces."""
    previews(result, files.file.parent)
    if result.repair and mask_name(result):
        pixels = np.where(result.repair.mask[..., None], _marks(result.before.pixels), result.before.pixels)
        marked, size = replace(result.before, pixels=pixels), _preview_size(result.width, result.height)
        _save_jpeg(marked, size, files.marked)
    for index, face in enumerate(result.faces):
        share = result.options.strength * result.options.face_strength * result.strengths.get(index, 1)
        _save_pair(face, files.face(index), share)


def previews(result: Result, folder: Path) -> tuple[Path, Path]:
    """Write previews of before and after, of one size, into `folder`."""
    size = _preview_size(result.width, result.height)
    return (
        _save_jpeg(result.before, size, folder / "before.jpg"),
        _save_jpeg(result.after, size, folder / "after.jpg"),
    )


def _marks(pixels: np.ndarray) -> np.ndarray:
    """Return (h, w, 3) pixels in the colour that marks damage, through which they show."""
    colour = np.array(MARK, np.float32) / 255 * np.iinfo(pixels.dtype).max
    return (0.35 * pixels + 0.65 * colour).astype(pixels.dtype)


def write_damage(probability: np.ndarray, folder: Path) -> Path:
    """Write probabilities (h, w) float32, 0..1, as a grey PNG into a new folder."""
    data = io.BytesIO()
    Image.fromarray(np.rint(probability * 255).astype(np.uint8)).save(data, "PNG")
    write_atomic(path := folder / "damage.png", data.getvalue())
    return path


def preview(photo: Photo, folder: Path) -> Path:
    """Write a preview of a photo into a new folder below `folder`."""
    path = folder / uuid.uuid4().hex / "photo.jpg"
    return _save_jpeg(photo, _preview_size(photo.width, photo.height), path)


def cache_result(result: Result, shown: ResultFiles) -> None:
    """Cache a result, without its file's bytes, for cached_result().

    The folder is not served to browsers: metadata may hold a GPS position.
    """
    folder = shown.cache
    folder.mkdir(parents=True, exist_ok=True)
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(replace(result, data=b""), protocol=5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    with (folder / "samples").open("wb") as file:
        file.writelines(parts)
    write_atomic(folder / "pickle", pickle.dumps(([part.nbytes for part in parts], head)))


def cached_result(folder: Path) -> Result:
    """Return the result in a ResultFiles.cache. Its arrays are read-only and memory-mapped.

    Raises UnsupportedImage if it has expired.
    """
    try:
        sizes, head = pickle.loads((folder / "pickle").read_bytes())  # noqa: S301  our own file
        samples = np.memmap(folder / "samples", np.uint8, "r")
    except OSError as error:
        raise UnsupportedImage("this result has expired; restore the photo again") from error
    ends = list(itertools.accumulate(sizes))
    return pickle.loads(  # noqa: S301
        head, buffers=[samples[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    )


def detail(before: Photo, spot: tuple[float, float]) -> Photo:
    """Crop at most DETAIL x DETAIL pixels of a photo around a spot (x, y, each 0 to 1)."""
    sides = before.width, before.height
    columns, rows = (slice(*_span(*one, DETAIL, DETAIL)) for one in zip(spot, sides, strict=True))
    alpha = None if before.alpha is None else np.ascontiguousarray(before.alpha[rows, columns])
    return replace(before, pixels=np.ascontiguousarray(before.pixels[rows, columns]), alpha=alpha)


def zoomed_pair(
    result: Result, spot: tuple[float, float], shown: ResultFiles, visible: tuple[float, float] = VIEW
) -> tuple[Path, Path]:
    """Write before and after around a spot (x, y, each 0 to 1) at 100 % of the result.

    visible  width and height in pixels of the browser's view, which shows the middle of larger images
    """
    (left, right), (top, bottom) = map(_span, spot, (result.width, result.height), visible, VIEW)
    box, size = (left, top, right, bottom), (right - left, bottom - top)
    x_scale, y_scale = result.before.width / result.width, result.before.height / result.height
    before = box[0] * x_scale, box[1] * y_scale, box[2] * x_scale, box[3] * y_scale
    name = f"view-{left}-{top}-{right}-{bottom}"
    return (
        _save_jpeg(result.before, size, shown.file.with_name(f"{name}-before.jpg"), before),
        _save_jpeg(result.after, size, shown.file.with_name(f"{name}-after.jpg"), box),
    )


def _span(share: float, length: int, visible: float, most: int) -> tuple[int, int]:
    """Return start and end of the part of a side whose middle is as near to a spot as fills the view."""
    half = min(visible, length) / 2
    middle = min(max(share * length, half), length - half)
    reach = min(middle, length - middle, most / 2)
    return round(middle - reach), round(middle + reach)


def write_zip(files: Sequence[Path], path: Path) -> Path:
    """Write files into one archive, unless it exists; equal names get a number."""
    if path.is_file():
        return path
    taken: set[str] = set()
    part = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:  # stored: images are compressed already
            for file in files:
                name, count = file.name, 1
                while name.lower() in taken:
                    count += 1
                    name = f"{file.stem}-{count}{file.suffix}"
                taken.add(name.lower())
                archive.write(file, name)
        return part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _preview_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1, PREVIEW_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _save_jpeg(
    photo: Photo, size: tuple[int, int], path: Path, box: tuple[float, float, float, float] | None = None
) -> Path:
    """Save a photo, or a box (left, top, right, bottom) of it, as a JPEG of exactly `size` pixels.

    Transparent pixels are composited on white, in the photo's own colour space.
    """
    left, top, right, bottom = box or (0, 0, photo.width, photo.height)
    x0, y0 = max(0, math.floor(left) - _MARGIN), max(0, math.floor(top) - _MARGIN)
    rows, columns = slice(y0, math.ceil(bottom) + _MARGIN), slice(x0, math.ceil(right) + _MARGIN)
    inner_box = left - x0, top - y0, right - x0, bottom - y0

    def resized(samples: np.ndarray) -> Image.Image:
        image = Image.fromarray(to_uint8(np.ascontiguousarray(samples[rows, columns])))
        return image.resize(size, Image.Resampling.LANCZOS, inner_box, reducing_gap=2)

    image = resized(photo.pixels)
    if photo.alpha is not None:
        image = Image.composite(image, Image.new("RGB", size, "white"), resized(photo.alpha))
    # grey and linear profiles do not fit these RGB values with an sRGB curve
    icc = None if photo.meta.grey or photo.meta.linear else photo.meta.metadata.icc or None
    data = io.BytesIO()
    image.save(data, "JPEG", quality=92, subsampling=0, icc_profile=icc)
    write_atomic(path, data.getvalue())  # a browser may be reading the previous file
    return path


def _save_pair(face: Face, path: Path, share: float) -> None:
    """Save a face before and after; `share` is that of the restored face, 0 to 1."""
    before, after = to_uint8(face.before), to_uint8(face.after)
    both = np.concatenate([before, cv2.addWeighted(after, share, before, 1 - share, 0)], axis=1)
    Image.fromarray(both).resize((512, 256), Image.Resampling.LANCZOS).save(path, "JPEG", quality=90)
