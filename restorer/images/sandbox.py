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
from typing import Any, TypeVar, cast

import numpy as np

from ..errors import DamagedImage, ImageTooLarge, UnsupportedImage
from ..options import Limits
from . import photo, sandbox_worker
from .formats.animation import Timing
from .formats.metadata import Item, RawMetadata
from .photo import MAX_FRAMES, Meta, Photo, Size
from .sandbox_worker import BLOCKS, LENGTH, SECONDS, Sink, Source

_ERRORS = {error.__name__: error for error in (UnsupportedImage, DamagedImage, ImageTooLarge)}
_MAX_DECODES = 4  # at the same time
_GRACE = 2.0  # seconds that a worker may exceed its own time limit before its connection is cut
_START_TIMEOUT = 60.0  # seconds for a process to start and import its libraries
_MAX_HEADER, _MAX_BLOCKS = 1 << 20, 1 << 30  # bytes; blocks are parts of the file, or unpack to 8 MB
_MAX_WARNINGS, _MAX_TEXT = 50, 500
# The only variables that workers inherit: no key, no token
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")
# A fork copies only one thread, so the fork server must have no other; each malloc arena costs address space
_SINGLE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
T = TypeVar("T", Photo, Size)


class _WorkerDied(Exception):
    """A worker ended without a valid response."""


Stream = tuple[Source, Sink]  # both directions of the connection to a worker


def decode(
    data: bytes, *, max_pixels: int = Limits.input_pixels, page: int | None = None, frames: bool = False
) -> Photo:
    """Do as photo.decode(), in a sandbox. Raises DamagedImage also for a file that crashes its worker."""
    with _forker.decode_slots:
        return _request("decode", data, max_pixels, _read_photo, page=page, frames=frames)


def size(data: bytes, *, max_pixels: int = Limits.input_pixels) -> Size:
    """Do as photo.size(), in a sandbox. Raises DamagedImage also for a file that crashes its worker."""
    return _request("size", data, max_pixels, _read_size)


def start() -> None:
    """Start the fork server before the first file arrives. Raises RuntimeError if it does not start."""
    if _FORKS:
        _forker.start()


def _request(operation: str, data: bytes, max_pixels: int, read: Callable[..., T], **options: object) -> T:
    try:
        try:
            return _call(operation, data, max_pixels, read, options)
        except _WorkerDied:
            if not _FORKS or _forker.is_alive():
                raise
        # The fork server died too, perhaps not because of this file
        return _call(operation, data, max_pixels, read, options)
    except _WorkerDied as error:
        image_format = (photo.sniff(data[:256]) or "").upper() or "image"
        logging.getLogger(__name__).warning("the worker decoding a %s file died: %s", image_format, error)
        raise DamagedImage(
            f"the {image_format} file could not be opened within {SECONDS:.0f} seconds and the memory limit, "
            "or is damaged; export it again"
        ) from error


def _call(
    operation: str, data: bytes, max_pixels: int, read: Callable[..., T], options: dict[str, object]
) -> T:
    """Send one file to a worker and read the response."""
    request = {"operation": operation, "max_pixels": max_pixels, "seconds": SECONDS, "bytes": len(data)}
    request["options"] = options
    encoded = json.dumps(request).encode()
    with _child() as (source, sink):
        try:
            for part in (LENGTH.pack(len(encoded)), encoded, data):
                sink.write(part)
            sink.flush()
            (length,) = LENGTH.unpack(_read_exactly(source, LENGTH.size))
            header = json.loads(_read_exactly(source, min(length, _MAX_HEADER)))
            if "error" not in header:
                return read(header, source, max_pixels)
            name, text = str(header["error"]), str(header["text"])[:_MAX_TEXT]
        # All that an invalid response can raise here: a compromised worker may send anything
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise _WorkerDied(f"{type(error).__name__}: {error}") from error
    if name not in _ERRORS:
        raise _WorkerDied(text)
    raise _ERRORS[name](text)


def _read_size(header: dict[str, Any], _source: Source, max_pixels: int) -> Size:
    width, height = header["size"]
    _check_size(width, height, max_pixels)
    return Size(width, height)


def _read_photo(header: dict[str, Any], source: Source, max_pixels: int) -> Photo:
    """Read a Photo, trusting nothing that the worker sent."""
    height, width = header["shape"]
    dtype = np.dtype({"uint8": np.uint8, "uint16": np.uint16}[header["dtype"]])
    _check_size(width, height, max_pixels)
    lengths = {name: header["blocks"][name] for name in BLOCKS}
    if sum(map(_natural, lengths.values())) > _MAX_BLOCKS:
        raise ValueError("metadata blocks are too large")
    blocks = {name: _read_exactly(source, length) for name, length in lengths.items()}
    meta = _meta(header["meta"], blocks)
    pixels = _read_samples(source, (height, width, 3), dtype)
    alpha = _read_samples(source, (height, width), dtype) if header["alpha"] else None
    return Photo(pixels, alpha, meta)


def _meta(fields: dict[str, Any], blocks: dict[str, bytes]) -> Meta:
    if fields["format"] not in photo.FORMATS or fields["depth"] not in (8, 16):
        raise ValueError("unknown format or depth")
    dpi = fields["dpi"] and (float(fields["dpi"][0]), float(fields["dpi"][1]))
    others = [Item(*(str(text)[:_MAX_TEXT] for text in item)) for item in fields["others"][:_MAX_WARNINGS]]
    if fields["orientation"] not in range(1, 9):
        raise ValueError("unknown orientation")
    stored = fields["stored"] and (_natural(fields["stored"][0]) or 1, _natural(fields["stored"][1]) or 1)
    return Meta(
        fields["format"],
        grey=fields["grey"] is True,
        depth=fields["depth"],
        linear=fields["linear"] is True,
        lossless=fields["lossless"] is True,
        orientation=int(fields["orientation"]),
        stored=stored,
        metadata=RawMetadata(dpi=dpi, others=tuple(others), **blocks),
        pages=_natural(fields["pages"]),
        animated=fields["animated"] is True,
        timing=fields["timing"] and _timing(*fields["timing"]),
        warnings=tuple(str(text)[:_MAX_TEXT] for text in fields["warnings"][:_MAX_WARNINGS]),
    )


def _timing(durations: list[object], loops: object) -> Timing:
    if not durations or len(durations) > MAX_FRAMES:
        raise ValueError(f"{len(durations)} frames")
    return Timing(tuple(map(_natural, durations)), None if loops is None else _natural(loops))


def _check_size(width: object, height: object, max_pixels: int) -> None:
    if not 0 < _natural(width) * _natural(height) <= max_pixels:
        raise ValueError(f"{width} x {height} pixels; the limit is {max_pixels}")


def _natural(number: object) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is not a natural number")
    return number


def _read_samples(source: Source, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.empty(shape, dtype)
    if source.readinto(array.data.cast("B")) != array.nbytes:
        raise ValueError("response is truncated")
    return array


def _read_exactly(source: Source, length: int) -> bytes:
    data = source.read(length)
    if len(data) != length:
        raise ValueError("response is truncated")
    return data


class _Forker:
    """The connection to the fork server, which is started on demand and restarted when it has died."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self.reset_locks()

    def reset_locks(self) -> None:
        """Replace the locks: after a fork, threads that do not exist in the child may hold the old ones."""
        self._lock = threading.Lock()
        self.decode_slots = threading.BoundedSemaphore(_MAX_DECODES)

    def start(self) -> None:
        with self._lock:
            self._running()

    def is_alive(self) -> bool:
        with self._lock:
            return self._control is not None and _is_open(self._control)

    def child(self) -> socket.socket:
        """Fork a worker and return the socket connected to it."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            try:
                socket.send_fds(self._running(), [b"f"], [theirs.fileno()])
            except OSError:  # it died since the check
                socket.send_fds(self._running(), [b"f"], [theirs.fileno()])
        return ours

    def _running(self) -> socket.socket:
        """Return the control socket of a running fork server."""
        if self._control is not None and _is_open(self._control):
            return self._control
        ours, theirs = socket.socketpair()
        with theirs:
            process = _process(str(theirs.fileno()), pass_fds=[theirs.fileno()], start_new_session=True)
        ours.settimeout(_START_TIMEOUT)
        try:
            ready = ours.recv(1) == sandbox_worker.READY
        except TimeoutError:  # not an OSError of a fork server that has died
            ready = False
        if not ready:
            ours.close()
            process.kill()
            raise RuntimeError(f"the image decoding process failed to start: exit code {process.wait()}")
        ours.settimeout(None)
        threading.Thread(target=process.wait, daemon=True).start()  # reaps it: no zombie remains
        self._control = ours
        return ours


def _is_open(control: socket.socket) -> bool:
    """Return whether the peer, which sends nothing more, still holds its end."""
    try:
        return control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _process(*arguments: str, **options: Any) -> subprocess.Popen[Any]:  # noqa: ANN401  Popen's own
    root = Path(__file__).resolve().parents[2]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]), **_SINGLE_THREAD}
    command = [sys.executable, "-m", sandbox_worker.__name__, *arguments]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "bufsize": -1} | options
    return subprocess.Popen(command, cwd=root, env=environment, **options)


@contextmanager
def _forked() -> Iterator[Stream]:
    with _forker.child() as connection, _deadline(connection.shutdown, socket.SHUT_RDWR):
        stream = connection.makefile("rwb")
        try:
            yield stream, stream
        finally:
            with suppress(OSError):  # flushing to a worker that has ended
                stream.close()


@contextmanager
def _spawned() -> Iterator[Stream]:
    pipe = subprocess.PIPE
    with _process(stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdin and process.stdout
        try:
            with _deadline(process.kill, grace=_START_TIMEOUT):
                yield cast(Source, process.stdout), cast(Sink, process.stdin)
        finally:
            process.kill()
            with suppress(OSError):
                process.stdin.close()


@contextmanager
def _deadline(end: Callable[..., object], *arguments: object, grace: float = _GRACE) -> Iterator[None]:
    """Call `end` if the block takes longer than SECONDS + grace."""

    def expire() -> None:
        with suppress(OSError):
            end(*arguments)

    timer = threading.Timer(SECONDS + grace, expire)
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
    os.register_at_fork(after_in_child=_forker.reset_locks)
