"""A folder of files, on this machine or wherever fsspec reaches (s3://, gs://, hf://, ...)."""

import os
import posixpath
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import fsspec

from .. import atomic
from ..errors import InvalidOption

_CHANGES = ("ETag", "etag", "mtime", "LastModified", "blob_id", "md5Hash", "created")


class StoredFile(NamedTuple):
    """A file: its path below the folder with "/" between the parts, and what changes when its bytes do."""

    path: str
    stamp: str


class Storage:
    """The files below a folder or URL.

    Raises InvalidOption for a URL whose kind of storage is not installed.
    """

    def __init__(self, root: str) -> None:
        try:
            self._fs, self.root = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise InvalidOption(f"{root} cannot be reached: {error}") from error
        self.local = "file" in self._fs.protocol
        if self.local:
            self.root = os.path.realpath(self.root)
        self.url = self.root if self.local else root

    def exists(self, path: str = "") -> bool:
        return self._fs.exists(self._full(path))

    def files(self, *, without: str = "") -> Iterator[StoredFile]:
        """Every file, hidden ones and those below the folder `without` left out, in order of their names.

        without  a full path, as another Store's root

        Raises OSError for a folder that cannot be listed.
        """
        yield from self._below(self.root, without)

    def _below(self, folder: str, without: str) -> Iterator[StoredFile]:
        # fsspec's own walk() leaves out what it cannot list
        for info in sorted(self._fs.ls(folder, detail=True), key=lambda info: info["name"]):
            full = info["name"].rstrip("/")
            name = posixpath.basename(full)
            if name.startswith(".") or full in (without, folder):
                continue
            if info["type"] == "directory":
                yield from self._below(full, without)
            elif self._is_file(info):
                yield StoredFile(posixpath.relpath(full, self.root), _stamp(info))

    def _is_file(self, info: dict) -> bool:
        return info["type"] == "file" or (bool(info.get("islink")) and self._fs.isfile(info["name"]))

    def same(self, other: "Storage") -> bool:
        """Whether both are one folder."""
        return (self._fs, self.root.rstrip("/")) == (other._fs, other.root.rstrip("/"))

    def read_all(self, paths: list[str]) -> dict[str, bytes]:
        """Many files at once, which some storages do much faster."""
        full = {self._full(path): path for path in paths}
        return {full[path]: data for path, data in self._fs.cat(list(full)).items()} if full else {}

    def remove_all(self, paths: list[str]) -> None:
        """Many files at once; what is not there is no error."""
        if self.local:
            for path in paths:
                Path(self._full(path)).unlink(missing_ok=True)
        elif paths:
            with suppress(FileNotFoundError):
                self._fs.rm([self._full(path) for path in paths])

    def read(self, path: str) -> bytes:
        """Raises OSError."""
        return self._fs.cat_file(self._full(path))

    def write(self, path: str, data: bytes) -> None:
        """So that nobody ever sees a part of it. Raises OSError."""
        if self.local:
            atomic.write_atomic(Path(self._full(path)), data)
        else:
            self._fs.pipe_file(self._full(path), data)  # object stores show nothing before all is there

    def sweep(self) -> None:
        """Remove what processes that were killed left of the files they were writing."""
        if self.local:
            for part in Path(self.root).rglob(".*.part"):
                if atomic.is_partial(part.name):
                    part.unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        """A file or a folder with all that is in it; nothing where there is none."""
        if self.exists(path):
            self._fs.rm(self._full(path), recursive=True)

    def below(self, path: str) -> list[str]:
        """The paths of the files in a folder, hidden ones too; none where there is no folder."""
        if not self.exists(path):
            return []
        return [posixpath.relpath(found, self.root) for found in sorted(self._fs.find(self._full(path)))]

    def _full(self, path: str) -> str:
        return posixpath.join(self.root, path) if path else self.root


def _stamp(info: dict) -> str:
    """Size and, by whatever name the storage has it, time or tag of the last change."""
    changed = next((info[name] for name in _CHANGES if info.get(name)), None) or sorted(info.items(), key=str)
    return f"{info.get('size')} {changed}"
