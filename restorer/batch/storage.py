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

# where fsspec's file systems put the version or time of the last change
_VERSION_KEYS = ("ETag", "etag", "mtime", "LastModified", "blob_id", "md5Hash", "created")


class StoredFile(NamedTuple):
    """A file of a Storage.

    path   below its root, with "/" between the parts
    stamp  changes when the file's bytes change
    """

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

    def files(self, *, exclude: str = "") -> Iterator[StoredFile]:
        """Yield every file in order of name, except hidden ones and those in the folder `exclude`.

        exclude  a full path, as the root of another Storage

        Raises OSError for a folder that cannot be listed.
        """
        yield from self._walk(self.root, exclude)

    def _walk(self, folder: str, exclude: str) -> Iterator[StoredFile]:
        # fsspec's own walk() silently skips folders that it cannot list
        for info in sorted(self._fs.ls(folder, detail=True), key=lambda info: info["name"]):
            full = info["name"].rstrip("/")
            name = posixpath.basename(full)
            if name.startswith(".") or full in (exclude, folder):
                continue
            if info["type"] == "directory":
                yield from self._walk(full, exclude)
            elif self._is_file(info):
                yield StoredFile(posixpath.relpath(full, self.root), _stamp(info))

    def _is_file(self, info: dict) -> bool:
        return info["type"] == "file" or (bool(info.get("islink")) and self._fs.isfile(info["name"]))

    def same(self, other: "Storage") -> bool:
        """Return whether both are the same folder."""
        return (self._fs, self.root.rstrip("/")) == (other._fs, other.root.rstrip("/"))

    def read_all(self, paths: list[str]) -> dict[str, bytes]:
        """Read several files at once, which is much faster on object stores."""
        full = {self._full(path): path for path in paths}
        return {full[path]: data for path, data in self._fs.cat(list(full)).items()} if full else {}

    def remove_all(self, paths: list[str]) -> None:
        """Remove several files at once; absent ones are ignored."""
        if self.local:
            for path in paths:
                Path(self._full(path)).unlink(missing_ok=True)
        elif paths:
            with suppress(FileNotFoundError):
                self._fs.rm([self._full(path) for path in paths])

    def read(self, path: str) -> bytes:
        """Read a file. Raises OSError."""
        return self._fs.cat_file(self._full(path))

    def write(self, path: str, data: bytes) -> None:
        """Write a file atomically. Raises OSError."""
        if self.local:
            atomic.write_atomic(Path(self._full(path)), data)
        else:
            self._fs.pipe_file(self._full(path), data)  # object stores show a file once it is complete

    def remove_partial_files(self) -> None:
        """Remove the temporary files of writers that were killed."""
        if self.local:
            for part in Path(self.root).rglob(".*.part"):
                if atomic.is_partial(part.name):
                    part.unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        """Remove a file, or a folder and its contents; ignored if absent."""
        if self.exists(path):
            self._fs.rm(self._full(path), recursive=True)

    def paths(self, folder: str) -> list[str]:
        """Return the paths of all files in a folder, hidden ones included; [] if it is absent."""
        if not self.exists(folder):
            return []
        return [posixpath.relpath(path, self.root) for path in sorted(self._fs.find(self._full(folder)))]

    def _full(self, path: str) -> str:
        return posixpath.join(self.root, path) if path else self.root


def _stamp(info: dict) -> str:
    """Return the size with the time or version of the last change, whatever the file system calls it."""
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), None)
    return f"{info.get('size')} {version or sorted(info.items(), key=str)}"
