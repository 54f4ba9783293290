"""Read and write the frames of animated GIF, WebP and PNG files, complete pictures as a viewer shows them."""

import io
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...errors import ImageTooLarge
from . import png
from .metadata import RawMetadata

_OPAQUE_FROM = 128  # alpha of a pixel that GIF shows, as it has no partial transparency


class Timing(NamedTuple):
    """When frames are shown.

    durations  of each frame, in milliseconds
    loops      how often the animation is shown, 0: without end; None: once, as the file does not say
    """

    durations: tuple[int, ...]
    loops: int | None


def read(
    data: bytes, image_format: str, check: Callable[[int, int, int], None]
) -> tuple[list[np.ndarray], Timing]:
    """Decode every frame to (H, W, 3 or 4) uint8 samples of one shape, with alpha if a pixel is transparent.

    check  called with width, height and number of frames before the pixels are read

    Raises ValueError, or what Pillow raises, for a damaged file.
    """
    # Of a GIF, Pillow reads the frames up to where it is cut, and of a PNG it skips checksums
    if image_format == "gif" and not data.rstrip(b"\0").endswith(b";"):
        raise ValueError("truncated")
    if image_format == "png" and not png.frames_intact(data):
        raise ValueError("a frame is broken")
    image = Image.open(io.BytesIO(data), formats=[image_format.upper()])
    count: int = getattr(image, "n_frames", 1)
    size = image.size
    check(*size, count)
    # The picture that programs without animation show is not always one of the frames
    first = int(bool(getattr(image, "default_image", False)))
    frames, durations = [], []
    for number in range(first, count):
        image.seek(number)
        if image.size != size:  # Pillow enlarges a GIF that has a larger frame
            raise ValueError("a frame is larger than the animation")
        frames.append(np.asarray(image.convert("RGBA")))
        durations.append(round(image.info.get("duration") or 0))
    if all((frame[..., 3] == 255).all() for frame in frames):
        frames = [frame[..., :3] for frame in frames]
    return frames, Timing(tuple(durations), image.info.get("loop"))


def encode(
    frames: Sequence[np.ndarray], image_format: str, timing: Timing, metadata: RawMetadata, quality: int
) -> bytes:
    """Return an animation of (H, W) or (H, W, 2 to 4) uint8 samples; `quality` counts for WebP."""
    images = [Image.fromarray(frame) for frame in frames]
    options: dict[str, object] = {"loop": 1 if timing.loops is None else timing.loops}
    if image_format == "gif":
        options = {"loop": timing.loops, "comment": metadata.comment}
        if images[0].mode in ("LA", "RGBA"):
            images = [_without_partial_alpha(image) for image in images]
            options["disposal"] = 2  # a frame is cleared before the next one
    elif image_format == "webp":
        options |= {"icc_profile": metadata.icc, "exif": metadata.exif, "xmp": metadata.xmp}
        options |= {"quality": quality, "exact": True}
    out = io.BytesIO()
    try:
        images[0].save(
            out,
            image_format.upper(),
            save_all=True,
            append_images=images[1:],
            duration=list(timing.durations),
            **{name: value for name, value in options.items() if value not in (None, b"")},  # type: ignore[arg-type]
        )
    except (struct.error, ValueError, OverflowError, RuntimeError) as error:
        name, seconds = image_format.upper(), max(timing.durations) / 1000
        raise ImageTooLarge(
            f"{name} cannot hold these {len(frames)} frames, of up to {seconds:g} s; use another format"
        ) from error
    data = out.getvalue()
    if image_format == "png":
        start = png.AFTER_HEADER
        data = b"".join([data[:start], *png.metadata_chunks(metadata), data[start:]])
    return data


def _without_partial_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(image.getchannel("A").point([255 * (alpha >= _OPAQUE_FROM) for alpha in range(256)]))
    return image
