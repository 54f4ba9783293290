"""The stages of a restoration: decode, repair, detect faces, upscale, restore faces, paste, encode."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from .errors import (
    BadWeights,
    ImageTooLarge,
    InvalidOption,
    OutOfMemory,
    UnsupportedImage,
    WeightsUnavailable,
)
from .estimate import Estimator, Plan
from .faces import detect, pipeline
from .faces.paste import Face, without_faces
from .images import colour, encode, photo
from .images.colour import Fading
from .images.photo import Photo
from .inference.upscale import network_pixels, output_size, upscale_matched, visible_pixels
from .look import Look, look_with
from .models import registry
from .networks import Networks
from .options import Limits, Options
from .progress import Progress, StageTimer, Stats
from .repair import pipeline as repair
from .repair.pipeline import Repair
from .result import Result, finish

_OUT_OF_MEMORY = "photo and result do not fit into memory; choose a smaller scale"
_RECOMPOSE_OPTIONS = {"strength", "face_strength", "format", "quality", "max_bytes"}
_RECOMPOSE_OPTIONS |= {"keep_metadata", "remove_gps"}


@contextmanager
def _translate_memory_errors() -> Iterator[None]:
    """Convert every out-of-memory error of a method that it decorates to OutOfMemory."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(_OUT_OF_MEMORY) from error
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        raise OutOfMemory(_OUT_OF_MEMORY) from error


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
        self._estimator = Estimator(self.networks)

    @_translate_memory_errors()
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
        timer = StageTimer()
        chosen = self.options.changed(options)
        before = data if isinstance(data, Photo) else self.decode(data)
        chosen = chosen.sized(before.width, before.height)
        self.result_size(before, chosen)
        timer.end_stage("decode")
        model, engine = self.networks.resolve(
            chosen,
            before.width * before.height,
            lambda model: self.networks.upscaler(model, chosen.denoise, progress),
        )
        timer.end_stage("load")
        notes: tuple[str, ...] = ()
        if chosen.autopilot:
            chosen, note = look_with(self.networks, before, data).applied(chosen)
            notes = (note,)
        repaired = self._repair(before, mask, chosen, progress)
        timer.end_stage("repair")
        corrected = colour.apply(repaired.photo if repaired else before, chosen, fading)
        timer.end_stage("colour")
        faces, detection_note = self._detect_faces(corrected, chosen, progress)
        timer.end_stage("faces")
        total = _TotalProgress(progress, pipeline.count_pending(faces))
        tile = chosen.tile or engine.best_tile()
        stats = Stats()
        plain = upscale_matched(
            corrected, engine, outscale=chosen.outscale, tile=tile, progress=total.tiles, stats=stats
        )
        timer.end_stage("enlarge")
        if pipeline.count_pending(faces):
            network, masks = self.networks.face_restoration(chosen, progress)
            faces = pipeline.restore(faces, network, masks, batch=network.batch, progress=total.faces)
        timer.end_stage("faces")
        draft = Result(
            before=before,
            restored=plain,
            after=plain,
            model=model.name,
            sha256=engine.sha256,
            source=engine.source,
            device=engine.name,
            options=chosen,
            faces=tuple(faces),
            face_note=detection_note,
            notes=notes,
            retries=stats.retries,
            parts=stats.parts,
            repair=repaired,
            fading=fading,
        )
        result = finish(draft, corrected, timer)
        self._estimator.learn_from(result, network_pixels(before, engine, chosen.outscale))
        return result

    def decode(self, data: bytes, **options: object) -> Photo:
        """Decode a file's bytes. Raises UnsupportedImage, DamagedImage and ImageTooLarge.

        options  page and frames of photo.decode()
        """
        if not isinstance(data, bytes):
            raise TypeError(f"data is {type(data).__name__}; it must be bytes: Path(name).read_bytes()")
        return self._decoder(data, max_pixels=self.limits.input_pixels, **options)

    @_translate_memory_errors()
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
        timer, strengths = StageTimer(), strengths or {}
        if result.before.meta.timing:
            raise InvalidOption("an animation cannot be recomposed; restore it again")
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
        draft = replace(result, restored=plain, options=chosen, strengths={**result.strengths, **strengths})
        corrected = colour.apply(
            result.repair.photo if result.repair else result.before, chosen, result.fading
        )
        return finish(draft, corrected, timer)

    @_translate_memory_errors()
    def find_damage(self, before: Photo, progress: Progress | None = None) -> np.ndarray:
        """Return the probability (h, w) float32, 0..1, that a pixel is damaged. Raises any RestoreError.

        progress  see restore()
        """
        from .repair import damage  # torch

        detector = self.networks.repair_network(repair.DETECTOR)
        return damage.detect(visible_pixels(before), detector, lock=self.networks.lock, progress=progress)

    def _repair(
        self, before: Photo, mask: bytes | np.ndarray | None, chosen: Options, progress: Progress | None
    ) -> Repair | None:
        """Return the repaired photo, or None if no repair is wanted."""
        if mask is None and chosen.repair == "off":
            return None
        if isinstance(mask, bytes):
            try:
                mask = repair.mask_of(self.decode(mask))
            except (UnsupportedImage, ImageTooLarge) as error:
                raise type(error)(f"the mask: {error}") from error
        visible, network = visible_pixels(before), self.networks.repair_network
        return repair.run(before, visible, mask, chosen, network, lock=self.networks.lock, progress=progress)

    @_translate_memory_errors()
    def look(self, data: bytes | Photo) -> Look:
        """Say what is wrong with a photo and suggest options. Raises any RestoreError.

        Nothing is downloaded: faces are looked for if yunet is present.
        """
        before = data if isinstance(data, Photo) else self.decode(data)
        return look_with(self.networks, before, data)

    @_translate_memory_errors()
    def find_faces(self, data: bytes) -> tuple[Photo, list[detect.Detection]]:
        """Return the decoded photo and its faces, largest first. Raises any RestoreError."""
        decoded = self.decode(data)
        detector = self.networks.face_network(self.options.face_detector, "detect")
        return decoded, detect.detect_faces(visible_pixels(decoded), detector)

    def _detect_faces(
        self, before: Photo, chosen: Options, progress: Progress | None
    ) -> tuple[list[Face], str]:
        """Return the cropped faces, or why detection was skipped."""
        auto = chosen.face_enhance == "auto"
        if chosen.face_enhance == "off":
            return [], ""
        try:
            detector = self.networks.face_network(
                chosen.face_detector, "detect", backoff=auto, progress=progress
            )
        except (WeightsUnavailable, BadWeights) as error:
            if not auto:
                raise
            return [], f"face detection skipped: {_reason(error)}"
        pixels = visible_pixels(before)
        faces = pipeline.crop_faces(pixels, detect.detect_faces(pixels, detector), large=chosen.face_large)
        if pipeline.count_pending(faces):
            try:
                self.networks.face_restoration(chosen, progress)  # fail before the photo is upscaled
            except (WeightsUnavailable, BadWeights) as error:
                if not auto:
                    raise
                faces = pipeline.mark_skipped(faces, _reason(error))
        return faces, ""

    def plan(self, before: Photo, **options: object) -> Plan:
        """Estimate what restoring this photo will take, without computing; tiles and seconds need measure().

        Raises UnknownModel, ImageTooLarge and InvalidOption, as restore() does.
        """
        chosen = self.options.changed(options).sized(before.width, before.height)
        return self._estimator.plan(before, chosen, self.result_size(before, chosen))

    def measure(self, pixels: int = 0, **options: object) -> None:
        """Load and time the model of these options, unless it is absent or was timed before.

        pixels  of the photo, see Networks.model()
        """
        self._estimator.measure(self.options.changed(options), pixels)

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


def _reason(error: WeightsUnavailable | BadWeights) -> str:
    """Return why a network was not loaded, without the server's paths."""
    return str(error.args[0])


def load(
    model: str = Options.model,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    half: bool | None = None,
    limits: Limits | None = None,
    auto_cpu_megapixels: float | None = None,
    decoder: Callable[..., Photo] = photo.decode,
    **options: object,
) -> Restorer:
    """Return a Restorer with its model loaded. See Restorer for the arguments and Options for the options."""
    restorer = Restorer(
        weights=weights,
        device=device,
        half=half,
        limits=limits,
        auto_cpu_megapixels=auto_cpu_megapixels,
        decoder=decoder,
        model=model,
        **options,
    )
    return restorer.load()
