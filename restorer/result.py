"""Paste the faces into the upscaled photo and encode the result."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from .errors import ImageTooLarge
from .faces import pipeline
from .faces.paste import Face, PasteBackup, paste
from .images import colour, encode
from .images.photo import Photo
from .images.resample import blend_enlarged
from .inference.upscale import fill_transparent
from .models.registry import RENAMED
from .options import Options
from .progress import StageTimer
from .repair.pipeline import Repair
from .version import SOFTWARE

UNFADED = "no fading was found; the colours are unchanged"


@dataclass(frozen=True)
class Result:
    """A restored photo.

    data           the file's bytes, in `format` ("png", "jpeg", ...)
    width, height  in pixels
    model          name of the model that was used
    sha256         of the bytes that its weights were read from
    source         of the weights: "weights folder", "installed, fp16 copy", "built in" or "custom file"
    device         device and backend: "cuda" or "cpu:ncnn"
    seconds        from bytes to bytes, including the time to load the model if it was not loaded yet
    warnings       what could not be kept or done, in words for users
    before, after  the decoded input and the image in `data`
    restored       the image at full strength, for Restorer.recompose()
    faces          every detected face, largest first, restored or not
    face_note      how many faces were detected and restored, or why detection was skipped; "" without faces
    options        the options of this result
    strengths      of single faces by index, if set by Restorer.recompose()
    paste_backup   the pixels under the faces, for Restorer.recompose()
    stages         `seconds` by stage: decode, load, repair, colour, enlarge, faces, encode; after recompose()
                   only encode
    parts          how many parts the photo was upscaled in, because it did not fit in memory as a whole
    retries        how often tiles ran out of memory and were computed again, at half the size except by ncnn
    repair         what was repaired before the photo was upscaled; None if no repair was wanted
    """

    data: bytes
    format: str
    width: int
    height: int
    model: str
    sha256: str
    source: str
    device: str
    seconds: float
    warnings: tuple[str, ...]
    before: Photo
    after: Photo
    restored: Photo
    faces: tuple[Face, ...]
    face_note: str
    options: Options
    strengths: dict[int, float]
    paste_backup: tuple[PasteBackup, ...]
    stages: dict[str, float]
    retries: int = 0
    parts: int = 1
    repair: Repair | None = None

    @property
    def receipt(self) -> dict[str, object]:
        """Software, model, weights, device, options and repair; also stored in the file's metadata."""
        receipt: dict[str, object] = {
            "software": SOFTWARE,
            "model": self.model,
            "sha256": self.sha256,
            "source": self.source,
            "device": self.device,
            "options": vars(self.options),
        }
        if changed := {str(index): strength for index, strength in self.strengths.items() if strength != 1}:
            receipt["strengths"] = changed
        if self.repair:
            receipt["repair"] = self.repair.receipt
        return receipt


def finish(
    before: Photo,
    plain: Photo,
    faces: tuple[Face, ...],
    options: Options,
    *,
    corrected: Photo,
    model: str,
    sha256: str,
    source: str,
    device: str,
    detection_note: str,
    timer: StageTimer,
    retries: int = 0,
    parts: int = 1,
    strengths: dict[int, float] | None = None,
    repair: Repair | None = None,
) -> Result:
    """Paste faces into the upscaled photo `plain`, whose pixels are overwritten, and encode it.

    corrected       `before` with damage filled and colours corrected, or `before`
    detection_note  why face detection was skipped, "" if it was not
    """
    strengths = strengths or {}
    backup = paste(
        plain.pixels,
        faces,
        outscale=options.outscale,
        strength=options.face_strength,
        shares=strengths,
        grey=before.meta.grey,
    )
    if plain.alpha is not None:
        for part in backup:
            hidden = plain.alpha[part.rows, part.columns] == 0
            plain.pixels[part.rows, part.columns][hidden] = part.pixels[hidden]
    switched_off = [index for index, strength in strengths.items() if strength == 0]
    face_note = pipeline.summary(faces, off=switched_off) or detection_note
    after = plain if options.strength == 1 else _blend(corrected, plain, options.strength)
    all_restored = faces and all(face.restored for face in faces)
    face_warnings = (face_note,) if face_note and not all_restored else ()
    in_parts = (
        (f"upscaled in {parts} parts for lack of memory; they may differ by a level where they meet",)
        if parts > 1
        else ()
    )
    unrepaired = (repair.warning,) if repair and repair.warning else ()
    unchanged = corrected is (repair.photo if repair else before)
    unfaded = (UNFADED,) if unchanged and colour.wanted(options) else ()
    renamed = (f"{options.model} is now {model}",) if options.model in RENAMED else ()
    result = Result(
        data=b"",
        format=encode.output_format(before, options.format),
        width=plain.width,
        height=plain.height,
        model=model,
        sha256=sha256,
        source=source,
        device=device,
        seconds=0,
        warnings=before.meta.warnings + unrepaired + renamed + unfaded + in_parts + face_warnings,
        before=before,
        after=after,
        restored=plain,
        faces=faces,
        face_note=face_note,
        options=options,
        strengths=strengths,
        paste_backup=backup,
        stages={},
        retries=retries,
        parts=parts,
        repair=repair,
    )
    encoded = encode_within(
        options.max_bytes,
        options.quality,
        partial(
            encode.encode,
            after,
            result.format,
            keep_metadata=options.keep_metadata,
            remove_gps=options.remove_gps,
            history=json.dumps(result.receipt),
        ),
    )
    timer.end_stage("encode")
    return replace(
        result,
        data=encoded.data,
        format=encoded.format,
        seconds=sum(timer.seconds.values()),
        warnings=result.warnings + encoded.warnings,
        stages=timer.seconds,
    )


def _blend(before: Photo, restored: Photo, strength: float) -> Photo:
    small = before.pixels if before.alpha is None else fill_transparent(before.pixels, before.alpha)
    return replace(restored, pixels=blend_enlarged(small, restored.pixels, strength))


def encode_within(limit: int, quality: int, encode_with: Callable[..., encode.Encoded]) -> encode.Encoded:
    """Encode at the highest quality of at most `limit` bytes, found by bisection; 0 is no limit.

    Raises ImageTooLarge if the file is larger at any quality.
    """
    encoded = encode_with(quality=quality)
    if not limit or len(encoded.data) <= limit:
        return encoded
    smallest, fitting, low, high = encoded, None, 1, quality - 1
    while encoded.format in encode.LOSSY and low <= high:
        middle = (low + high) // 2
        attempt = encode_with(quality=middle)
        if len(attempt.data) <= limit:
            note = f"the quality was lowered from {quality} to {middle} to stay within {limit:,} bytes"
            fitting, low = replace(attempt, warnings=(*attempt.warnings, note)), middle + 1
        else:
            smallest, high = attempt, middle - 1
    if fitting is None:
        size, name = len(smallest.data), encoded.format.upper()
        raise ImageTooLarge(
            f"the {name} has {size:,} bytes or more; max_bytes is {limit:,}; "
            "use another format or a smaller scale"
        )
    return fitting
