"""Record what became of each photo of a batch, durably, beside the results."""

import hashlib
import json
import logging
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from ..errors import InvalidOption
from .storage import Storage, StoredFile

_RECORDS, _MANIFEST = ".records", ".manifest"  # hidden, so they never clash with a folder of photos
_LINES_PER_FILE = 1000
STARTED, RESTORED, FAILED = "started", "restored", "failed"


@dataclass(frozen=True)
class Record:
    """The state of one photo.

    path      of the photo below the source
    stamp     Entry.stamp
    digest    Batch.digest
    state     "started", "restored" or "failed"
    key       sha256 of the photo's bytes and the digest: the same input and options have the same key
    output    path of the result below the output, "" for a photo that failed
    error     why it failed
    seconds   from bytes to bytes
    warnings  of the result
    tries     how often the photo was started
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

    @property
    def finished(self) -> bool:
        return self.state != STARTED


class Manifest:
    """The finished photos of this run and earlier ones. Only one process may write it at a time."""

    def __init__(self, output: Storage) -> None:
        self._output = output
        self._seen: dict[str, tuple[int, str, str]] = {}  # by path: hash of stamp and digest, state, output
        self._pending: list[Record] = []
        self._files = 0  # number of the last file
        for path in output.paths(_MANIFEST):  # in order: of two lines about a photo the later one counts
            if path.endswith(".jsonl"):
                self._files = max(self._files, _number(path))
                for line in output.read(path).splitlines():
                    if record := _parse(line, path):
                        self._remember(record)
        self._recover()

    def _recover(self) -> None:
        """Add the records that an interrupted run left behind; they are newer than any line."""
        for path, data in self._output.read_all(self._output.paths(_RECORDS)).items():
            record = _parse(data, path)
            if record and record.finished:
                self.note(record)
        self.flush()

    def _remember(self, record: Record) -> None:
        self._seen[record.path] = hash((record.stamp, record.digest)), record.state, record.output

    def done(self, photo: StoredFile, digest: str) -> tuple[str, str]:
        """Return the photo's state and result with these options; both "" if it was not processed."""
        version, state, output = self._seen.get(photo.path, (None, "", ""))
        return (state, output) if version == hash((photo.stamp, digest)) else ("", "")

    def results(self) -> list[str]:
        """Return the paths of all results."""
        return [output for _, _, output in self._seen.values() if output]

    def note(self, record: Record) -> None:
        """Add a record; it is written by the next flush()."""
        self._remember(record)
        self._pending.append(record)
        if len(self._pending) >= _LINES_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write pending records to the manifest and delete their record files."""
        if self._pending:
            lines = "".join(json.dumps(asdict(record)) + "\n" for record in self._pending)
            self._files += 1
            name = f"{_MANIFEST}/{self._files:020}-{uuid.uuid4().hex[:8]}.jsonl"
            self._output.write(name, lines.encode())
            self._output.remove_all([record_path(record.path) for record in self._pending])
        self._pending = []


def _number(path: str) -> int:
    """Return the number of a manifest file; earlier versions used the time in nanoseconds."""
    digits = posixpath.basename(path).partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


@contextmanager
def open_manifest(output: Storage) -> Iterator[Manifest]:
    """Open the manifest of a folder and flush it on exit.

    Raises InvalidOption if another run on this machine is writing to the folder.
    """
    with _lock(output):
        manifest = Manifest(output)
        try:
            yield manifest
        finally:
            manifest.flush()
        output.remove_partial_files()
        output.remove(_RECORDS)  # the records of photos that were started and not finished


@contextmanager
def _lock(output: Storage) -> Iterator[None]:
    if not output.local:
        yield
        return
    file = Path(output.root, _MANIFEST, ".lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(file, timeout=0):
            yield
    except filelock.Timeout as error:
        raise InvalidOption(f"another run is writing to {output.root}; wait until it ends") from error


def record_path(path: str) -> str:
    """Return where the record of a photo is, below the output."""
    name = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:32]
    return posixpath.join(_RECORDS, name[:2], f"{name}.json")


def read_record(storage: Storage, path: str) -> Record | None:
    try:
        return _parse(storage.read(path), path)
    except FileNotFoundError:
        return None


def _parse(line: bytes, path: str) -> Record | None:
    """Parse a record; return None for one that a crash cut off or another version wrote."""
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError):
        logging.getLogger(__name__).warning("%s: invalid record; its photo is restored again", path)
        return None


def write_record(storage: Storage, path: str, record: Record) -> None:
    storage.write(path, json.dumps(asdict(record)).encode())
