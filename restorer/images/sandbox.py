"""Decode untrusted files, each in a process of its own; see sandbox_worker.py."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from ..errors import DamagedImage, ImageTooLarge, UnsupportedImage
from ..options import Limits
from . import photo, sandbox_worker
from .photo import Meta, Photo, Size
from .sandbox_worker import BLOCKS, HEAD, SECONDS, Sink, Source

_ERRORS = {error.__name__: error for error in (UnsupportedImage, DamagedImage, ImageTooLarge)}
_AT_ONCE = 4  # so many pictures are unfolded at the same time
_SLACK = 2.0  # seconds after which a process that should have ended is no longer listened to
_START = 60.0  # seconds that the process which forks may take to import what it needs
_LONGEST_HEAD, _MOST_BLOCKS = 1 << 20, 1 << 30  # bytes; blocks are a part of the file, or unfold to 8 MB
_MOST_WARNINGS, _LONGEST_TEXT = 50, 500
# All that the processes are told of this one's environment: no key, no token
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")
# What forks must have one thread, for its children have no other; and room is not set aside for many
_FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
T = TypeVar("T", Photo, Size)


class _Ended(Exception):
    """A process ended without an answer, or with one that is none."""


class Closing(Protocol):
    """What is closed when the answer is there."""

    def close(self) -> None: ...


class Stream(NamedTuple):
    """The two ways to a process that opens one file."""

    source: Source
    sink: Sink


def decode(data: bytes, *, max_pixels: int = Limits.input_pixels) -> Photo:
    """As photo.decode(); raises DamagedImage, too, for a file that brings down the process that opens it."""
    with _forker.unfolding:
        return _answer("decode", data, max_pixels, _photo)


def size(data: bytes, *, max_pixels: int = Limits.input_pixels) -> Size:
    """As photo.size(); raises DamagedImage, too, for a file that brings down the process that opens it."""
    return _answer("size", data, max_pixels, _size)


def start() -> None:
    """Have the process that forks ready before the first file. Raises RuntimeError where it cannot be."""
    if _FORKS:
        _forker.start()


def _answer(what: str, data: bytes, max_pixels: int, read: Callable[..., T]) -> T:
    try:
        try:
            return _call(what, data, max_pixels, read)
        except _Ended:
            if not _FORKS or _forker.lives():
                raise
        return _call(what, data, max_pixels, read)  # it was not this file's process alone that ended
    except _Ended as error:
        form = (photo.sniff(data[:256]) or "").upper() or "image"
        logging.getLogger(__name__).warning("a process that opened a %s file ended: %s", form, error)
        raise DamagedImage(
            f"the {form} file could not be opened within {SECONDS:.0f} seconds and the memory that "
            "a photo may take, or is damaged; export it again"
        ) from error


def _call(what: str, data: bytes, max_pixels: int, read: Callable[..., T]) -> T:
    """One file's way to a process of its own and back."""
    asked = {"what": what, "max_pixels": max_pixels, "seconds": SECONDS, "bytes": len(data)}
    head = json.dumps(asked).encode()
    with _child() as (source, sink):
        try:
            for part in (HEAD.pack(len(head)), head, data):
                sink.write(part)
            sink.flush()
            (length,) = HEAD.unpack(_exactly(source, HEAD.size))
            told = json.loads(_exactly(source, min(length, _LONGEST_HEAD)))
            if "error" not in told:
                return read(told, source, max_pixels)
            name, text = str(told["error"]), str(told["text"])[:_LONGEST_TEXT]
        # All that a process may send which is no longer ours
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise _Ended(f"{type(error).__name__}: {error}") from error
    if name not in _ERRORS:
        raise _Ended(text)
    raise _ERRORS[name](text)


def _size(head: dict[str, Any], _source: Source, max_pixels: int) -> Size:
    width, height = head["size"]
    _check(width, height, max_pixels)
    return Size(width, height)


def _photo(head: dict[str, Any], source: Source, max_pixels: int) -> Photo:
    """A Photo of what a process sent, who may have sent anything."""
    (height, width), dtype = head["shape"], np.dtype({"uint8": np.uint8, "uint16": np.uint16}[head["dtype"]])
    _check(width, height, max_pixels)
    lengths = {name: head["blocks"][name] for name in BLOCKS}
    if sum(_whole(length) for length in lengths.values() if length is not None) > _MOST_BLOCKS:
        raise ValueError("blocks that no file holds")
    blocks = {name: None if length is None else _exactly(source, length) for name, length in lengths.items()}
    meta = _meta(head["meta"], blocks)
    pixels = _samples(source, (height, width, 3), dtype)
    return Photo(pixels, _samples(source, (height, width), dtype) if head["alpha"] else None, meta)


def _meta(told: dict[str, Any], blocks: dict[str, bytes | None]) -> Meta:
    if told["format"] not in photo.FORMATS or told["depth"] not in (8, 16):
        raise ValueError("a format that is not read")
    dpi = told["dpi"] and (float(told["dpi"][0]), float(told["dpi"][1]))
    return Meta(
        told["format"],
        grey=told["grey"] is True,
        depth=told["depth"],
        linear=told["linear"] is True,
        dpi=dpi,
        warnings=tuple(str(said)[:_LONGEST_TEXT] for said in told["warnings"][:_MOST_WARNINGS]),
        icc=blocks["icc"],
        **{name: blocks[name] or b"" for name in BLOCKS if name != "icc"},
    )


def _check(width: object, height: object, max_pixels: int) -> None:
    if not 0 < _whole(width) * _whole(height) <= max_pixels:
        raise ValueError("more pixels than were asked for")


def _whole(number: object) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is no length")
    return number


def _samples(source: Source, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.empty(shape, dtype)
    if source.readinto(array.data.cast("B")) != array.nbytes:
        raise ValueError("samples are missing")
    return array


def _exactly(source: Source, length: int) -> bytes:
    found = source.read(length)
    if len(found) != length:
        raise ValueError("the answer is cut off")
    return found


class _Forker:
    """The process that forks one for each file, started when it is needed, and again when it has ended."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self.renew()

    def renew(self) -> None:
        """New locks: in a fork of this process the old ones may be held by threads that are not there."""
        self._lock = threading.Lock()
        self.unfolding = threading.BoundedSemaphore(_AT_ONCE)

    def start(self) -> None:
        with self._lock:
            self._started()

    def lives(self) -> bool:
        with self._lock:
            return self._control is not None and _open(self._control)

    def child(self) -> socket.socket:
        """One end of a socket whose other end a new child holds."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            try:
                socket.send_fds(self._started(), [b"f"], [theirs.fileno()])
            except OSError:  # it ended this moment
                socket.send_fds(self._started(), [b"f"], [theirs.fileno()])
        return ours

    def _started(self) -> socket.socket:
        if self._control is not None and _open(self._control):
            return self._control
        ours, theirs = socket.socketpair()
        with theirs:
            process = _process(str(theirs.fileno()), pass_fds=[theirs.fileno()], start_new_session=True)
        ours.settimeout(_START)
        if ours.recv(1) != sandbox_worker.READY:
            raise RuntimeError(f"the process that opens photos did not start: exit code {process.wait()}")
        ours.settimeout(None)
        threading.Thread(target=process.wait, daemon=True).start()  # else its entry stays when it has ended
        self._control = ours
        return ours


def _open(control: socket.socket) -> bool:
    """Whether anybody holds the other end, from which nothing more comes."""
    try:
        return control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _process(*arguments: str, **more: Any) -> subprocess.Popen[Any]:  # noqa: ANN401  Popen's own
    here = Path(__file__).resolve().parents[2]
    told = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    told |= {"PYTHONPATH": os.pathsep.join([str(here), *filter(None, sys.path)]), **_FEW_THREADS}
    command = [sys.executable, "-m", sandbox_worker.__name__, *arguments]
    more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "bufsize": -1} | more
    return subprocess.Popen(command, cwd=here, env=told, **more)


@contextmanager
def _forked() -> Iterator[Stream]:
    with _forker.child() as ours, _deadline(ours.shutdown, socket.SHUT_RDWR):
        stream = ours.makefile("rwb")
        try:
            yield Stream(stream, stream)
        finally:
            _close(stream)


@contextmanager
def _spawned() -> Iterator[Stream]:
    pipe = subprocess.PIPE
    with _process(stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdin and process.stdout
        try:
            with _deadline(process.kill, more=_START):
                yield Stream(cast(Source, process.stdout), cast(Sink, process.stdin))
        finally:
            process.kill()
            _close(process.stdin)


def _close(stream: Closing) -> None:
    with suppress(OSError):  # what it still had to send nobody takes any more
        stream.close()


@contextmanager
def _deadline(end: Callable[..., object], *given: object, more: float = _SLACK) -> Iterator[None]:
    def late() -> None:
        with suppress(OSError):
            end(*given)

    timer = threading.Timer(SECONDS + more, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_FORKS = hasattr(os, "fork") and hasattr(socket, "send_fds")
_child: Callable[[], AbstractContextManager[Stream]] = _forked if _FORKS else _spawned
_forker = _Forker()
if _FORKS:
    os.register_at_fork(after_in_child=_forker.renew)
