"""What a batch restores: folders, options, the networks it was started with, and the photos left to do."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from .. import output_paths
from ..atomic import check_writable
from ..errors import BadWeights, InvalidOption, WeightsUnavailable
from ..folders import NOT_A_PHOTO, LeftOut
from ..images import colour, file_types
from ..models import download, registry, sources
from ..options import BFLOAT16, FIRST, Limits, Options, Sequences
from ..pipeline import Restorer
from ..repair.pipeline import WIDE_FILLER
from .storage import Storage, StoredFile


@dataclass(frozen=True)
class Batch:
    """What to restore, where to, and how.

    source, output         folders or URLs, see storage.py
    options                for every photo
    models                 name and sha256 of each upscaling model that may be used, set by prepare()
    networks               names of the face models that are present, and names and SHA-256 of those of repair
                           and colours, set by prepare()
    weights, device, half  see Restorer
    auto_cpu_megapixels    see Restorer
    threads                of PyTorch, 0 for its default
    limits                 see Restorer
    keep_times             results get the modification times of their photos
    sequences              what is restored of files with several pictures
    """

    source: str
    output: str
    options: Options
    models: tuple[tuple[str, str], ...] = ()
    networks: tuple[str, ...] = ()
    weights: str | None = None
    device: str | None = None
    half: bool | None = None
    auto_cpu_megapixels: float | None = None
    threads: int = 0
    limits: Limits = Limits()
    keep_times: bool = False
    sequences: Sequences = FIRST

    @property
    def digest(self) -> str:
        """Hash of everything but the photos that determines a result; `limits` only make photos fail."""
        parts: list[object] = [asdict(self.options), self.models, self.networks, self.half]
        if len(self.models) > 1:
            parts.append(self.auto_cpu_megapixels)
        if self.device == BFLOAT16:  # chosen for fewer bits; other devices give the same results
            parts.append(self.device)
        if any(self.sequences):
            parts.append(self.sequences)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """A photo to restore.

    path    below the source
    stamp   changes when the photo's bytes change
    target  path of the result below the output, without suffix
    """

    path: str
    stamp: str
    target: str


def prepare(job: Batch) -> Batch:
    """Return the job with its models chosen and downloaded, and with absolute folders.

    Raises UnknownModel, WeightsUnavailable, BadWeights, OSError if the output cannot be written, and
    InvalidOption if the source does not exist, or is the output or inside it.
    """
    source, inputs, outputs = job.source, Storage(job.source), Storage(job.output)
    if not inputs.exists():
        raise InvalidOption(f"{source} does not exist; name a folder of photos")
    if inputs.local and not os.path.isdir(inputs.root):
        raise InvalidOption(f"{source} is not a folder; name a folder of photos")
    if inputs.same(outputs):
        raise InvalidOption(f"{source} is the folder of the photos; name another for the results")
    if inputs.local and outputs.local and Path(inputs.root).is_relative_to(outputs.root):
        raise InvalidOption(f"{source} is inside the folder of the results, which could replace its photos")
    if job.keep_times and not (inputs.local and outputs.local):
        raise InvalidOption("keep_times needs folders on this machine")
    if outputs.local:
        check_writable(Path(outputs.root))
    restorer = Restorer(weights=job.weights, device=job.device, auto_cpu_megapixels=job.auto_cpu_megapixels)
    return replace(
        job,
        source=inputs.url,
        output=outputs.url,
        models=_upscaling_models(restorer, job.options),
        networks=present_networks(job.options, restorer.weights),
        weights=str(Path(job.weights).absolute()) if job.weights else None,  # workers run in another folder
        auto_cpu_megapixels=restorer.networks.auto_cpu_megapixels,
    )


def _upscaling_models(restorer: Restorer, options: Options) -> tuple[tuple[str, str], ...]:
    """Return name and sha256 of the models for small and for large photos, usually the same one."""
    models = {}
    for outscale in (1.0, 8.0) if options.by_photo else (options.outscale,):
        for pixels in (0, Limits.input_pixels):
            model, source = restorer.networks.resolve(
                replace(options, outscale=outscale),
                pixels,
                lambda model: download.ensure(model, restorer.weights),
            )
            models[model.name] = source.sha256 or download.sha256(source.path)
    return tuple(models.items())


def present_networks(options: Options, folder: Path) -> tuple[str, ...]:
    """Return what identifies the networks of faces, repair and colours.

    Raises WeightsUnavailable and BadWeights.
    """
    kinds = () if options.repair == "off" else ("damage", "fill")
    if colour.wanted(options) or options.autopilot:
        kinds = (*kinds, "colour")
    models = [model for model in registry.MODELS if model.kind in kinds]
    if options.repair != "on" or not sources.is_present(registry.find(WIDE_FILLER, folder, "fill"), folder):
        models = [model for model in models if model.name != WIDE_FILLER]
    for model in models:
        download.ensure(model, folder)
    return (*_face_networks(options, folder), *(f"{model.name} {model.sha256[:12]}" for model in models))


def _face_networks(options: Options, folder: Path) -> tuple[str, ...]:
    if options.face_enhance == "off":
        return ()
    present = []
    needed = [("detect", options.face_detector), ("face", options.face_model)]
    for kind, name in needed + ([("parse", "parsenet")] if options.face_mask == "parsing" else []):
        try:
            download.ensure(registry.find(name, folder, kind), folder)
            present.append(name)
        except (WeightsUnavailable, BadWeights):
            if options.face_enhance == "on":
                raise
    return tuple(present)


def photos(job: Batch, left_out: list[LeftOut] | None = None) -> list[StoredFile]:
    """Return every photo of the source in order, recognised by suffix.

    left_out  what is left out of the source is added here
    """
    inputs, outputs = Storage(job.source), Storage(job.output)
    left_out = [] if left_out is None else left_out
    photos = []
    for file in inputs.files(left_out, exclude=outputs.root if inputs.local == outputs.local else ""):
        if file_types.is_photo(file.path):
            photos.append(file)
        else:
            left_out.append(LeftOut(f"{inputs.root}/{file.path}", NOT_A_PHOTO))
    return photos


def check_room(job: Batch, todo: Sequence[StoredFile]) -> None:
    """Raise DiskFull if the results surely do not fit on this machine's disk."""
    outputs = Storage(job.output)
    if outputs.local:
        photos = ((Path(outputs.root), Path(file.path), file.size) for file in todo)
        output_paths.check_room(photos, job.options)


def entries(job: Batch, todo: Sequence[StoredFile], existing: Iterable[str]) -> list[Entry]:
    """Return an entry for each photo of `todo`, with distinct targets that are not `existing` results."""
    results = [PurePosixPath(output).with_suffix("") for output in existing]
    others = [*results, *(result.with_name(result.name.removesuffix("_p1")) for result in results)]
    targets = output_paths.unique_names(
        [PurePosixPath(photo.path) for photo in todo], job.options.size_mark, others
    )
    return [Entry(photo.path, photo.stamp, str(target)) for photo, target in zip(todo, targets, strict=True)]
