"""The worker process that decodes one untrusted file: no secrets, few rights, and expendable.

sandbox.py starts it. Where processes can fork, a fork server with everything imported waits for sockets and
forks a child for each file; it never reads a file itself. Elsewhere a new process is started for each file.
The protocol carries only numbers, names and samples, nothing that could execute code in the receiver:

    request   a length, JSON: operation ("decode" or "size"), max_pixels, its other options, seconds, bytes;
              then the file
    response  a length, JSON: error and text, or size, or photo_header(); then the blocks and samples
"""

import gc
import importlib
import json
import math
import os
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

from ..errors import ImageTooLarge, RestoreError, UnsupportedImage
from . import photo
from .formats import jxl
from .photo import Photo

resource: Any = importlib.import_module("resource") if os.name == "posix" else None
SECONDS = 10.0  # per file, of wall-clock and of CPU time
LENGTH = struct.Struct(">I")
# Fields of RawMetadata that are sent as raw bytes
BLOCKS = ("icc", "exif", "xmp", "iptc", "resources", "comment", "text")
READY = b"r"
# What readers.py opens with Pillow, PNG for animations only; the other formats have other readers
_PLUGINS = ("JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PNG")
# imagecodecs imports these on first use, when the worker may no longer open files
_CODECS = (
    "png",
    "jpeg8",
    "avif",
    "cms",
    "lzw",
    "zlib",
    "deflate",
    "packbits",
    "lzma",
    "zstd",
    "delta",
    "floatpred",
    "bitorder",
    "packints",
    "brotli",
    "jpeg2k",
)
_BASE_MEMORY = 512 << 20  # bytes that do not grow with the photo: thread stacks, a file's tables
_BYTES_PER_PIXEL = 40  # at most: 16-bit samples as stored, as divided by alpha and as sent, alpha included
_REAP_INTERVAL = 0.05  # seconds


class Source(Protocol):
    """A blocking reader: returns fewer bytes than requested only at the end."""

    def read(self, size: int, /) -> bytes: ...
    def readinto(self, buffer: memoryview, /) -> int: ...


class Sink(Protocol):
    def write(self, part: bytes | memoryview, /) -> int: ...
    def flush(self) -> None: ...


def photo_header(decoded: Photo) -> dict[str, Any]:
    """Return what the receiver needs to read a photo's blocks and samples from the bytes that follow."""
    meta = asdict(decoded.meta)
    metadata = meta.pop("metadata")
    meta |= {"dpi": metadata["dpi"], "others": metadata["others"]}
    blocks = {name: len(metadata[name]) for name in BLOCKS}
    shape, dtype = decoded.pixels.shape[:2], str(decoded.pixels.dtype)
    alpha = decoded.alpha is not None
    return {"shape": shape, "dtype": dtype, "alpha": alpha, "meta": meta, "blocks": blocks}


def serve(source: Source, sink: Sink, address_space: int) -> None:
    """Read one request, decode its file, write the response.

    address_space  bytes of address space in use before the request
    """
    request = json.loads(source.read(LENGTH.unpack(source.read(LENGTH.size))[0]))
    data = source.read(request["bytes"])
    pixels = request["max_pixels"] if request["operation"] == "decode" else 0
    memory = address_space + 2 * len(data) + _BASE_MEMORY + _BYTES_PER_PIXEL * pixels
    _limit_resources(memory, request["seconds"])
    header, parts = _response(request["operation"], data, request["max_pixels"], request["options"])
    encoded = json.dumps(header).encode()
    sink.write(LENGTH.pack(len(encoded)) + encoded)
    for part in parts:
        sink.write(part)
    sink.flush()


def _response(
    operation: str, data: bytes, max_pixels: int, options: dict[str, Any]
) -> tuple[dict[str, Any], Sequence[bytes | memoryview]]:
    try:
        if operation == "size":
            return {"size": photo.size(data, max_pixels=max_pixels)}, ()
        decoded = photo.decode(data, max_pixels=max_pixels, **options)
    except RestoreError as error:
        return {"error": type(error).__name__, "text": str(error)}, ()
    except MemoryError:
        text = "the photo needs more memory to decode than the limit; save it smaller or in another format"
        return {"error": ImageTooLarge.__name__, "text": text}, ()
    except Exception as error:  # noqa: BLE001  without a response the server could not log the cause
        return {"error": "", "text": f"{type(error).__name__}: {error}"}, ()
    blocks = (getattr(decoded.meta.metadata, name) for name in BLOCKS)
    arrays = (array.data.cast("B") for array in (decoded.pixels, decoded.alpha) if array is not None)
    return photo_header(decoded), (*blocks, *arrays)


def _limit_resources(memory: int, seconds: float) -> None:
    """Forbid opening and writing files and core dumps; limit address space and time.

    RLIMIT_NPROC is left alone: it counts every thread of every process of the user.
    """
    if resource is None:
        return
    limits = {"NOFILE": 0, "FSIZE": 0, "CORE": 0, "CPU": math.ceil(seconds), "AS": memory}
    for name, limit in limits.items():
        # fails where a lower limit is set already, which stays, and on macOS, which has no RLIMIT_AS
        with suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    signal.setitimer(signal.ITIMER_REAL, seconds)  # unhandled, it kills the process even in C code


def _prepare() -> None:
    """Import everything a decoder needs and unregister Pillow's other formats."""
    Image.init()
    for name in set(Image.OPEN) - set(_PLUGINS):
        del Image.OPEN[name]
    Image.ID[:] = _PLUGINS
    for name in _CODECS:
        getattr(imagecodecs, f"{name}_decode")
    with suppress(UnsupportedImage):
        jxl.library()


def _silence() -> None:
    """Discard what the libraries print."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def _address_space() -> int:
    """Return the bytes of address space in use; where the system does not say, more than any limit."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 1 << 45


def _run_fork_server(control: socket.socket) -> None:
    """Fork a child for each socket received on `control`, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, which closes `control`
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # the OOM killer takes these processes first
    address_space, deadlines = _address_space(), dict[int, float]()
    gc.freeze()  # keep the imported objects in pages that the children share
    with suppress(BrokenPipeError):  # the server is gone; the loop below ends
        control.sendall(READY)
    _silence()
    while True:
        control.settimeout(_REAP_INTERVAL if deadlines else None)
        try:
            message, fds, _, _ = socket.recv_fds(control, 1, 1)
        except TimeoutError:
            _reap(deadlines)
            continue
        except OSError:
            break
        if not message:
            break
        for fd in fds:
            deadlines[_fork_child(fd, control, address_space)] = time.monotonic() + SECONDS + 1
            os.close(fd)
        _reap(deadlines)
    for pid in deadlines:
        os.kill(pid, signal.SIGKILL)


def _fork_child(fd: int, control: socket.socket, address_space: int) -> int:
    if pid := os.fork():
        return pid
    try:
        control.close()
        with socket.socket(fileno=fd) as connection, connection.makefile("rwb") as stream:
            serve(stream, stream, address_space)
    finally:
        os._exit(0)


def _reap(deadlines: dict[int, float]) -> None:
    """Remove children that ended; kill those past their deadline, as only a compromised one can be."""
    for pid, deadline in list(deadlines.items()):
        if os.waitpid(pid, os.WNOHANG)[0]:
            del deadlines[pid]
        elif time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)


def main(arguments: Sequence[str]) -> None:
    """Run as a fork server on the socket whose descriptor is given, else decode one file, stdin to stdout."""
    _prepare()
    if arguments:
        _run_fork_server(socket.socket(fileno=int(arguments[0])))
    else:
        source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        _silence()
        serve(source, sink, _address_space())


if __name__ == "__main__":
    main(sys.argv[1:])
