"""Paste the faces into the upscaled photo and encode the result."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .errors import ImageTooLarge
from .faces import pipeline
from .faces.paste import Face, PasteBackup, paste
from .images import colour, encode
from .images.colour import Fading
from .images.photo import Photo
from .images.resample import blend_enlarged
from .inference.upscale import visible_pixels
from .models.registry import RENAMED
from .options import Options
from .progress import StageTimer
from .repair.pipeline import Repair
from .version import SOFTWARE

UNFADED = "no fading was found; the colours are unchanged"


@dataclass(frozen=True)
class Result:
    """A restored photo.

    before, after  the decoded input and the image in `data`
    restored       the image at full strength, for Restorer.recompose()
    model          name of the model that was used
    sha256         of the bytes that its weights were read from
    source         of the weights: "weights folder", "installed, fp16 copy", "built in" or "custom file"
    device         device and backend: "cuda" or "cpu:ncnn"
    options        the options of this result
    data           the file's bytes, in `format` ("png", "jpeg", ...)
    seconds        from bytes to bytes, including the time to load the model if it was not loaded yet
    stages         `seconds` by stage: decode, load, repair, colour, enlarge, faces, encode; after recompose()
                   only encode
    warnings       `notes`, then what could not be kept or done, in words for users
    notes          what a look found and changed
    faces          every detected face, largest first, restored or not
    face_note      how many faces were detected and restored, or why detection was skipped; "" without faces
    strengths      of single faces by index, if set by Restorer.recompose()
    paste_backup   the pixels under the faces, for Restorer.recompose()
    parts          how many parts the photo was upscaled in, because it did not fit in memory as a whole
    retries        how often tiles ran out of memory and were computed again, at half the size except by ncnn
    repair         what was repaired before the photo was upscaled; None if no repair was wanted
    fading         that Restorer.restore() was called with
    """

    before: Photo
    after: Photo
    restored: Photo
    model: str
    sha256: str
    source: str
    device: str
    options: Options
    data: bytes = b""
    format: str = ""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    faces: tuple[Face, ...] = ()
    face_note: str = ""
    strengths: dict[int, float] = field(default_factory=dict)
    paste_backup: tuple[PasteBackup, ...] = ()
    retries: int = 0
    parts: int = 1
    repair: Repair | None = None
    fading: Fading | None = None

    @property
    def width(self) -> int:
        return self.after.width

    @property
    def height(self) -> int:
        return self.after.height

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


def finish(draft: Result, corrected: Photo, timer: StageTimer) -> Result:
    """Paste faces into the upscaled photo `draft.restored`, whose pixels are overwritten, and encode it.

    draft      a result without what is computed here; its face_note says why face detection was skipped
    corrected  `draft.before` with damage filled and colours corrected, or itself
    """
    before, plain, options = draft.before, draft.restored, draft.options
    backup = paste(
        plain.pixels,
        draft.faces,
        outscale=options.outscale,
        strength=options.face_strength,
        shares=draft.strengths,
        grey=before.meta.grey,
    )
    if plain.alpha is not None:
        for part in backup:
            hidden = plain.alpha[part.rows, part.columns] == 0
            plain.pixels[part.rows, part.columns][hidden] = part.pixels[hidden]
    switched_off = [index for index, strength in draft.strengths.items() if strength == 0]
    result = replace(
        draft,
        after=plain if options.strength == 1 else _blend(corrected, plain, options.strength),
        face_note=pipeline.summary(draft.faces, off=switched_off) or draft.face_note,
        paste_backup=backup,
    )
    encoded = encode_within(
        options.max_bytes,
        options.quality,
        encode.encoder(
            result.after,
            encode.output_format(before, options.format),
            options,
            history=json.dumps(result.receipt),
        ),
    )
    timer.end_stage("encode")
    return replace(
        result,
        data=encoded.data,
        format=encoded.format,
        seconds=sum(timer.seconds.values()),
        warnings=(*_warnings(result, corrected), *encoded.warnings),
        stages=timer.seconds,
    )


def _warnings(result: Result, corrected: Photo) -> Iterator[str]:
    """Yield what could not be kept or done before encoding."""
    yield from result.notes
    yield from result.before.meta.warnings
    if result.repair and result.repair.warning:
        yield result.repair.warning
    if result.options.model in RENAMED:
        yield f"{result.options.model} is now {result.model}"
    unchanged = corrected is (result.repair.photo if result.repair else result.before)
    if unchanged and colour.wanted(result.options):
        yield UNFADED
    if result.parts > 1:
        parts = f"upscaled in {result.parts} parts for lack of memory"
        yield f"{parts}; they may differ by a level where they meet"
    all_restored = result.faces and all(face.restored for face in result.faces)
    if result.face_note and not all_restored:
        yield result.face_note


def _blend(before: Photo, restored: Photo, strength: float) -> Photo:
    return replace(restored, pixels=blend_enlarged(visible_pixels(before), restored.pixels, strength))


def encode_within(limit: int, quality: int, encode_with: encode.Encoder) -> encode.Encoded:
    """Encode at the highest quality of at most `limit` bytes, found by bisection; 0 is no limit.

    Raises ImageTooLarge if the file is larger at any quality.
    """
    encoded = encode_with(quality)
    if not limit or len(encoded.data) <= limit:
        return encoded
    smallest, fitting, low, high = encoded, None, 1, quality - 1
    while encoded.adjustable and low <= high:
        middle = (low + high) // 2
        attempt = encode_with(middle)
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
