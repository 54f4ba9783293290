"""The stages of a restoration: decode, repair, detect faces, upscale, restore faces, paste, encode."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from .errors import BadWeights, ImageTooLarge, InvalidOption, OutOfMemory, WeightsUnavailable
from .faces import detect, pipeline
from .faces.paste import Face, without_faces
from .images import colour, encode, photo
from .images.colour import Fading
from .images.formats import jpeg
from .images.photo import Photo
from .inference.throughput import ThroughputEstimator
from .inference.upscale import (
    Stats,
    fill_transparent,
    is_opaque,
    network_pixels,
    output_size,
    tiles_needed,
    upscale_matched,
)
from .look import DamageDetector, Look, examine
from .models import registry, selection, sources
from .networks import DownloadProgress, Networks
from .options import Limits, Options
from .progress import Progress, StageTimer
from .repair import pipeline as repair
from .repair.pipeline import Repair
from .result import Result, finish

_OUT_OF_MEMORY = "photo and result do not fit into memory; choose a smaller scale"
_RECOMPOSE_OPTIONS = {"strength", "face_strength", "format", "quality", "max_bytes"}
_RECOMPOSE_OPTIONS |= {"keep_metadata", "remove_gps"}


@dataclass(frozen=True)
class Plan:
    """What restoring a photo will take.

    width, height  of the result in pixels
    model          the model that will be used
    reason         why "auto" does not use the best model, in words for users; "" if it does
    tiles          number of tiles; None while the model is not loaded
    seconds        estimate for this machine without faces; None before anything was measured
    warnings       what the output format cannot hold, in words for users
    """

    width: int
    height: int
    model: registry.Model
    reason: str
    tiles: int | None
    seconds: float | None
    warnings: tuple[str, ...]


class Restorer:
    """Restore photos.

    weights  folder of the model files (default: RESTORER_WEIGHTS, else weights/ beside the package)
    device   "cuda", "mps", "cpu", or None for the fastest available. "cpu" uses the
             fastest backend for the network; "cpu:openvino", "cpu:ncnn" and "cpu:torch" fix it,
             "cpu:bfloat16" computes in 16 bits, for processors with AMX, and "vulkan" is ncnn on a GPU
    half     compute in 16 bits; None: on CUDA only
    limits   largest photo and result
    auto_cpu_megapixels  on a CPU, model="auto" uses the best model for photos up to this size and a faster
             one for larger photos (default: AUTO_CPU_MEGAPIXELS in the environment, else 0.5)
    decoder  decodes a file's bytes like photo.decode; use sandbox.decode for untrusted files
    options  defaults for restore(), see Options

    Networks are loaded when first needed. A Restorer is thread-safe; one thread at a time uses the device.
    """

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        device: str | None = None,
        half: bool | None = None,
        limits: Limits | None = None,
        auto_cpu_megapixels: float | None = None,
        decoder: Callable[..., Photo] = photo.decode,
        **options: object,
    ) -> None:
        self.networks = Networks(weights, device, half, auto_cpu_megapixels)
        self.weights = self.networks.weights
        self.limits = limits or Limits()
        self.options = Options().changed(options)
        self._decoder = decoder
        self._throughput = ThroughputEstimator()

    def restore(
        self,
        data: bytes | Photo,
        *,
        mask: bytes | np.ndarray | None = None,
        fading: Fading | None = None,
        progress: Progress | None = None,
        **options: object,
    ) -> Result:
        """Restore the photo in `data` (a file's bytes or a decoded Photo).

        mask      of the pixels to fill instead of detected damage, in the photo's size, upright: (h, w) bool,
                  or a picture's bytes, whose light pixels are filled
        fading    that is corrected, as colour.measure() returns it; default: that of the photo
        options   see Options; default: the options of the Restorer
        progress  called with (steps done, total steps) before the first step and after each; a step is a
                  tile or a face. (0, 0) while damage is repaired and while a model is downloaded;
                  self.downloading has the bytes. If it raises, Cancelled for example, the work stops within
                  one step

        Raises any RestoreError, see errors.py.
        """
        try:
            with _translate_memory_errors():
                return self._restore(data, progress, options, mask, fading)
        finally:
            self.networks.downloading = None

    def decode(self, data: bytes, **options: object) -> Photo:
        """Decode a file's bytes. Raises UnsupportedImage, DamagedImage and ImageTooLarge.

        options  page and frames of photo.decode()
        """
        if not isinstance(data, bytes):
            raise TypeError(f"data is {type(data).__name__}; it must be bytes: Path(name).read_bytes()")
        return self._decoder(data, max_pixels=self.limits.input_pixels, **options)

    def _restore(
        self,
        data: bytes | Photo,
        progress: Progress | None,
        options: dict[str, object],
        mask: bytes | np.ndarray | None = None,
        fading: Fading | None = None,
    ) -> Result:
        timer = StageTimer()
        chosen = self.options.changed(options)
        before = data if isinstance(data, Photo) else self.decode(data)
        chosen = chosen.sized(before.width, before.height)
        self.result_size(before, chosen)
        timer.end_stage("decode")
        on_download = self.networks.download_progress(progress)
        model, engine = self.networks.resolve(
            chosen,
            before.width * before.height,
            lambda model: self.networks.upscaler(model, chosen.denoise, partial(on_download, model.name)),
        )
        timer.end_stage("load")
        notes: tuple[str, ...] = ()
        if chosen.autopilot:
            chosen, note = self._look(before, data).applied(chosen)
            notes = (note,)
        repaired = self._repair(before, mask, chosen, progress)
        timer.end_stage("repair")
        corrected = colour.apply(repaired.photo if repaired else before, chosen, fading)
        timer.end_stage("colour")
        faces, detection_note = self._detect_faces(corrected, chosen, on_download)
        timer.end_stage("faces")
        total = _TotalProgress(progress, pipeline.count_pending(faces))
        tile = chosen.tile or engine.best_tile()
        stats = Stats()
        plain = upscale_matched(
            corrected, engine, outscale=chosen.outscale, tile=tile, progress=total.tiles, stats=stats
        )
        if chosen.dpi:
            stored = replace(plain.meta.metadata, dpi=(chosen.dpi, chosen.dpi))
            plain = replace(plain, meta=replace(plain.meta, metadata=stored))
        timer.end_stage("enlarge")
        if pipeline.count_pending(faces):
            network, masks = self.networks.face_restoration(chosen, on_download)
            faces = pipeline.restore(faces, network, masks, batch=network.batch, progress=total.faces)
        timer.end_stage("faces")
        result = finish(
            before,
            plain,
            tuple(faces),
            chosen,
            corrected=corrected,
            repair=repaired,
            model=model.name,
            sha256=engine.sha256,
            source=engine.source,
            device=engine.name,
            detection_note=detection_note,
            timer=timer,
            retries=stats.retries,
            parts=stats.parts,
        )
        pixels = network_pixels(before, engine, chosen.outscale)
        self._throughput.learn(model.name, result.stages["enlarge"], pixels)
        self._throughput.learn(result.format, result.stages["encode"], result.width * result.height)
        return replace(result, warnings=notes + result.warnings)

    def recompose(
        self, result: Result, *, strengths: Mapping[int, float] | None = None, **options: object
    ) -> Result:
        """Change how a result blends photo and faces or encodes its file, without running a network.

        strengths  of single faces, 0 (as upscaled) to 1, by index in result.faces; multiplied by
                   face_strength; default: unchanged
        options    strength, face_strength, format, quality, max_bytes, keep_metadata, remove_gps; default:
                   unchanged

        Raises InvalidOption for any other option, which would need another restoration.
        """
        with _translate_memory_errors():
            return self._recompose(result, strengths or {}, options)

    def _recompose(
        self, result: Result, strengths: Mapping[int, float], options: dict[str, object]
    ) -> Result:
        timer = StageTimer()
        if fixed := sorted(set(options) & set(Options.names()) - _RECOMPOSE_OPTIONS):
            raise InvalidOption(f"{fixed[0]} cannot be changed in a result; restore the photo again")
        for index, strength in strengths.items():
            if index not in range(len(result.faces)):
                raise InvalidOption(f"no face {index}; the result has {len(result.faces)}")
            Options(face_strength=strength)  # checks the range
        chosen = result.options.changed(options)
        encode.check_fits(
            result.before, result.width, result.height, encode.output_format(result.before, chosen.format)
        )
        plain = replace(result.restored, pixels=without_faces(result.restored.pixels, result.paste_backup))
        return finish(
            result.before,
            plain,
            result.faces,
            chosen,
            corrected=colour.apply(result.repair.photo if result.repair else result.before, chosen),
            repair=result.repair,
            strengths={**result.strengths, **strengths},
            model=result.model,
            sha256=result.sha256,
            source=result.source,
            device=result.device,
            detection_note=result.face_note,
            timer=timer,
            parts=result.parts,
        )

    def find_damage(self, before: Photo, progress: Progress | None = None) -> np.ndarray:
        """Return the probability (h, w) float32, 0..1, that a pixel is damaged. Raises any RestoreError.

        progress  see restore()
        """
        from .repair import damage  # torch

        with _translate_memory_errors():
            detector = self.networks.repair_network(repair.DETECTOR)
            return damage.detect(
                _visible_pixels(before), detector, lock=self.networks.lock, progress=progress
            )

    def _repair(
        self, before: Photo, mask: bytes | np.ndarray | None, chosen: Options, progress: Progress | None
    ) -> Repair | None:
        """Return the repaired photo, or None if no repair is wanted."""
        if mask is None and chosen.repair == "off":
            return None
        if isinstance(mask, bytes):
            mask = repair.mask_of(self.decode(mask))
        visible, network = _visible_pixels(before), self.networks.repair_network
        return repair.run(before, visible, mask, chosen, network, lock=self.networks.lock, progress=progress)

    def look(self, data: bytes | Photo) -> Look:
        """Say what is wrong with a photo and suggest options. Raises any RestoreError.

        Nothing is downloaded: faces are looked for if yunet is present.
        """
        with _translate_memory_errors():
            return self._look(data if isinstance(data, Photo) else self.decode(data), data)

    def _look(self, before: Photo, data: bytes | Photo) -> Look:
        yunet = registry.find("yunet", self.weights, "detect")
        detector = None
        if sources.is_present(yunet, self.weights):
            with suppress(WeightsUnavailable, BadWeights):
                detector = self.networks.face_network("yunet", "detect", backoff=True)
        quality = None if isinstance(data, Photo) else jpeg.quality(data)
        return examine(
            before, quality=quality, face_detector=detector, damage_detector=self._damage_detector()
        )

    def _damage_detector(self) -> DamageDetector | None:
        """Return what detects damage in small images, if present; a look does not wait for the lock."""
        from .repair import damage  # torch

        with suppress(WeightsUnavailable, BadWeights):
            return partial(damage.detect, detector=self.networks.repair_network(repair.DETECTOR), views=1)
        return None

    def find_faces(self, data: bytes) -> tuple[Photo, list[detect.Detection]]:
        """Return the decoded photo and its faces, largest first. Raises any RestoreError."""
        with _translate_memory_errors():
            decoded = self.decode(data)
            detector = self.networks.face_network(self.options.face_detector, "detect")
            return decoded, detect.detect_faces(_visible_pixels(decoded), detector)

    def _detect_faces(
        self, before: Photo, chosen: Options, on_download: DownloadProgress
    ) -> tuple[list[Face], str]:
        """Return the cropped faces, or why detection was skipped."""
        auto = chosen.face_enhance == "auto"
        if chosen.face_enhance == "off":
            return [], ""
        try:
            progress = partial(on_download, chosen.face_detector)
            detector = self.networks.face_network(
                chosen.face_detector, "detect", backoff=auto, progress=progress
            )
        except (WeightsUnavailable, BadWeights) as error:
            if not auto:
                raise
            return [], f"face detection skipped: {_failure_reason(error, chosen.face_detector)}"
        pixels = _visible_pixels(before)
        faces = pipeline.crop_faces(pixels, detect.detect_faces(pixels, detector), large=chosen.face_large)
        if pipeline.count_pending(faces):
            try:
                self.networks.face_restoration(chosen, on_download)  # fail before the photo is upscaled
            except (WeightsUnavailable, BadWeights) as error:
                if not auto:
                    raise
                needed = [registry.find(chosen.face_model, self.weights, "face")]
                if chosen.face_mask == "parsing":
                    needed.append(registry.find("parsenet", self.weights, "parse"))
                absent = [model.name for model in needed if not sources.is_present(model, self.weights)]
                faces = pipeline.mark_skipped(faces, _failure_reason(error, " and ".join(absent)))
        return faces, ""

    def plan(self, before: Photo, **options: object) -> Plan:
        """Estimate what restoring this photo will take, without computing; tiles and seconds need measure().

        Raises UnknownModel, ImageTooLarge and InvalidOption, as restore() does.
        """
        chosen = self.options.changed(options).sized(before.width, before.height)
        width, height = self.result_size(before, chosen)
        model = self.model(chosen, before.width * before.height)
        large = self.networks.is_large(chosen, before.width * before.height)
        faster = large and model != selection.best(self.weights, chosen, fetch=False)
        reason = "large photo on a CPU: fast model" if faster else ""
        image_format = encode.output_format(before, chosen.format)
        losses = encode.losses(before, image_format)
        engine = self.networks.loaded_upscaler(model)
        if engine is None or model.name not in self._throughput:
            return Plan(width, height, model, reason, None, None, losses)
        tile = chosen.tile or engine.best_tile()
        tiles = tiles_needed(before, engine, outscale=chosen.outscale, tile=tile)
        pixels = network_pixels(before, engine, chosen.outscale)
        seconds = self._throughput.expected(model.name, pixels) + self._throughput.expected(
            image_format, width * height
        )
        return Plan(width, height, model, reason, tiles, seconds, losses)

    def measure(self, pixels: int = 0, **options: object) -> None:
        """Load and time the model of these options, unless it is absent or was timed before.

        pixels  of the photo, see Networks.model()
        """
        chosen = self.options.changed(options)
        model = self.model(chosen, pixels)
        if model.name not in self._throughput and sources.is_present(model, self.weights):
            # the denoise strength does not change the time
            network = self.networks.loaded_upscaler(model) or self.networks.upscaler(model, 1.0)
            self._throughput.time(model.name, network)
            self._throughput.time_writers()

    def result_size(self, before: Photo, options: Options) -> tuple[int, int]:
        """Return the result's width and height. Raises ImageTooLarge beyond the limit or the format's."""
        width, height = self.enlarged(before.width, before.height, options.outscale)
        encode.check_fits(before, width, height, encode.output_format(before, options.format))
        return width, height

    def enlarged(self, width: int, height: int, outscale: float) -> tuple[int, int]:
        """Return the upscaled width and height of a photo. Raises ImageTooLarge beyond the limit."""
        width, height = output_size(width, height, outscale)
        if width * height > self.limits.output_pixels:
            raise ImageTooLarge(
                f"the result would have {width} x {height} = {width * height / 1e6:.1f} megapixels; "
                f"the limit is {self.limits.output_pixels / 1e6:.1f}; choose a smaller scale"
            )
        return width, height

    def model(self, options: Options, pixels: int = 0) -> registry.Model:
        """Return the model that these options upscale with, see Networks.model()."""
        return self.networks.model(options, pixels)

    @property
    def downloading(self) -> tuple[str, int, int] | None:
        """Model, bytes so far and total bytes of a download, if there is one."""
        return self.networks.downloading

    def load(self, pixels: int = 0, **options: object) -> "Restorer":
        """Load the model of these options and return self, so that the first photo need not wait.

        pixels  of that photo, see Networks.model()
        """
        chosen = self.options.changed(options)
        self.networks.resolve(chosen, pixels, lambda model: self.networks.upscaler(model, chosen.denoise))
        return self

    def backend(self, model: registry.Model) -> str:
        """Return device and backend of a loaded model: "cuda" or "cpu:ncnn"; "" if it is not loaded."""
        engine = self.networks.loaded_upscaler(model)
        return engine.name if engine else ""

    def sha256(self, model: registry.Model) -> str:
        """Return the SHA-256 of a loaded upscaler's weights; "" if it is not loaded."""
        engine = self.networks.loaded_upscaler(model) if model.kind == "upscale" else None
        return engine.sha256 if engine else ""


@contextmanager
def _translate_memory_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(_OUT_OF_MEMORY) from error
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        raise OutOfMemory(_OUT_OF_MEMORY) from error


def _visible_pixels(before: Photo) -> np.ndarray:
    """Return the pixels with transparent areas filled in, so that no hidden face is detected."""
    if before.alpha is None or is_opaque(before.alpha):
        return before.pixels
    return fill_transparent(before.pixels, before.alpha)


class _TotalProgress:
    """Report tiles and then faces as one sequence of steps."""

    def __init__(self, progress: Progress | None, faces: int) -> None:
        self._progress, self._faces, self._tiles = progress, faces, 0

    def tiles(self, done: int, total: int) -> None:
        self._tiles = total
        if self._progress:
            self._progress(done, total + self._faces)

    def faces(self, done: int) -> None:
        if self._progress:
            self._progress(self._tiles + done, self._tiles + self._faces)


def _failure_reason(error: WeightsUnavailable | BadWeights, names: str) -> str:
    """Return why faces were not restored, for a warning; WeightsUnavailable itself contains server paths."""
    if isinstance(error, BadWeights):
        return str(error)
    return f"{names} is not present and could not be downloaded"


def load(
    model: str = Options.model,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    half: bool | None = None,
    limits: Limits | None = None,
    decoder: Callable[..., Photo] = photo.decode,
    **options: object,
) -> Restorer:
    """Return a Restorer with its model loaded. See Restorer for the arguments and Options for the options."""
    return Restorer(
        weights=weights,
        device=device,
        half=half,
        limits=limits,
        decoder=decoder,
        model=model,
        **options,  # type: ignore[arg-type]
    ).load()
