"""The stages of a restoration: decode, repair, detect faces, upscale, restore faces, paste, encode."""

import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from .errors import BadWeights, ImageTooLarge, InvalidOption, OutOfMemory, WeightsUnavailable
from .faces import detect, pipeline
from .faces import networks as face_networks
from .faces.paste import Face, without_faces
from .images import colour, encode, photo
from .images.formats import jpeg
from .images.photo import Photo
from .inference.model_cache import RETRY_SECONDS, LockedEngine, ModelCache
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
from .models import download, registry, selection, sources
from .options import VULKAN, Limits, Options
from .progress import Progress, StageTimer
from .repair import pipeline as repair
from .repair.pipeline import Repair
from .result import Result, finish

if TYPE_CHECKING:
    from .inference.engine import Engine

T = TypeVar("T")
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
    """Restore photos; owns the networks, the device and the lock around the device.

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
        self._decoder, self._device = decoder, device
        self._repair_device = device
        self.auto_cpu_megapixels = selection.auto_cpu_megapixels(auto_cpu_megapixels)
        self.downloading: tuple[str, int, int] | None = None  # model, bytes so far, total bytes
        self._download_failed = -math.inf  # time.monotonic() when "auto" last failed to download its model
        self.weights = registry.weights_folder(weights)
        self.limits = limits or Limits()
        self.options = Options().changed(options)
        self._half, self._lock = half, threading.Lock()
        self._models = ModelCache(self.weights)
        self._throughput = ThroughputEstimator()

    def restore(
        self,
        data: bytes | Photo,
        *,
        mask: bytes | np.ndarray | None = None,
        progress: Progress | None = None,
        **options: object,
    ) -> Result:
        """Restore the photo in `data` (a file's bytes or a decoded Photo).

        mask      of the pixels to fill instead of detected damage, in the photo's size, upright: (h, w) bool,
                  or a picture's bytes, whose light pixels are filled
        options   see Options; default: the options of the Restorer
        progress  called with (steps done, total steps) before the first step and after each; a step is a
                  tile or a face. (0, 0) while damage is repaired and while a model is downloaded;
                  self.downloading has the bytes. If it raises, Cancelled for example, the work stops within
                  one step

        Raises any RestoreError, see errors.py.
        """
        try:
            with _translate_memory_errors():
                return self._restore(data, progress, options, mask)
        finally:
            self.downloading = None

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
    ) -> Result:
        timer = StageTimer()
        chosen = self.options.changed(options)
        before = data if isinstance(data, Photo) else self.decode(data)
        chosen = chosen.sized(before.width, before.height)
        self.result_size(before, chosen)
        timer.end_stage("decode")
        on_download = self._download_progress(progress)
        model, engine = self.resolve(
            chosen,
            before.width * before.height,
            lambda model: self._upscaler(model, chosen.denoise, partial(on_download, model.name)),
        )
        timer.end_stage("load")
        notes: tuple[str, ...] = ()
        if chosen.autopilot:
            suggestion = self._look(before, data)
            chosen = chosen.changed(suggestion.autopilot(chosen))
            notes = (f"autopilot: {suggestion.line}",)
        repaired = self._repair(before, mask, chosen, progress)
        timer.end_stage("repair")
        corrected = colour.apply(repaired.photo if repaired else before, chosen)
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
            network, masks = self._face_networks(chosen, on_download)
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
            detector = self._repair_network(repair.DETECTOR)
            return damage.detect(_visible_pixels(before), detector, lock=self._lock, progress=progress)

    def _repair(
        self, before: Photo, mask: bytes | np.ndarray | None, chosen: Options, progress: Progress | None
    ) -> Repair | None:
        """Return the repaired photo, or None if no repair is wanted."""
        if mask is None and chosen.repair == "off":
            return None
        if isinstance(mask, bytes):
            mask = repair.mask_of(self.decode(mask))
        visible, network = _visible_pixels(before), self._repair_network
        return repair.run(before, visible, mask, chosen, network, lock=self._lock, progress=progress)

    def _repair_network(self, name: str) -> Any:  # noqa: ANN401  a torch module
        model = registry.find(name, self.weights, "damage" if name == repair.DETECTOR else "fill")
        return self._models.get(model, partial(repair.load, model, self.weights, self._repair_device))

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
                detector = self._face_network("yunet", "detect", backoff=True)
        quality = None if isinstance(data, Photo) else jpeg.quality(data)
        return examine(
            before, quality=quality, face_detector=detector, damage_detector=self._damage_detector()
        )

    def _damage_detector(self) -> DamageDetector | None:
        """Return what detects damage in small images, if present; a look does not wait for the lock."""
        from .repair import damage  # torch

        with suppress(WeightsUnavailable, BadWeights):
            return partial(damage.detect, detector=self._repair_network(repair.DETECTOR), views=1)
        return None

    def find_faces(self, data: bytes) -> tuple[Photo, list[detect.Detection]]:
        """Return the decoded photo and its faces, largest first. Raises any RestoreError."""
        with _translate_memory_errors():
            decoded = self.decode(data)
            detector = self._face_network(self.options.face_detector, "detect")
            return decoded, detect.detect_faces(_visible_pixels(decoded), detector)

    def _detect_faces(
        self, before: Photo, chosen: Options, on_download: "_DownloadProgress"
    ) -> tuple[list[Face], str]:
        """Return the cropped faces, or why detection was skipped."""
        auto = chosen.face_enhance == "auto"
        if chosen.face_enhance == "off":
            return [], ""
        try:
            progress = partial(on_download, chosen.face_detector)
            detector = self._face_network(chosen.face_detector, "detect", backoff=auto, progress=progress)
        except (WeightsUnavailable, BadWeights) as error:
            if not auto:
                raise
            return [], f"face detection skipped: {_failure_reason(error, chosen.face_detector)}"
        pixels = _visible_pixels(before)
        faces = pipeline.crop_faces(pixels, detect.detect_faces(pixels, detector), large=chosen.face_large)
        if pipeline.count_pending(faces):
            try:
                self._face_networks(chosen, on_download)  # fail before the photo is upscaled
            except (WeightsUnavailable, BadWeights) as error:
                if not auto:
                    raise
                needed = [registry.find(chosen.face_model, self.weights, "face")]
                if chosen.face_mask == "parsing":
                    needed.append(registry.find("parsenet", self.weights, "parse"))
                absent = [model.name for model in needed if not sources.is_present(model, self.weights)]
                faces = pipeline.mark_skipped(faces, _failure_reason(error, " and ".join(absent)))
        return faces, ""

    def _face_networks(
        self, chosen: Options, on_download: "_DownloadProgress"
    ) -> tuple[LockedEngine, LockedEngine | None]:
        """Return the network that restores faces and, for face_mask="parsing", the one that outlines them."""

        def get(name: str, kind: str) -> LockedEngine:
            backoff = chosen.face_enhance == "auto"
            return self._face_network(name, kind, backoff=backoff, progress=partial(on_download, name))

        masks = get("parsenet", "parse") if chosen.face_mask == "parsing" else None
        return get(chosen.face_model, "face"), masks

    def _upscaler(self, model: registry.Model, denoise: float, progress: Progress | None = None) -> "Engine":
        def load() -> "Engine":
            from .inference import engine

            return engine.load(
                model,
                self.weights,
                device=self._device,
                half=self._half,
                denoise=denoise,
                lock=self._lock,
                progress=progress,
            )

        return self._models.get(model, load, variant=denoise)

    def _loaded_upscaler(self, model: registry.Model) -> "Engine | None":
        """Return the model's network if it is loaded, with any denoise strength."""
        return self._models.peek(model)

    def _face_network(
        self, name: str, kind: str, *, backoff: bool = False, progress: Progress | None = None
    ) -> LockedEngine:
        model = registry.find(name, self.weights, kind)
        load = partial(
            face_networks.load,
            model,
            self.weights,
            device=self._device,
            half=self._half,
            progress=progress,
        )
        return LockedEngine(self._models.get(model, load, backoff=backoff), self._lock)

    def plan(self, before: Photo, **options: object) -> Plan:
        """Estimate what restoring this photo will take, without computing; tiles and seconds need measure().

        Raises UnknownModel, ImageTooLarge and InvalidOption, as restore() does.
        """
        chosen = self.options.changed(options).sized(before.width, before.height)
        width, height = self.result_size(before, chosen)
        model = self.model(chosen, before.width * before.height)
        large = self._is_large(chosen, before.width * before.height)
        faster = large and model != selection.best(self.weights, chosen, fetch=False)
        reason = "large photo on a CPU: fast model" if faster else ""
        image_format = encode.output_format(before, chosen.format)
        losses = encode.losses(before, image_format)
        engine = self._loaded_upscaler(model)
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

        pixels  of the photo, see model()
        """
        chosen = self.options.changed(options)
        model = self.model(chosen, pixels)
        if model.name not in self._throughput and sources.is_present(model, self.weights):
            # the denoise strength does not change the time
            self._throughput.time(model.name, self._loaded_upscaler(model) or self._upscaler(model, 1.0))
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
        """Return the model that these options upscale with.

        pixels  of the photo; on a CPU, "auto" uses a faster model for large photos

        Raises UnknownModel, also for the face models, and InvalidOption if it does not support denoise.
        """
        registry.find(options.face_model, self.weights, "face")
        registry.find(options.face_detector, self.weights, "detect")
        if options.model == "fast":
            return selection.fast(self.weights, options)
        if self._is_large(options, pixels):
            fetch = time.monotonic() - self._download_failed > RETRY_SECONDS and not download.offline()
            return selection.large_photo_model(self.weights, options, fetch=fetch)
        if options.model in ("auto", "best"):
            return selection.best(self.weights, options, fetch=options.model == "best")
        model = registry.find(options.model, self.weights)
        if options.denoise < 1 and not model.denoise_model:
            raise InvalidOption(f"{model.name} does not support denoise {options.denoise}; use 1")
        return model

    def resolve(
        self, options: Options, pixels: int, load: Callable[[registry.Model], T]
    ) -> tuple[registry.Model, T]:
        """Return the model of these options and what `load` returns for it.

        If the model of "auto" cannot be downloaded, it uses the built-in one and does not try again for ten
        minutes. Raises what model() and `load` raise.
        """
        model = self.model(options, pixels)
        try:
            return model, load(model)
        except (WeightsUnavailable, BadWeights):
            if not self._is_large(options, pixels):
                raise
            self._download_failed = time.monotonic()
            fallback = self.model(options, pixels)
            if fallback == model:
                raise
            return fallback, load(fallback)

    def _is_large(self, options: Options, pixels: int) -> bool:
        """Return whether "auto" uses a faster model because of the photo's size."""
        large = options.model == "auto" and pixels > self.auto_cpu_megapixels * 1e6
        return large and not self._on_gpu

    @functools.cached_property
    def _on_gpu(self) -> bool:
        if self._device and self._device.startswith("cpu"):
            return False
        from .inference import backends  # torch

        return self._device == VULKAN or backends.pick_device(self._device).type != "cpu"

    def load(self, pixels: int = 0, **options: object) -> "Restorer":
        """Load the model of these options and return self, so that the first photo need not wait.

        pixels  of that photo, see model()
        """
        chosen = self.options.changed(options)
        self.resolve(chosen, pixels, lambda model: self._upscaler(model, chosen.denoise))
        return self

    def backend(self, model: registry.Model) -> str:
        """Return device and backend of a loaded model: "cuda" or "cpu:ncnn"; "" if it is not loaded."""
        engine = self._loaded_upscaler(model)
        return engine.name if engine else ""

    def sha256(self, model: registry.Model) -> str:
        """Return the SHA-256 of a loaded upscaler's weights; "" if it is not loaded."""
        engine = self._loaded_upscaler(model) if model.kind == "upscale" else None
        return engine.sha256 if engine else ""

    def _download_progress(self, progress: Progress | None) -> "_DownloadProgress":
        def update(name: str, done: int, total: int) -> None:
            self.downloading = (name, done, total) if done < total else None
            if progress:
                progress(0, 0)

        return update


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


_DownloadProgress = Callable[[str, int, int], None]  # model, bytes so far, total bytes


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
