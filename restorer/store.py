"""A folder of files, on this machine or wherever fsspec reaches (s3://, gs://, hf://, ...)."""

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec

from . import files
from .errors import InvalidOption


class Found(NamedTuple):
    """A file: its path below the folder with "/" between the parts, and what changes when its bytes do."""

    path: str
    stamp: str


class Store:
    """The files below a folder or URL.

    Raises InvalidOption for a URL whose kind of storage is not installed.
    """

    def __init__(self, root: str) -> None:
        try:
            self._fs, self.root = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise InvalidOption(f"{root} cannot be reached: {error}") from error
        self.local = "file" in self._fs.protocol
        self.url = self.root if self.local else root

    def exists(self, path: str = "") -> bool:
        return self._fs.exists(self._full(path))

    def files(self, *, without: str = "") -> Iterator[Found]:
        """Every file, hidden ones and those below the folder `without` left out, in order of their paths.

        without  a full path, as another Store's root
        """
        for folder, folders, infos in self._fs.walk(self.root, detail=True):
            for name in [name for name in folders if name.startswith(".") or f"{folder}/{name}" == without]:
                del folders[name]
            for name in sorted(infos):
                info = infos[name]
                if info["type"] == "file" and not name.startswith("."):
                    path = posixpath.relpath(posixpath.join(folder, name), self.root)
                    yield Found(path, _stamp(info))

    def read(self, path: str) -> bytes:
        """Raises OSError."""
        return self._fs.cat_file(self._full(path))

    def write(self, path: str, data: bytes) -> None:
        """So that nobody ever sees a part of it. Raises OSError."""
        if self.local:
            files.write_atomic(Path(self._full(path)), data)
        else:
            self._fs.pipe_file(self._full(path), data)  # object stores show nothing before all is there

    def sweep(self) -> None:
        """Remove what processes that were killed left of the files they were writing."""
        if self.local:
            for part in Path(self.root).rglob(".*.part"):
                if files.is_part(part.name):
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
    changed = next((info[name] for name in ("ETag", "etag", "mtime", "LastModified") if info.get(name)), "")
    return f"{info.get('size')} {changed}"
