"""A folder of photos to a folder of results: each exactly once, whatever dies on the way.

What became of a photo is written beside the results before the next one is begun: as a small file in
.records/ while a run goes on, and for good as a line of .manifest/*.jsonl. A photo that brings its process
down is tried _ATTEMPTS times, then recorded as failed.
"""

import errno
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from .. import output_paths
from ..errors import BadWeights, Cancelled, DeviceLost, InvalidOption, RestoreError, WeightsUnavailable
from ..images import file_types, sandbox
from ..models import download, registry
from ..options import BFLOAT16, Options
from ..pipeline import Restorer
from ..result import Result
from .manifest import BEGUN, FAILED, RESTORED, Record, read_record, record_path, write_record
from .storage import Storage, StoredFile

_ATTEMPTS = 3
_MOST_ABREAST = 4
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR)  # why one result alone cannot be written


@dataclass(frozen=True)
class Batch:
    """What is done to which folder.

    source, output       folders or URLs, see storage.py
    options              for every photo
    models               name and sha256 of each upscaling model that the options mean, depending on the photo
    networks             the face models that are present, by name
    weights, device, half  as Restorer has them
    auto_cpu_megapixels  as Restorer has it
    threads              that PyTorch may use, 0 for its own choice
    """

    source: str
    output: str
    options: Options
    models: tuple[tuple[str, str], ...]
    networks: tuple[str, ...] = ()
    weights: str | None = None
    device: str | None = None
    half: bool | None = None
    auto_cpu_megapixels: float | None = None
    threads: int = 0

    @property
    def digest(self) -> str:
        """Of all that makes the results what they are, beside the photos."""
        found: list[object] = [asdict(self.options), self.models, self.networks, self.half]
        if len(self.models) > 1:
            found.append(self.auto_cpu_megapixels)
        if (
            self.device == BFLOAT16
        ):  # fewer bits by request; which device a machine has makes no other results
            found.append(self.device)
        told = json.dumps(found, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """A photo to restore.

    path    below the source
    stamp   changes when its bytes do
    target  of its result below the output, without the ending
    """

    path: str
    stamp: str
    target: str


def prepare(
    source: str,
    output: str,
    options: Options,
    *,
    weights: str | None = None,
    device: str | None = None,
    half: bool | None = None,
    threads: int = 0,
) -> Batch:
    """A Batch with the model chosen and, where their files are not here, it and the face models downloaded.

    Raises UnknownModel, WeightsUnavailable, BadWeights, and InvalidOption where the results would lie among
    the photos.
    """
    inputs, outputs = Storage(source), Storage(output)
    if not inputs.exists():
        raise InvalidOption(f"{source} does not exist: name a folder of photos")
    if inputs.same(outputs):
        raise InvalidOption(f"{source} is the folder of the photos: give another for the results")
    restorer = Restorer(weights=weights, device=device)
    chosen = _upscaling_models(restorer, options)
    networks = _face_networks(options, restorer.weights)
    return Batch(
        inputs.url,
        outputs.url,
        options,
        chosen,
        networks,
        weights=str(Path(weights).absolute()) if weights else None,  # a worker's folder is another
        device=device,
        half=half,
        auto_cpu_megapixels=restorer.auto_cpu_megapixels,
        threads=threads,
    )


def _upscaling_models(restorer: Restorer, options: Options) -> tuple[tuple[str, str], ...]:
    """Name and sha256 of the models for small and for large photos, which are mostly one."""
    found = {}
    for pixels in (0, restorer.limits.input_pixels):
        model, source = restorer.resolve(options, pixels, lambda one: download.ensure(one, restorer.weights))
        found[model.name] = source.sha256 or download.sha256(source.path)
    return tuple(found.items())


def _face_networks(options: Options, folder: Path) -> tuple[str, ...]:
    if options.face_enhance == "off":
        return ()
    found = []
    wanted = [("detect", options.face_detector), ("face", options.face_model)]
    for kind, name in wanted + ([("parse", "parsenet")] if options.face_mask == "parsing" else []):
        try:
            download.ensure(registry.find(name, folder, kind), folder)
            found.append(name)
        except (WeightsUnavailable, BadWeights):
            if options.face_enhance == "on":
                raise
    return tuple(found)


def photos(asked: Batch) -> list[StoredFile]:
    """Every photo of the source, by the endings of names, in order. Raises OSError."""
    inputs, outputs = Storage(asked.source), Storage(asked.output)
    listed = inputs.files(without=outputs.root if inputs.local == outputs.local else "")
    return [one for one in listed if file_types.is_photo(one.path)]


def entries(asked: Batch, todo: Sequence[StoredFile], kept: Iterable[str]) -> list[Entry]:
    """What to do for these photos; no two have the same target, and none that of a result that is kept."""
    mark = output_paths.result_stem("", asked.options.outscale)
    others = (PurePosixPath(output).with_suffix("") for output in kept)
    named = output_paths.unique_names([PurePosixPath(one.path) for one in todo], mark, others)
    return [Entry(one.path, one.stamp, str(target)) for one, target in zip(todo, named, strict=True)]


class Worker:
    """Restores one photo after the other. May run in any process, on any machine."""

    def __init__(self, asked: Batch) -> None:
        self.asked = asked
        self._inputs, self._outputs = Storage(asked.source), Storage(asked.output)
        if asked.threads:
            import torch

            torch.set_num_threads(asked.threads)
        self._restorer = Restorer(
            weights=asked.weights,
            device=asked.device,
            half=asked.half,
            auto_cpu_megapixels=asked.auto_cpu_megapixels,
            decoder=sandbox.decode,
        )
        self._stopped = False

    def stop(self) -> None:
        """End what is under way within one tile, as if it had not begun."""
        self._stopped = True

    def _go_on(self, *_: int) -> None:
        if self._stopped:
            raise Cancelled("the batch was stopped")

    def __call__(self, entry: Entry) -> Record:
        """Restore a photo, or tell what another worker made of it.

        Raises what is not the photo's fault: WeightsUnavailable, BadWeights, InvalidOption (a device that is
        not there), and OSError of the output;
        and DeviceLost, after which this process can restore nothing more.
        """
        place, digest = record_path(entry.path), self.asked.digest
        record = Record(entry.path, entry.stamp, digest, BEGUN)
        earlier = self._earlier(entry)
        if earlier:
            if earlier.state != BEGUN:
                return earlier
            record = replace(record, tries=earlier.tries + 1)
        if record.tries > _ATTEMPTS:
            told = f"the process ended {_ATTEMPTS} times while this was worked on"
            record = replace(record, state=FAILED, error=told, tries=_ATTEMPTS)
        else:
            write_record(self._outputs, place, record)
            try:
                record = self._restored(entry, record)
            except DeviceLost:
                raise  # the photo may be why: the try counts
            except BaseException:
                with suppress(OSError):
                    self._outputs.remove_all([place])
                raise
        write_record(self._outputs, place, record)
        return record

    def tried(self, entry: Entry) -> bool:
        """Whether it was begun and not ended."""
        earlier = self._earlier(entry)
        return earlier is not None and earlier.state == BEGUN

    def _earlier(self, entry: Entry) -> Record | None:
        found = read_record(self._outputs, record_path(entry.path))
        same = found and (found.stamp, found.digest) == (entry.stamp, self.asked.digest)
        return found if same else None

    def _check_model(self, result: Result) -> None:
        """Raise WeightsUnavailable where "auto" took a model that is not the batch's: its own is absent."""
        names = [name for name, _ in self.asked.models]
        if result.model not in names:
            raise WeightsUnavailable(f"{' or '.join(names)} cannot be loaded here, only {result.model}")

    def _restored(self, entry: Entry, record: Record) -> Record:
        try:
            data = self._inputs.read(entry.path)
            key = hashlib.sha256(data + record.digest.encode()).hexdigest()
            result = self._restorer.restore(data, progress=self._go_on, **asdict(self.asked.options))
            self._check_model(result)
        except (WeightsUnavailable, BadWeights, Cancelled, InvalidOption):
            raise
        except RestoreError as error:
            return replace(record, state=FAILED, error=str(error))
        except OSError as error:
            return replace(record, state=FAILED, error=error.strerror or str(error))
        except Exception as error:  # noqa: BLE001  one photo of a batch: the others go on
            if "CUDA error" in str(error):
                raise DeviceLost(f"the GPU failed: {error}") from error
            logging.getLogger(__name__).exception("%s failed", entry.path)
            return replace(record, state=FAILED, error=f"{type(error).__name__}: {error}")
        output = str(file_types.suffixed(PurePosixPath(entry.target), result.format))
        try:
            self._outputs.write(output, result.data)
        except OSError as error:
            if error.errno not in _OF_THE_NAME:
                raise
            return replace(record, state=FAILED, error=f"{output}: {error.strerror}")
        told = {"seconds": round(result.seconds, 3), "warnings": "; ".join(result.warnings)}
        return replace(record, state=RESTORED, key=key, output=output, **told)


def run(asked: Batch, todo: Iterable[Entry], noted: Callable[[Record], object]) -> None:
    """Restore photos in this process; before a GPU several at a time, of which it computes one tile.

    noted  is told of each photo that ended, in their order
    """
    worker = Worker(asked)
    started: deque[Future[Record]] = deque()
    most = _abreast(asked)
    with ThreadPoolExecutor(most) as pool:

        def leave(count: int) -> None:
            while len(started) > count:
                noted(started.popleft().result())

        try:
            for entry in todo:
                alone = worker.tried(entry)  # it may be what brought the process down, with others beside it
                leave(0 if alone else most - 1)
                started.append(pool.submit(worker, entry))
                if alone:
                    leave(0)
            leave(0)
        except BaseException:
            worker.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _abreast(asked: Batch) -> int:
    """Photos at a time: while a GPU is at one, processors read and write others, and wait for none."""
    from ..inference import backends

    device = backends.pick_device(asked.device)
    return min(_MOST_ABREAST, os.cpu_count() or 1) if device.type == "cuda" else 1
