"""The order of the rooms: decode, restore faces, enlarge, put the faces in, encode. Read this first."""

import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np

from .errors import BadWeights, ImageTooLarge, InvalidOption, OutOfMemory, WeightsUnavailable
from .faces import detect, pipeline
from .faces import networks as face_networks
from .faces.paste import Face, without_faces
from .images import encode, photo
from .images.photo import Photo
from .inference.model_cache import LockedEngine, LockedUpscaler, ModelCache
from .inference.throughput import ThroughputEstimator
from .inference.upscale import fill_transparent, is_opaque, output_size, tiles_needed, upscale
from .models import download, registry, selection, sources
from .options import VULKAN, Limits, Options
from .progress import Progress, StageTimer
from .result import Result, finish

if TYPE_CHECKING:
    from .inference.engine import Engine

T = TypeVar("T")
_RETRY_SECONDS = 600  # in which a model that could not be fetched is not tried again
_NO_MEMORY = "photo and result do not fit into memory: choose a smaller scale"
_OF_THE_FILE = {"face_strength", "format", "quality", "keep_metadata", "remove_gps"}


@dataclass(frozen=True)
class Plan:
    """What restoring a photo will take.

    width, height  of the result in pixels
    model          the one that will be used
    reason         why "auto" does not take the best one, in the user's words; "" where it does
    tiles          how many the network will run; None while the model is not loaded
    seconds        expected on this machine without faces; None as long as nothing was measured
    warnings       what of the photo the chosen format cannot hold, in the user's words
    """

    width: int
    height: int
    model: registry.Model
    reason: str
    tiles: int | None
    seconds: float | None
    warnings: tuple[str, ...]


class Restorer:
    """Owns the networks, the device and the one lock around the device.

    weights  folder of the model files (default: RESTORER_WEIGHTS, else weights/ beside the package)
    device   "cuda", "mps", "cpu", or None for the fastest there is. On a CPU the fastest way to compute is
             found by trying; "cpu:winograd", "cpu:openvino", "cpu:ncnn" and "cpu:torch" fix it,
             "cpu:bfloat16" has 16 bits, for processors with AMX, and "vulkan" is ncnn on a GPU
    half     compute in 16 bit; None: on CUDA only
    limits   how large photos may be
    auto_cpu_megapixels  photos up to this size are restored by the best model on a CPU where model="auto";
             larger ones by a faster model (default: AUTO_CPU_MEGAPIXELS in the environment, else 0.5)
    decoder  reads a file's bytes, as photo.decode does; contained.decode is for files of strangers
    options  defaults for restore(), see Options

    Nothing is loaded until it is needed. One Restorer serves any number of threads; no two tiles are
    ever computed at once.
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
        self.auto_cpu_megapixels = selection.auto_cpu_megapixels(auto_cpu_megapixels)
        self.downloading: tuple[str, int, int] | None = None  # model, bytes here, bytes in all
        self._fetch_failed = -math.inf  # when "auto" last could not fetch its model, by time.monotonic()
        self.weights = registry.weights_folder(weights)
        self.limits = limits or Limits()
        self.options = Options().changed(options)
        self._half, self._lock = half, threading.Lock()
        self._models = ModelCache(self.weights)
        self._throughput = ThroughputEstimator()

    def restore(self, data: bytes | Photo, *, progress: Progress | None = None, **options: object) -> Result:
        """Restore the photo in `data` (a file's bytes, or what photo.decode() made of them).

        options   see Options; what is not given is as it was given to the Restorer
        progress  is told (steps done, steps in all), a step being a tile or a face, before the first and
                  after each one, and (0, 0) while there is no total yet: while a model is downloaded, of
                  which self.downloading tells the bytes. When it raises (Cancelled, say), the work stops
                  within one step

        Raises any RestoreError; see errors.py.
        """
        try:
            with _enough_memory():
                return self._restore(data, progress, options)
        finally:
            self.downloading = None

    def decode(self, data: bytes) -> Photo:
        """The photo in a file's bytes. Raises UnsupportedImage, DamagedImage and ImageTooLarge."""
        if not isinstance(data, bytes):
            raise TypeError(f"a photo's bytes are needed, not {type(data).__name__}: Path(name).read_bytes()")
        return self._decoder(data, max_pixels=self.limits.input_pixels)

    def _restore(self, data: bytes | Photo, progress: Progress | None, options: dict[str, object]) -> Result:
        timer = StageTimer()
        chosen = self.options.changed(options)
        decoded = isinstance(data, Photo)
        before = data if decoded else self.decode(data)
        self.result_size(before, chosen)
        timer.lap("decode")
        waiting = self._told_of_downloads(progress)
        model, engine = self.resolve(
            chosen,
            before.width * before.height,
            lambda model: self._upscaler(model, chosen.denoise, partial(waiting, model.name)),
        )
        timer.lap("load")
        faces, unseen = self._found(before, chosen, waiting)
        timer.lap("faces")
        count = _Count(progress, pipeline.count_pending(faces))
        tile = chosen.tile or engine.best_tile()
        plain = upscale(before, engine, outscale=chosen.outscale, tile=tile, progress=count.tiles)
        timer.lap("enlarge")
        if pipeline.count_pending(faces):
            network, masks = self._face_stage(chosen, waiting)
            faces = pipeline.restore(faces, network, masks, batch=network.batch, progress=count.faces)
        timer.lap("faces")
        result = finish(
            before,
            plain,
            tuple(faces),
            chosen,
            model=model.name,
            sha256=engine.sha256,
            source=engine.source,
            device=engine.device,
            unseen=unseen,
            timer=timer,
            retries=engine.retries,
        )
        self._throughput.learn(
            model.name, result.stages["enlarge"], _needed(before, engine, chosen.outscale, tile)[1]
        )
        self._throughput.learn(result.format, result.stages["encode"], result.width * result.height)
        return result

    def recompose(
        self, result: Result, *, strengths: Mapping[int, float] | None = None, **options: object
    ) -> Result:
        """The result with other choices for its faces or its file, without running a network again.

        strengths  of single faces, 0 (as upscaled) to 1, by their index in result.faces; face_strength
                   multiplies them; what is not given is as it was
        options    face_strength, format, quality, keep_metadata, remove_gps; what is not given is as it was

        Raises InvalidOption for anything else: that needs the photo restored again.
        """
        with _enough_memory():
            return self._recompose(result, strengths or {}, options)

    def _recompose(
        self, result: Result, strengths: Mapping[int, float], options: dict[str, object]
    ) -> Result:
        timer = StageTimer()
        if fixed := sorted(set(options) & set(Options.names()) - _OF_THE_FILE):
            raise InvalidOption(f"{fixed[0]} cannot be changed in a result: restore the photo again")
        for index, strength in strengths.items():
            if index not in range(len(result.faces)):
                raise InvalidOption(f"there is no face {index}; the result has {len(result.faces)}")
            Options(face_strength=strength)  # raises for what is not from 0 to 1
        chosen = result.options.changed(options)
        encode.check_fits(
            result.before, result.width, result.height, encode.output_format(result.before, chosen.format)
        )
        plain = replace(result.after, pixels=without_faces(result.after.pixels, result.paste_backup))
        return finish(
            result.before,
            plain,
            result.faces,
            chosen,
            strengths={**result.strengths, **strengths},
            model=result.model,
            sha256=result.sha256,
            source=result.source,
            device=result.device,
            unseen=result.face_note,
            timer=timer,
        )

    def find_faces(self, data: bytes) -> tuple[Photo, list[detect.Detection]]:
        """The photo in `data` (a file's bytes) and its faces, the largest first. Raises any RestoreError."""
        with _enough_memory():
            seen = self.decode(data)
            detector = self._face_network(self.options.face_detector, "detect")
            return seen, detect.find(_visible(seen), detector)

    def _found(self, before: Photo, chosen: Options, waiting: "_Waiting") -> tuple[list[Face], str]:
        """The faces, cut out, or why none was looked for."""
        auto = chosen.face_enhance == "auto"
        if chosen.face_enhance == "off":
            return [], ""
        try:
            told = partial(waiting, chosen.face_detector)
            detector = self._face_network(chosen.face_detector, "detect", backoff=auto, progress=told)
        except (WeightsUnavailable, BadWeights) as error:
            if not auto:
                raise
            return [], f"faces were not looked for: {_absent(error, chosen.face_detector)}"
        seen = _visible(before)
        faces = pipeline.crop_faces(seen, detect.find(seen, detector), large=chosen.face_large)
        if pipeline.count_pending(faces):
            try:
                self._face_stage(chosen, waiting)  # what is missing is told before the photo is enlarged
            except (WeightsUnavailable, BadWeights) as error:
                if not auto:
                    raise
                needed = [registry.find(chosen.face_model, self.weights, "face")]
                if chosen.face_mask == "parsing":
                    needed.append(registry.find("parsenet", self.weights, "parse"))
                absent = [model.name for model in needed if not sources.is_present(model, self.weights)]
                faces = pipeline.mark_skipped(faces, _absent(error, " and ".join(absent)))
        return faces, ""

    def _face_stage(self, chosen: Options, waiting: "_Waiting") -> tuple[LockedEngine, LockedEngine | None]:
        """The network that restores faces, and the one that outlines them if that was asked for."""

        def get(name: str, kind: str) -> LockedEngine:
            backoff = chosen.face_enhance == "auto"
            return self._face_network(name, kind, backoff=backoff, progress=partial(waiting, name))

        masks = get("parsenet", "parse") if chosen.face_mask == "parsing" else None
        return get(chosen.face_model, "face"), masks

    def _upscaler(
        self, model: registry.Model, denoise: float, progress: Progress | None = None
    ) -> LockedUpscaler:
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

        return LockedUpscaler(self._models.get(model, load, variant=denoise), self._lock)

    def _loaded_upscaler(self, model: registry.Model) -> LockedUpscaler | None:
        """The model's network with any denoise strength, if it is loaded."""
        engine = self._models.peek(model)
        return LockedUpscaler(engine, self._lock) if engine else None

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
        """What restoring this photo will take, told at once: tiles and seconds after measure() only.

        Raises UnknownModel, ImageTooLarge and InvalidOption, as restore() will.
        """
        chosen = self.options.changed(options)
        width, height = self.result_size(before, chosen)
        model = self.model(chosen, before.width * before.height)
        large = self._is_large(chosen, before.width * before.height)
        faster = large and model != selection.best(self.weights, chosen, fetch=False)
        reason = "large photo on a CPU: fast model" if faster else ""
        form = encode.output_format(before, chosen.format)
        losses = encode.losses(before, form)
        engine = self._loaded_upscaler(model)
        if engine is None or model.name not in self._throughput:
            return Plan(width, height, model, reason, None, None, losses)
        tile = chosen.tile or engine.best_tile()
        tiles, pixels = _needed(before, engine, chosen.outscale, tile)
        seconds = self._throughput.expected(model.name, pixels) + self._throughput.expected(
            form, width * height
        )
        return Plan(width, height, model, reason, tiles, seconds, losses)

    def measure(self, pixels: int = 0, **options: object) -> None:
        """Load and time the model that these options mean, if it is present and that was not done yet.

        pixels  of the photo, see model()
        """
        chosen = self.options.changed(options)
        model = self.model(chosen, pixels)
        if model.name not in self._throughput and sources.is_present(model, self.weights):
            # whatever the denoise strength, it takes as long; and nothing is downloaded to be timed
            self._throughput.time(model.name, self._loaded_upscaler(model) or self._upscaler(model, 1.0))
            self._throughput.time_writers()

    def result_size(self, before: Photo, options: Options) -> tuple[int, int]:
        """Width and height of the result. Raises ImageTooLarge beyond the limit or what the format holds."""
        width, height = self.enlarged(before.width, before.height, options.outscale)
        encode.check_fits(before, width, height, encode.output_format(before, options.format))
        return width, height

    def enlarged(self, width: int, height: int, outscale: float) -> tuple[int, int]:
        """Width and height of the result of a photo of that size. Raises ImageTooLarge beyond the limit."""
        width, height = output_size(width, height, outscale)
        if width * height > self.limits.output_pixels:
            raise ImageTooLarge(
                f"the result would have {width} x {height} = {width * height / 1e6:.1f} megapixels; "
                f"the limit is {self.limits.output_pixels / 1e6:.1f}: choose a smaller scale"
            )
        return width, height

    def model(self, options: Options, pixels: int = 0) -> registry.Model:
        """The model that these options enlarge with.

        pixels  of the photo: "auto" takes another model for a large one on a CPU

        Raises UnknownModel, for names of face models too, and InvalidOption for a denoise that it lacks.
        """
        registry.find(options.face_model, self.weights, "face")
        registry.find(options.face_detector, self.weights, "detect")
        if options.model == "fast":
            return selection.fast(self.weights, options)
        if self._is_large(options, pixels):
            fetch = time.monotonic() - self._fetch_failed > _RETRY_SECONDS and not download.offline()
            return selection.for_large(self.weights, options, fetch=fetch)
        if options.model in ("auto", "best"):
            return selection.best(self.weights, options, fetch=options.model == "best")
        model = registry.find(options.model, self.weights)
        if options.denoise < 1 and not model.pair:
            raise InvalidOption(f"{model.name} does not support denoise {options.denoise}; use 1")
        return model

    def resolve(
        self, options: Options, pixels: int, load: Callable[[registry.Model], T]
    ) -> tuple[registry.Model, T]:
        """The model that these options mean and what `load` makes of it.

        Where "auto" would take a model that cannot be fetched, it takes the built-in one, and does not try
        to fetch the other for ten minutes. Raises what model() and `load` raise.
        """
        model = self.model(options, pixels)
        try:
            return model, load(model)
        except (WeightsUnavailable, BadWeights):
            if not self._is_large(options, pixels):
                raise
            self._fetch_failed = time.monotonic()
            other = self.model(options, pixels)
            if other == model:
                raise
            return other, load(other)

    def _is_large(self, options: Options, pixels: int) -> bool:
        """Whether "auto" takes a faster model because of the photo's size."""
        large = options.model == "auto" and pixels > self.auto_cpu_megapixels * 1e6
        return large and not self._on_gpu

    @functools.cached_property
    def _on_gpu(self) -> bool:
        if self._device and self._device.startswith("cpu"):
            return False
        from .inference import backends  # torch

        return self._device == VULKAN or backends.pick_device(self._device).type != "cpu"

    def load(self, pixels: int = 0) -> "Restorer":
        """Load the default model now, so that the first photo need not wait for it. Returns itself.

        pixels  of that photo, see model()
        """
        self.resolve(self.options, pixels, lambda model: self._upscaler(model, self.options.denoise))
        return self

    def backend(self, model: registry.Model) -> str:
        """The device and the backend of a model that is loaded: "cuda" or "cpu:ncnn"; "" where it is not."""
        engine = self._loaded_upscaler(model)
        return engine.device if engine else ""

    def sha256(self, model: registry.Model) -> str:
        """Of the bytes that a loaded model's weights were read from; "" where it is not loaded."""
        engine = self._loaded_upscaler(model)
        return engine.sha256 if engine else ""

    def _told_of_downloads(self, progress: Progress | None) -> "_Waiting":
        def waiting(name: str, done: int, total: int) -> None:
            self.downloading = (name, done, total) if done < total else None
            if progress:
                progress(0, 0)

        return waiting


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(_NO_MEMORY) from error
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        raise OutOfMemory(_NO_MEMORY) from error


def _visible(before: Photo) -> np.ndarray:
    """The photo's pixels with what is wholly transparent filled from around it: nothing hidden is found."""
    if before.alpha is None or is_opaque(before.alpha):
        return before.pixels
    return fill_transparent(before.pixels, before.alpha)


def _needed(before: Photo, engine: LockedUpscaler, outscale: float, tile: int) -> tuple[int, int]:
    """Tiles, and pixels in them, transparency included."""
    tiles, pixels = tiles_needed(before.width, before.height, engine, outscale=outscale, tile=tile)
    planes = 1 if before.alpha is None or is_opaque(before.alpha) else 2
    return planes * tiles, planes * pixels


_Waiting = Callable[[str, int, int], None]  # is told the model, its bytes here and its bytes in all


class _Count:
    """Tiles and then faces, told as one count."""

    def __init__(self, progress: Progress | None, faces: int) -> None:
        self._progress, self._faces, self._tiles = progress, faces, 0

    def tiles(self, done: int, total: int) -> None:
        self._tiles = total
        if self._progress:
            self._progress(done, total + self._faces)

    def faces(self, done: int) -> None:
        if self._progress:
            self._progress(self._tiles + done, self._tiles + self._faces)


def _absent(error: WeightsUnavailable | BadWeights, names: str) -> str:
    """Why faces were left, in a warning's words: the error's own tell an owner where to put the file."""
    return str(error) if isinstance(error, BadWeights) else f"{names} is not here and could not be fetched"


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
    """A Restorer with its model loaded. The arguments are those of Restorer; options those of Options."""
    given = {"weights": weights, "device": device, "half": half, "limits": limits, "decoder": decoder}
    return Restorer(**given, model=model, **options).load()  # type: ignore[arg-type]
