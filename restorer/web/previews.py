"""From a result to files that a browser can show, and back."""

import io
import itertools
import math
import pickle
import shutil
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic import write_atomic
from ..errors import UnsupportedImage
from ..faces.paste import Face
from ..images.file_types import SUFFIXES
from ..images.photo import Photo
from ..images.resample import to_uint8
from ..output_paths import result_stem
from ..result import Result

PREVIEW_SIDE = 2048
VIEW = (1200, 720)  # pixels of a closer look
DETAIL = 192  # pixels a side of what is tried before all of a photo
_MARGIN = 4  # pixels beyond a box that resampling looks at
CACHED = "kept"  # the folder beside the results that is never served


@dataclass(frozen=True)
class FacePreview:
    """A face of a result: a picture of it before and after, side by side, and why it was not restored."""

    pair: Path
    reason: str


@dataclass(frozen=True)
class ResultFiles:
    """A result on disk: the upload's name, the full-size file, and previews of one size for the slider."""

    name: str
    file: Path
    before: Path
    after: Path
    faces: tuple[FacePreview, ...]


def write(result: Result, name: str, place: Path, *, long_side: object = 0) -> Path:
    """Write a result's file into the folder `place`, named after the upload and what was asked for."""
    stem = _plain(Path(name.replace("\\", "/")).stem)
    stem = f"{stem}_{long_side}px" if long_side else result_stem(stem, result.options.outscale)
    file = place / (stem + SUFFIXES[result.format][0])
    write_atomic(file, result.data)
    return file


def _plain(stem: str) -> str:
    """A name that every file system and header takes: no separators or control characters, not too long."""
    kept = "".join(sign if sign.isprintable() and sign not in '/\\:*?"<>|' else "_" for sign in stem)
    return kept.encode()[:120].decode(errors="ignore").strip(" .") or "photo"


def write_files(result: Result, name: str, file: Path) -> ResultFiles:
    """What the page shows of a result whose file was written: previews are put beside it."""
    place = file.parent
    return ResultFiles(
        name,
        file,
        *previews(result, place),
        tuple(
            FacePreview(_pair(face, place / f"face-{index}.jpg"), face.reason)
            for index, face in enumerate(result.faces)
        ),
    )


def previews(result: Result, place: Path) -> tuple[Path, Path]:
    """Before and after, of one size, in the folder `place`."""
    size = _fitted(result.width, result.height)
    return (
        _picture(result.before, _whole(result.before), size, place / "before.jpg"),
        _picture(result.after, _whole(result.after), size, place / "after.jpg"),
    )


def preview(photo: Photo, folder: Path) -> Path:
    """Write a photo as the browser can show it into a new folder below `folder`."""
    path = folder / uuid.uuid4().hex / "photo.jpg"
    return _picture(photo, _whole(photo), _fitted(photo.width, photo.height), path)


def cache_result(result: Result, shown: ResultFiles) -> None:
    """Write all of a result but its file, for kept(): where no browser may look, for GPS may be in it."""
    place = _hidden(shown)
    place.mkdir(parents=True)
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(replace(result, data=b""), protocol=5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    with (place / "samples").open("wb") as file:
        file.writelines(parts)
    write_atomic(place / "pickle", pickle.dumps(([part.nbytes for part in parts], head)))


def drop_result(shown: ResultFiles) -> None:
    """Delete what keep() wrote."""
    shutil.rmtree(_hidden(shown), ignore_errors=True)


def _hidden(shown: ResultFiles) -> Path:
    place = shown.file.parent
    return place.parent / CACHED / place.name


def cached_result(shown: ResultFiles) -> Result:
    """What keep() wrote; its pictures are read-only and stay on disk until they are looked at.

    Raises UnsupportedImage where the janitor was faster.
    """
    try:
        sizes, head = pickle.loads((_hidden(shown) / "pickle").read_bytes())  # noqa: S301  our own
        samples = np.memmap(_hidden(shown) / "samples", np.uint8, "r")
    except OSError as error:
        raise UnsupportedImage("this result is no longer there; restore the photo again") from error
    ends = list(itertools.accumulate(sizes))
    return pickle.loads(  # noqa: S301
        head, buffers=[samples[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    )


def detail(before: Photo, spot: tuple[float, float]) -> Photo:
    """At most DETAIL pixels square of a photo about a spot (x, y, each 0 to 1)."""
    left, top = _about(spot, (before.width, before.height), (DETAIL, DETAIL))
    rows, columns = slice(top, top + DETAIL), slice(left, left + DETAIL)
    alpha = None if before.alpha is None else np.ascontiguousarray(before.alpha[rows, columns])
    return replace(before, pixels=np.ascontiguousarray(before.pixels[rows, columns]), alpha=alpha)


def zoomed_pair(result: Result, spot: tuple[float, float], shown: ResultFiles) -> tuple[Path, Path]:
    """Before and after about a spot (x, y, each 0 to 1) with every pixel of the result as it is."""
    size = min(VIEW[0], result.width), min(VIEW[1], result.height)
    left, top = _about(spot, (result.width, result.height), size)
    box = left, top, left + size[0], top + size[1]
    across, down = result.before.width / result.width, result.before.height / result.height
    before = box[0] * across, box[1] * down, box[2] * across, box[3] * down
    name = f"view-{left}-{top}"
    return (
        _picture(result.before, before, size, shown.file.with_name(f"{name}-before.jpg")),
        _picture(result.after, box, size, shown.file.with_name(f"{name}-after.jpg")),
    )


def _about(spot: tuple[float, float], whole: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Left and top of a part of `size` about a spot, shifted to lie within the whole; each (across, down)."""
    left, top = (
        max(0, min(round(part * length - side / 2), length - side))
        for part, length, side in zip(spot, whole, size, strict=True)
    )
    return left, top


def write_zip(files: Sequence[Path], folder: Path) -> Path:
    """The files in one archive below `folder`, those of one name numbered."""
    path = folder / uuid.uuid4().hex / "restored.zip"
    path.parent.mkdir(parents=True)
    taken: set[str] = set()
    with zipfile.ZipFile(path, "w") as archive:  # pictures are compressed already
        for file in files:
            name, count = file.name, 1
            while name.lower() in taken:
                count += 1
                name = f"{file.stem}-{count}{file.suffix}"
            taken.add(name.lower())
            archive.write(file, name)
    return path


def _fitted(width: int, height: int) -> tuple[int, int]:
    shrink = min(1, PREVIEW_SIDE / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _whole(photo: Photo) -> tuple[float, float, float, float]:
    return 0, 0, photo.width, photo.height


def _picture(photo: Photo, box: tuple[float, float, float, float], size: tuple[int, int], path: Path) -> Path:
    """A JPEG of exactly `size` pixels of a box (left, top, right, bottom) of the photo.

    Transparency on white, in the photo's own colour space.
    """
    left, top, right, bottom = box
    x0, y0 = max(0, math.floor(left) - _MARGIN), max(0, math.floor(top) - _MARGIN)
    rows, columns = slice(y0, math.ceil(bottom) + _MARGIN), slice(x0, math.ceil(right) + _MARGIN)
    within = left - x0, top - y0, right - x0, bottom - y0

    def fitted(samples: np.ndarray) -> Image.Image:
        image = Image.fromarray(to_uint8(np.ascontiguousarray(samples[rows, columns])))
        return image.resize(size, Image.Resampling.LANCZOS, within, reducing_gap=2)

    image = fitted(photo.pixels)
    if photo.alpha is not None:
        image = Image.composite(image, Image.new("RGB", size, "white"), fitted(photo.alpha))
    # grey and linear profiles do not fit these RGB, sRGB-curve values
    icc = None if photo.meta.grey or photo.meta.linear else photo.meta.icc
    data = io.BytesIO()
    image.save(data, "JPEG", quality=92, subsampling=0, icc_profile=icc)
    write_atomic(path, data.getvalue())  # the browser may be reading the one before
    return path


def _pair(face: Face, path: Path) -> Path:
    both = np.concatenate([to_uint8(face.before), to_uint8(face.after)], axis=1)
    Image.fromarray(both).resize((512, 256), Image.Resampling.LANCZOS).save(path, "JPEG", quality=90)
    return path
