"""The process in which strangers' files are opened: without secrets, with few rights, and no loss if it dies.

sandbox.py starts it. Where processes can fork, one that has everything imported waits for a socket, forks
for each file, and never looks into one itself; elsewhere a whole process is started for each file. What goes
over the socket is numbers, names and samples, nothing that could make the other side run code:

    in    a length, JSON: what ("decode" or "size"), max_pixels, seconds, bytes; then those bytes
    out   a length, JSON: error and text, or size, or what photo_head() says; then the blocks and samples
"""

import gc
import importlib
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

import imagecodecs
from PIL import Image

from ..errors import ImageTooLarge, RestoreError
from . import photo
from .photo import Photo

resource: Any = importlib.import_module("resource") if os.name == "posix" else None
SECONDS = 10.0  # for one file, of the clock and of the processor
HEAD = struct.Struct(">I")
BLOCKS = ("icc", "exif", "xmp", "iptc", "comment", "text")  # of Meta, sent as they are
READY = b"r"
# What photo.py opens with Pillow; PNG and HEIC have readers of their own
_PLUGINS = ("JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
# Loaded when first asked for, which a process that may open no file cannot
_CODECS = (
    "png",
    "avif",
    "lzw",
    "zlib",
    "deflate",
    "packbits",
    "lzma",
    "zstd",
    "delta",
    "bitorder",
    "packints",
)
_SPARE = 512 << 20  # bytes beside what grows with the photo: stacks of threads, a file's tables
_A_PIXEL = 40  # bytes at most: samples of 16 bits, as stored, as divided and as sent, alpha included
_LEAST_PAUSE = 0.05


class Source(Protocol):
    """What is read from: gives as many bytes as are asked for, unless there are no more."""

    def read(self, size: int, /) -> bytes: ...
    def readinto(self, buffer: memoryview, /) -> int: ...


class Sink(Protocol):
    """What is written to."""

    def write(self, part: bytes | memoryview, /) -> int: ...
    def flush(self) -> None: ...


def photo_head(read: Photo) -> dict[str, Any]:
    """What is to be known to take a photo's blocks and samples from the bytes that follow."""
    told = asdict(read.meta)
    blocks = {name: None if told[name] is None else len(told[name]) for name in BLOCKS}
    meta = {name: value for name, value in told.items() if name not in BLOCKS}
    shape, dtype = read.pixels.shape[:2], str(read.pixels.dtype)
    return {"shape": shape, "dtype": dtype, "alpha": read.alpha is not None, "meta": meta, "blocks": blocks}


def serve(source: Source, sink: Sink, before: int) -> None:
    """Take one file, open it, tell what is in it.

    before  bytes of address space this process had before
    """
    asked = json.loads(source.read(HEAD.unpack(source.read(HEAD.size))[0]))
    data = source.read(asked["bytes"])
    pixels = asked["max_pixels"] if asked["what"] == "decode" else 0
    _limit(before + 2 * len(data) + _SPARE + _A_PIXEL * pixels, asked["seconds"])
    head, parts = _opened(asked["what"], data, asked["max_pixels"])
    told = json.dumps(head).encode()
    sink.write(HEAD.pack(len(told)) + told)
    for part in parts:
        sink.write(part)
    sink.flush()


def _opened(what: str, data: bytes, max_pixels: int) -> tuple[dict[str, Any], Sequence[bytes | memoryview]]:
    try:
        if what == "size":
            return {"size": photo.size(data, max_pixels=max_pixels)}, ()
        read = photo.decode(data, max_pixels=max_pixels)
    except RestoreError as error:
        return {"error": type(error).__name__, "text": str(error)}, ()
    except MemoryError:
        large = "the photo takes more memory to open than one photo may; save it smaller or in another format"
        return {"error": ImageTooLarge.__name__, "text": large}, ()
    except Exception as error:  # noqa: BLE001  it would end this process without a word
        return {"error": "", "text": f"{type(error).__name__}: {error}"}, ()
    blocks = (getattr(read.meta, name) or b"" for name in BLOCKS)
    arrays = (array.data.cast("B") for array in (read.pixels, read.alpha) if array is not None)
    return photo_head(read), (*blocks, *arrays)


def _limit(memory: int, seconds: float) -> None:
    """From here on: no file opened or written, no core, so much address space, so many seconds.

    RLIMIT_NPROC is left alone: it counts every thread of every process of the user.
    """
    if resource is None:
        return
    limits = {"NOFILE": 0, "FSIZE": 0, "CORE": 0, "CPU": math.ceil(seconds), "AS": memory}
    for name, most in limits.items():
        # what has a limit that is lower keeps it; macOS knows no limit of the address space
        with suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    signal.setitimer(signal.ITIMER_REAL, seconds)  # what is not handled ends the process, in C code too


def _prepare() -> None:
    """Import all that will be needed, and make the rest unreachable."""
    Image.init()
    for name in set(Image.OPEN) - set(_PLUGINS):
        del Image.OPEN[name]
    Image.ID[:] = _PLUGINS
    for name in _CODECS:
        getattr(imagecodecs, f"{name}_decode")


def _silence() -> None:
    """What the libraries print is nobody's."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)


def _space() -> int:
    """Bytes of address space of this process; far too many where the system does not tell."""
    try:
        with open("/proc/self/statm") as told:
            return int(told.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 1 << 45


def _fork_for_each(control: socket.socket) -> None:
    """A child for each socket that comes in, until nobody holds the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, whose end is this one's too
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where memory runs out, this is what the system ends
    space, ends = _space(), dict[int, float]()
    gc.freeze()  # so that the children share it all
    with suppress(BrokenPipeError):  # the server has ended meanwhile, which the loop finds out
        control.sendall(READY)
    _silence()
    while True:
        if select.select([control], [], [], _LEAST_PAUSE if ends else None)[0]:
            try:
                found, fds, _, _ = socket.recv_fds(control, 1, 1)
            except OSError:
                found, fds = b"", []
            if not found:
                break
            for fd in fds:
                ends[_forked(fd, control, space)] = time.monotonic() + SECONDS + 1
                os.close(fd)
        _reap(ends)
    for pid in ends:
        os.kill(pid, signal.SIGKILL)


def _forked(fd: int, control: socket.socket, space: int) -> int:
    if pid := os.fork():
        return pid
    try:
        control.close()
        with socket.socket(fileno=fd) as ours, ours.makefile("rwb") as stream:
            serve(stream, stream, space)
    finally:
        os._exit(0)


def _reap(ends: dict[int, float]) -> None:
    """Forget the children that have ended; end those that are late, which only one that was taken over is."""
    for pid, late in list(ends.items()):
        if os.waitpid(pid, os.WNOHANG)[0]:
            del ends[pid]
        elif time.monotonic() > late:
            os.kill(pid, signal.SIGKILL)


def main(arguments: Sequence[str]) -> None:
    """With a socket's number: fork for each file. Without: one file, from stdin to stdout."""
    _prepare()
    if arguments:
        _fork_for_each(socket.socket(fileno=int(arguments[0])))
    else:
        source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        _silence()
        serve(source, sink, _space())


if __name__ == "__main__":
    main(sys.argv[1:])
