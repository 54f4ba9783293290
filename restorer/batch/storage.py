"""A folder of files, on this machine or wherever fsspec reaches (s3://, gs://, hf://, ...)."""

import glob
import os
import posixpath
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import fsspec

from .. import atomic, folders
from ..errors import InvalidOption
from ..folders import LeftOut

# where fsspec's file systems put the version or time of the last change
_VERSION_KEYS = ("ETag", "etag", "mtime", "LastModified", "blob_id", "md5Hash", "created")


class StoredFile(NamedTuple):
    """A file of a Storage.

    path   below its root, with "/" between the parts
    stamp  changes when the file's bytes change
    size   in bytes, 0 if unknown
    """

    path: str
    stamp: str
    size: int = 0


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
        # fsspec takes the names of several files, or of a folder to remove, for patterns
        self._one_by_one = self.local or glob.has_magic(self.root)

    def exists(self, path: str = "") -> bool:
        return self._fs.exists(self._full(path))

    def files(self, left_out: list[LeftOut], *, exclude: str = "") -> Iterator[StoredFile]:
        """Yield every file in order of name, except hidden ones and those in the folder `exclude`.

        left_out  what is not yielded, or cannot be read, is added here, see folders.files()
        exclude   a full path, as the root of another Storage
        """
        if not self.local:
            yield from self._walk(self.root, left_out, exclude)
            return
        for entry in folders.files(self.root, left_out, exclude=exclude):
            try:
                info = self._fs.info(entry.path)
            except OSError as error:
                if os.path.lexists(entry.path):  # else removed meanwhile
                    left_out.append(LeftOut(entry.path, error.strerror or str(error), failed=True))
                continue
            yield self._stored(info)

    def _walk(self, folder: str, left_out: list[LeftOut], exclude: str) -> Iterator[StoredFile]:
        # fsspec's own walk() silently skips folders that it cannot list
        try:
            listed = sorted(self._fs.ls(folder, detail=True), key=lambda info: info["name"])
        except FileNotFoundError:
            return
        except OSError as error:
            left_out.append(LeftOut(folder, error.strerror or str(error), failed=True))
            return
        for info in listed:
            full = info["name"].rstrip("/")
            if full == folder:
                continue
            if posixpath.basename(full).startswith(".") or full == exclude:
                left_out.append(LeftOut(full, folders.RESULTS if full == exclude else folders.HIDDEN))
            elif info["type"] == "directory":
                yield from self._walk(full, left_out, exclude)
            else:
                yield self._stored(info)

    def _stored(self, info: dict) -> StoredFile:
        return StoredFile(posixpath.relpath(info["name"], self.root), _stamp(info), info.get("size") or 0)

    def same(self, other: "Storage") -> bool:
        """Return whether both are the same folder."""
        return (self._fs, self.root.rstrip("/")) == (other._fs, other.root.rstrip("/"))

    def read_all(self, paths: list[str]) -> dict[str, bytes]:
        """Read several files at once, which is much faster on object stores."""
        if self._one_by_one:
            return {path: self.read(path) for path in paths}
        full = {self._full(path): path for path in paths}
        return {full[path]: data for path, data in self._fs.cat(list(full)).items()} if full else {}

    def remove_all(self, paths: list[str]) -> None:
        """Remove several files at once; absent ones are ignored."""
        if self._one_by_one:
            for path in paths:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(self._full(path))
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
            for folder, _, names in os.walk(self.root):
                for name in filter(atomic.is_partial, names):
                    Path(folder, name).unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        """Remove a folder and its contents; ignored if absent."""
        if self._one_by_one and not self.local:
            self.remove_all(self.paths(path))
        elif self.exists(path):
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
