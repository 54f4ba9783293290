"""Record what became of each photo of a batch, durably, beside the results."""

import hashlib
import json
import logging
import posixpath
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from ..errors import InvalidOption
from .storage import Storage, StoredFile

_RECORDS, _MANIFEST = ".records", ".manifest"  # hidden: no folder of photos has such a name
_LINES = 1000  # of a manifest's file
RESTORED, FAILED, BEGUN = "restored", "failed", "begun"


@dataclass(frozen=True)
class Record:
    """What became of a photo.

    state   "restored" or "failed"
    digest  Batch.digest
    key     sha256 of the photo's bytes and the digest: the same input and options have the same key
    output  of the result below the output, "" for a photo that failed
    error   why it failed
    seconds from bytes to bytes
    warnings  what the result says could not be kept or done
    tries   how often the photo was begun
    """

    path: str
    stamp: str
    digest: str
    state: str
    key: str = ""
    output: str = ""
    error: str = ""
    seconds: float = 0.0
    warnings: str = ""
    tries: int = 1


class Manifest:
    """What became of the photos of earlier runs, and of this one. One process at a time writes it."""

    def __init__(self, output: Storage) -> None:
        self._output = output
        self._seen: dict[str, tuple[int, str, str]] = {}  # by path: hash of stamp and digest, state, output
        self._pending: list[Record] = []
        for path in output.below(_MANIFEST):
            if path.endswith(".jsonl"):
                for line in output.read(path).splitlines():
                    if record := _parsed(line, path):
                        self._know(record)
        self._take_over()

    def _take_over(self) -> None:
        """What an earlier run did not come to write down."""
        for path, data in self._output.read_all(self._output.below(_RECORDS)).items():
            record = _parsed(data, path)
            if record and record.state != BEGUN and not self.has(record):
                self.note(record)
        self.flush()

    def _know(self, record: Record) -> None:
        self._seen[record.path] = hash((record.stamp, record.digest)), record.state, record.output

    def has(self, record: Record) -> bool:
        """Whether that photo, as it was, is recorded for those options."""
        return self._seen.get(record.path, (None,))[0] == hash((record.stamp, record.digest))

    def done(self, photo: StoredFile, digest: str) -> tuple[str, str]:
        """How that photo ended with those options, and its result; "" where it is still to be done."""
        known, state, output = self._seen.get(photo.path, (None, "", ""))
        return (state, output) if known == hash((photo.stamp, digest)) else ("", "")

    def note(self, record: Record) -> None:
        self._know(record)
        self._pending.append(record)
        if len(self._pending) >= _LINES:
            self.flush()

    def flush(self) -> None:
        """Into the manifest for good."""
        if self._pending:
            lines = "".join(json.dumps(asdict(record)) + "\n" for record in self._pending)
            name = f"{_MANIFEST}/{time.time_ns():020}-{uuid.uuid4().hex[:8]}.jsonl"  # the last one counts
            self._output.write(name, lines.encode())
            self._output.remove_all([record_path(record.path) for record in self._pending])
        self._pending = []


@contextmanager
def open_manifest(output: Storage) -> Iterator[Manifest]:
    """The manifest of a folder, written down at the end however that comes.

    Raises InvalidOption where another run on this machine writes that folder.
    """
    with _alone(output):
        opened = Manifest(output)
        try:
            yield opened
        finally:
            opened.flush()
        _tidy(output)


@contextmanager
def _alone(output: Storage) -> Iterator[None]:
    if not output.local:
        yield
        return
    place = Path(output.root, _MANIFEST, ".lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(place, timeout=0):
            yield
    except filelock.Timeout as error:
        raise InvalidOption(f"another run writes {output.root}: wait for its end") from error


def _tidy(output: Storage) -> None:
    output.sweep()
    output.remove(_RECORDS)  # else what was begun and not ended stays told there


def record_path(path: str) -> str:
    name = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:32]
    return posixpath.join(_RECORDS, name[:2], f"{name}.json")


def read_record(store: Storage, place: str) -> Record | None:
    try:
        return _parsed(store.read(place), place)
    except FileNotFoundError:
        return None


def _parsed(line: bytes, path: str) -> Record | None:
    """A record; None for what a crash or another version left: that photo is done again."""
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError):
        logging.getLogger(__name__).warning("%s holds no record; its photo is done again", path)
        return None


def write_record(store: Storage, place: str, record: Record) -> None:
    store.write(place, json.dumps(asdict(record)).encode())
