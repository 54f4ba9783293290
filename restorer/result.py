"""What comes out: faces into the enlarged photo, and that into a file."""

import json
from dataclasses import dataclass

from .faces import pipeline
from .faces.paste import Face, PasteBackup, paste
from .images import encode
from .images.photo import Photo
from .options import Options
from .progress import StageTimer
from .version import __version__


@dataclass(frozen=True)
class Result:
    """A restored photo.

    data           the file's bytes, in `format` ("png", "jpeg", ...)
    width, height  in pixels
    model          the one that was used, by name
    sha256         of the bytes that its weights were read from
    source         of the weights: "weights folder", "installed, fp16 copy", "built in" or "custom file"
    device         that ran it, and in which way: "cuda" or "cpu:ncnn"
    seconds        from bytes to bytes, loading the model included where it was not loaded yet
    warnings       what could not be kept or was decided on the way, in the user's words
    before, after  the decoded input and the picture that `data` holds
    faces          every face that was found, the largest first, restored or not
    face_note      how many were found and restored, or why none was looked for; "" without a face
    options        what was asked for
    strengths      of single faces, by index, where recompose() was given any
    under          what lies under the faces, for Restorer.recompose()
    stages         of `seconds`, by name: decode, load, enlarge, faces, encode; of recompose() encode alone
    retries        how often a tile was tried at half the size for want of memory
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
    faces: tuple[Face, ...]
    face_note: str
    options: Options
    strengths: dict[int, float]
    paste_backup: tuple[PasteBackup, ...]
    stages: dict[str, float]
    retries: int = 0

    @property
    def receipt(self) -> dict[str, object]:
        """What made the picture: software, model, its weights, device, options. Its metadata hold it too."""
        return _receipt(self.model, self.sha256, self.source, self.device, self.options, self.strengths)


def finish(
    before: Photo,
    plain: Photo,
    faces: tuple[Face, ...],
    options: Options,
    *,
    model: str,
    sha256: str,
    source: str,
    device: str,
    unseen: str,
    timer: StageTimer,
    retries: int = 0,
    strengths: dict[int, float] | None = None,
) -> Result:
    """Faces into the enlarged photo, whose pixels are used up, and all of it into a file.

    unseen  why no face was looked for
    """
    strengths = strengths or {}
    under = paste(
        plain.pixels,
        faces,
        outscale=options.outscale,
        strength=options.face_strength,
        shares=strengths,
        grey=before.meta.grey,
    )
    if plain.alpha is not None:
        for part in under:
            hidden = plain.alpha[part.rows, part.columns] == 0
            plain.pixels[part.rows, part.columns][hidden] = part.pixels[hidden]
    face_note = pipeline.summary(faces, off=[index for index, strength in strengths.items() if strength == 0])
    face_note = face_note or unseen
    encoded = encode.encode(
        plain,
        encode.output_format(before, options.format),
        quality=options.quality,
        keep_metadata=options.keep_metadata,
        remove_gps=options.remove_gps,
        history=json.dumps(_receipt(model, sha256, source, device, options, strengths)),
    )
    timer.lap("encode")
    amiss = () if faces and all(face.restored for face in faces) else tuple(filter(None, [face_note]))
    return Result(
        data=encoded.data,
        format=encoded.format,
        width=plain.width,
        height=plain.height,
        model=model,
        sha256=sha256,
        source=source,
        device=device,
        seconds=sum(timer.seconds.values()),
        warnings=before.meta.warnings + amiss + encoded.warnings,
        before=before,
        after=plain,
        faces=faces,
        face_note=face_note,
        options=options,
        strengths=strengths,
        paste_backup=under,
        stages=timer.seconds,
        retries=retries,
    )


def _receipt(
    model: str, sha256: str, source: str, device: str, options: Options, strengths: dict[int, float]
) -> dict[str, object]:
    software = f"Neural Image Restore {__version__}"
    told = {
        "software": software,
        "model": model,
        "sha256": sha256,
        "source": source,
        "device": device,
        "options": vars(options),
    }
    chosen = {str(index): strength for index, strength in strengths.items() if strength != 1}
    return {**told, "strengths": chosen} if chosen else told
