"""Restore every page of a file to a result of its own, or every frame of an animation to one animation."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import numpy as np

from .errors import ImageTooLarge, InvalidOption
from .images import colour, encode, photo
from .images.formats import exif
from .images.photo import Photo
from .options import ANIMATED_FORMATS, Options, Sequences
from .pipeline import Restorer
from .progress import PassProgress, Progress
from .result import Result, encode_within


def restore(
    restorer: Restorer,
    data: bytes,
    sequences: Sequences,
    *,
    mask: bytes | None = None,
    progress: Progress | None = None,
    skip: Callable[[int], bool] = lambda number: False,
    **options: object,
) -> Iterator[tuple[int, Result]]:
    """Yield (number, result): of pages from the last to the first, numbered from 1; otherwise (0, result).

    As the first page comes last, all others are complete where its result exists.

    mask               see Restorer.restore(); not for all pages or frames
    progress, options  see Restorer.restore(); the steps are those of all pages or frames
    skip               returns whether to skip the page of that number; called if there are several

    Raises any RestoreError; ImageTooLarge also for frames that have more pixels together than one photo may
    have, in the file or in the result.
    """
    if any(sequences) and mask is not None:
        raise InvalidOption("a mask is for one picture, not for all pages or frames")
    meta = restorer.decode(data).meta if any(sequences) else None
    if meta and sequences.frames and meta.animated:
        yield 0, _restore_frames(restorer, data, progress, options)
    elif meta and sequences.pages and (pages := meta.pages) > 1:
        if pages >= exif.MAX_PAGES:
            raise ImageTooLarge(f"the file has {pages} pages or more; the limit is {exif.MAX_PAGES - 1}")
        numbers = [number for number in range(pages, 0, -1) if not skip(number)]
        steps = PassProgress(progress, len(numbers))
        for number in numbers:
            page = restorer.decode(data, page=number - 1)
            yield number, restorer.restore(page, mask=None, fading=None, progress=steps, **options)
    else:
        # The file: autopilot reads the quality of a JPEG from it
        yield 0, restorer.restore(data, mask=mask, fading=None, progress=progress, **options)


def _restore_frames(
    restorer: Restorer, data: bytes, progress: Progress | None, options: dict[str, object]
) -> Result:
    chosen = restorer.options.changed(options)
    if chosen.format not in ANIMATED_FORMATS:
        raise InvalidOption(f"format is {chosen.format}; for frames use one of {', '.join(ANIMATED_FORMATS)}")
    frames = photo.split(restorer.decode(data, frames=True))
    image_format = frames[0].meta.format if chosen.format == "same" else chosen.format
    _check_size(restorer, frames, chosen.sized(frames[0].width, frames[0].height), image_format)
    keys = [_digest(frame) for frame in frames]
    distinct = dict(zip(keys, frames, strict=True))
    steps = PassProgress(progress, len(distinct))
    # Measured once for all frames, or colours would change from frame to frame
    middle = frames[len(frames) // 2]
    warnings = dict[str, None]()
    if chosen.autopilot:
        chosen, note = restorer.look(middle).applied(chosen)
        warnings[note] = None
    fading = colour.measure(middle.pixels, middle.alpha) if colour.wanted(chosen) else None
    # Only the pixels of these files are used
    each = asdict(chosen) | {"format": "png", "max_bytes": 0, "keep_metadata": False, "autopilot": False}
    first, restored, seconds = None, dict[bytes, Photo](), 0.0
    for key, frame in distinct.items():
        result = restorer.restore(frame, fading=fading, progress=steps, **each)
        first = first or result
        restored[key] = result.after
        seconds += result.seconds
        warnings |= dict.fromkeys(result.warnings)
    assert first
    encoded = encode_within(
        chosen.max_bytes,
        chosen.quality,
        encode.frames_encoder(
            [restored[key] for key in keys],
            image_format,
            replace(chosen, dpi=first.options.dpi),  # of print_size
            history=json.dumps(first.receipt | {"options": vars(chosen)}),
        ),
    )
    return replace(
        first,
        data=encoded.data,
        format=encoded.format,
        options=chosen,
        seconds=seconds,
        warnings=tuple(dict.fromkeys((*warnings, *encoded.warnings))),
    )


def _check_size(restorer: Restorer, frames: list[Photo], options: Options, image_format: str) -> None:
    first = frames[0]
    width, height = restorer.enlarged(first.width, first.height, options.outscale)
    encode.check_fits(first, width, height, image_format)
    pixels, limit = width * height * len(frames), restorer.limits.output_pixels
    if pixels > limit:
        raise ImageTooLarge(
            f"the result would have {len(frames)} frames of {width} x {height}, "
            f"{pixels / 1e6:.1f} megapixels; the limit is {limit / 1e6:.1f}; choose a smaller scale"
        )


def _digest(frame: Photo) -> bytes:
    """Return what is equal for frames that look alike, whatever colours are hidden by transparency."""
    if frame.alpha is None:
        return hashlib.sha256(frame.pixels.data).digest()
    visible = np.where(frame.alpha[..., None] > 0, frame.pixels, 0)
    return hashlib.sha256(visible.tobytes() + frame.alpha.tobytes()).digest()
