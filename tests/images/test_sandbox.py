"""The sandbox: same results as in-process decoding, isolation, and crashes that cost one file only."""

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from restorer import Restorer
from restorer.batch import plan, runner
from restorer.errors import DamagedImage, ImageTooLarge, UnsupportedImage
from restorer.images import photo, sandbox
from restorer.images.formats.animation import Timing
from restorer.images.formats.metadata import Item, RawMetadata
from restorer.images.sandbox_worker import BLOCKS, LENGTH, photo_header
from restorer.models import registry
from restorer.options import Options
from restorer.web.rest import forms
from restorer.web.server import Server
from restorer.web.settings import Settings
from tests import broken, pictures
from tests.conftest import photo_like, png
from tests.images.test_photo import whole_files
from tests.web.test_previews import page_of

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc or RLIMIT_AS")
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX resource limits")
# A sitecustomize module: a file that starts with one of these words makes the worker act; report() sends an
# object back as the text of an error
FAULTS = """
    import os, signal, socket, sys, time
    import restorer.images.photo
    from restorer.errors import UnsupportedImage
    real = restorer.images.photo.decode

    def spin():
        while True:
            pass

    def fill():
        blocks = [bytearray(1 << 27) for _ in range(10**6)]

    def report(value):
        raise UnsupportedImage(repr(value))

    def attempt(action):
        try:
            report(action())
        except OSError as error:
            report(type(error).__name__)

    def other_formats():
        from PIL import Image, UnidentifiedImageError
        import io
        try:
            report(Image.open(io.BytesIO(b"P6 2 2 255 " + bytes(12))).format)
        except UnidentifiedImageError:
            report(sorted(Image.OPEN))

    ACTIONS = {
        b"SEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        b"EXIT": lambda: os._exit(0),
        b"HANG": lambda: time.sleep(60),
        b"SPIN": spin,
        b"FILL": fill,
        b"BUG!": lambda: {}["no such key"],
        b"SHUT": lambda: os.kill(os.getppid(), signal.SIGKILL),
        b"READ": lambda: attempt(lambda: open(sys.argv[0]).read()),
        b"SOCK": lambda: attempt(socket.socket),
        b"VARS": lambda: report(sorted(os.environ)),
        b"UP__": lambda: report(os.getppid()),
        b"PICS": other_formats,
        b"LOUD": lambda: [os.write(fd, b"NOISE") for fd in (1, 2)] and report(print("NOISE")),
    }

    def decode(data, **options):
        action = ACTIONS.get(data[:4])
        return action() if action else real(data, **options)

    restorer.images.photo.decode = decode
"""


@pytest.fixture(params=["forked", "spawned"])
def start_method(request, monkeypatch):
    if request.param == "spawned":
        monkeypatch.setattr(sandbox, "_FORKS", False)
        monkeypatch.setattr(sandbox, "_child", sandbox._spawned)
    elif not sandbox._FORKS:
        pytest.skip("this system does not fork")
    return request.param


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Make workers act on the words in FAULTS."""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(FAULTS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sandbox, "_forker", sandbox._Forker())


def reported(word: bytes) -> object:
    """Return what a worker reports for a file that starts with `word`."""
    with pytest.raises(UnsupportedImage) as caught:
        sandbox.decode(word)
    assert type(caught.value) is UnsupportedImage
    return eval(str(caught.value))


def assert_same(one: photo.Photo, other: photo.Photo) -> None:
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.pixels.dtype == other.pixels.dtype
    assert (one.alpha is None) == (other.alpha is None)
    if one.alpha is not None and other.alpha is not None:
        np.testing.assert_array_equal(one.alpha, other.alpha)
    assert one.meta == other.meta


# Same results as in-process decoding


def test_every_format_decodes_as_in_process(rng):
    for kind, data in whole_files(rng).items():
        assert_same(sandbox.decode(data), photo.decode(data))
        assert sandbox.size(data) == (76, 60), kind


def test_alpha_depth_and_metadata_are_transferred(start_method, rng):
    deep = pictures.noise(rng, 13, 17, 4, deep=True)
    blocks = [(b"eXIf", pictures.camera_exif()), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + pictures.XMP)]
    blocks += [(b"tEXt", b"Title\0a"), (b"pHYs", bytes([0, 0, 9, 9, 0, 0, 9, 9, 1])), (b"eXIf", b"junk")]
    read = sandbox.decode(pictures.png(deep, *blocks))
    assert_same(read, photo.decode(pictures.png(deep, *blocks)))
    assert (
        read.alpha is not None
        and read.meta.depth == 16
        and read.meta.metadata.dpi
        and read.meta.metadata.text
    )
    assert read.meta.metadata.xmp and read.meta.warnings


@pytest.mark.parametrize(
    ("data", "limit"),
    [(b"", 100), (b"hello", 100), (png(np.zeros((9, 9, 3), np.uint8))[:50], 100), (broken.huge("png"), 100)]
    + [(broken.huge("heic"), 10**8), (png(np.zeros((9, 9, 3), np.uint8)), 80)],
)
def test_errors_are_the_same_as_in_process(data, limit):
    for in_process, sandboxed in ((photo.decode, sandbox.decode), (photo.size, sandbox.size)):
        with pytest.raises((UnsupportedImage, ImageTooLarge)) as expected:
            in_process(data, max_pixels=limit)
        with pytest.raises(expected.type) as caught:
            sandboxed(data, max_pixels=limit)
        assert (type(caught.value), str(caught.value)) == (expected.type, str(expected.value))


def test_eight_threads_decode_their_own_files(rng):
    files = [pictures.pillow(photo_like(rng, 40 + index, 60), "JPEG") for index in range(8)]
    photos: dict[int, photo.Photo] = {}

    def decode(index: int) -> None:
        for _ in range(4):
            photos[index] = sandbox.decode(files[index])

    threads = [threading.Thread(target=decode, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, data in enumerate(files):
        assert_same(photos[index], photo.decode(data))


# Crashes


@pytest.mark.parametrize(
    "word",
    [
        b"EXIT",
        b"HANG",
        b"BUG!",
        pytest.param(b"SEGV", marks=POSIX),
        pytest.param(b"SPIN", marks=POSIX),
    ],
)
def test_crashed_worker_raises_damaged_image(word, faults, monkeypatch, caplog, rng):
    sandbox.start()
    with (
        monkeypatch.context() as patched,
        pytest.raises(DamagedImage, match=r"could not be opened within 1 seconds") as caught,
    ):
        patched.setattr(sandbox, "SECONDS", 1.0)
        sandbox.decode(word + bytes(5_000_000))
    assert not re.search(r"/|Error|0x", str(caught.value))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    good = png(pictures.noise(rng, 9, 9))
    assert_same(sandbox.decode(good), photo.decode(good))


@pytest.mark.parametrize("word", [b"EXIT", b"HANG", b"BUG!"])
def test_crashed_spawned_worker_raises_damaged_image(word, faults, monkeypatch):
    monkeypatch.setattr(sandbox, "_FORKS", False)
    monkeypatch.setattr(sandbox, "_child", sandbox._spawned)
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    monkeypatch.setattr(sandbox, "_START_TIMEOUT", 2.0)
    with pytest.raises(DamagedImage):
        sandbox.decode(word)


@LINUX
def test_worker_out_of_memory_raises_image_too_large(faults):
    with pytest.raises(ImageTooLarge, match="more memory to decode than the limit"):
        sandbox.decode(b"FILL", max_pixels=1000)


@LINUX
def test_fork_server_is_restarted_after_its_death(faults, rng):
    good = png(pictures.noise(rng, 9, 9))
    sandbox.decode(good)
    first = reported(b"UP__")
    os.kill(int(str(first)), signal.SIGKILL)
    assert_same(sandbox.decode(good), photo.decode(good))
    assert reported(b"UP__") != first
    with pytest.raises(DamagedImage):  # after a retry
        sandbox.decode(b"SHUT")
    assert_same(sandbox.decode(good), photo.decode(good))


@LINUX
def test_workers_end_when_the_server_is_killed(faults):
    code = "import os, time\nfrom restorer.images import sandbox\nsandbox.start()\n"
    code += "try: sandbox.decode(b'UP__')\nexcept Exception as error: print(error, flush=True)\n"
    code += "sandbox.decode(b'HANG')"
    path = os.pathsep.join([str(ROOT), sys.path[0]])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as server:
        assert server.stdout
        forker = int(server.stdout.readline())
        children = Path(f"/proc/{forker}/task/{forker}/children")
        while not (workers := children.read_text().split()):
            time.sleep(0.01)
        server.kill()
    for pid in (forker, *map(int, workers)):
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)


@LINUX
def test_a_fork_server_that_does_not_start_is_an_error(monkeypatch):
    """It holds its end of the connection, but reports nothing."""
    started = []

    def process(*_, **options):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **options))
        return started[0]

    monkeypatch.setattr(sandbox, "_process", process)
    monkeypatch.setattr(sandbox, "_START_TIMEOUT", 0.1)
    with pytest.raises(RuntimeError, match="failed to start"):
        sandbox._Forker().start()
    assert started[0].poll() is not None


@LINUX
def test_fork_server_has_one_thread(faults):
    sandbox.decode(png(np.zeros((9, 9, 3), np.uint8)))
    assert os.listdir(f"/proc/{reported(b'UP__')}/task") == [str(reported(b"UP__"))]


# Isolation


@POSIX
def test_worker_cannot_open_files_or_sockets(faults):
    assert reported(b"READ") == "OSError"
    assert reported(b"SOCK") == "OSError"


def test_worker_environment_holds_no_secrets(faults, start_method, monkeypatch):
    monkeypatch.setenv("API_KEY", "canary")
    monkeypatch.setenv("HF_TOKEN", "canary")
    if start_method == "spawned":
        monkeypatch.setattr(sandbox, "_forker", sandbox._Forker())
    names = reported(b"VARS")
    assert isinstance(names, list)
    assert "PATH" in names or "SYSTEMROOT" in names
    assert not {"API_KEY", "HF_TOKEN", "HOME", "USER"} & set(names)


def test_worker_opens_only_supported_formats(faults, start_method):
    assert reported(b"PICS") == ["AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]


def test_worker_output_is_discarded(faults, start_method, capfd):
    assert reported(b"LOUD") is None
    assert "NOISE" not in "".join(capfd.readouterr())


# Responses of a compromised worker


def invalid_responses() -> dict[str, bytes]:
    header = photo_header(photo.decode(png(np.zeros((4, 5, 3), np.uint8))))
    changes = {
        "larger": {"shape": [40, 50]},
        "negative": {"shape": [-4, -5]},
        "no numbers": {"shape": ["4", "5"]},
        "no list": {"shape": 4},
        "truncated": {"shape": [4, 6]},
        "objects": {"dtype": "object"},
        "structure": {"meta": 5},
        "format": {"meta": {**header["meta"], "format": "../../x"}},
        "depth": {"meta": {**header["meta"], "depth": 7}},
        "blocks": {"blocks": {**header["blocks"], "exif": 1 << 40}},
        "block": {"blocks": {**header["blocks"], "exif": -1}},
        "size": {"size": [1, 2], "shape": None},
        "error": {"error": "SystemExit", "text": ""},
        "no text": {"error": "DamagedImage"},
        "other error": {"error": "KeyboardInterrupt", "text": "stop"},
    }
    headers = {name: json.dumps({**header, **change}).encode() for name, change in changes.items()}
    headers |= {"no json": b"\x80\x04pickle", "nested": b"[" * 100_000, "list": b"[]", "number": b"1e999"}
    responses = {
        name: LENGTH.pack(len(encoded)) + encoded + bytes(6000 if name == "larger" else 60)
        for name, encoded in headers.items()
    }
    return responses | {"nothing": b"", "no header": b"\0\0", "long header": b"\xff\xff\xff\xff" + bytes(9)}


@pytest.mark.parametrize("name", sorted(invalid_responses()))
def test_invalid_response_raises_damaged_image(name, monkeypatch):
    @contextlib.contextmanager
    def child():
        yield io.BytesIO(invalid_responses()[name]), io.BytesIO()

    monkeypatch.setattr(sandbox, "_child", child)
    monkeypatch.setattr(sandbox, "_FORKS", False)
    with pytest.raises(DamagedImage, match="could not be opened"):
        sandbox.decode(b"", max_pixels=1000)


def test_every_field_of_meta_is_transferred():
    blocks = RawMetadata(
        *(b"icc", b"exif", b"xmp", (72.5, 300.0), b"iptc", b"resources", b"comment", b"text"),
        others=(Item("thumbnail"), Item("IPTC", "city")),
    )
    meta = photo.Meta(
        *("tiff", True, 16, True, True, 6, (3, 2)),
        metadata=blocks,
        pages=3,
        animated=True,
        timing=Timing((40, 50), 2),
        warnings=("a",),
    )
    decoded = photo.Photo(np.zeros((2, 3, 3), np.uint16), None, meta)
    header = json.loads(json.dumps(photo_header(decoded)))
    assert sandbox._meta(header["meta"], {name: getattr(blocks, name) for name in BLOCKS}) == meta
    assert None not in (*vars(meta).values(), *vars(blocks).values())


# Users of the sandbox


def test_server_and_batch_code_decodes_only_in_the_sandbox():
    paths = [path for package in ("web", "batch") for path in (ROOT / "restorer" / package).rglob("*.py")]
    decoding = re.compile(
        r"photo\.(decode|size)\(|Image\.open|imread|imdecode|imagecodecs|tifffile|pillow_heif"
    )
    assert {path.name: match[0] for path in paths if (match := decoding.search(path.read_text()))} == {}


@pytest.fixture
def server(tmp_path):
    folders = {"upload_folder": tmp_path / "uploads", "processed_folder": tmp_path / "processed"}
    return Server(Settings(restorer_weights=str(tmp_path), device="cpu", **folders))


def test_server_decodes_uploads_in_the_sandbox(server, tmp_path, monkeypatch, rng):
    upload = tmp_path / "uploads/1/a.png"
    upload.parent.mkdir(parents=True)
    upload.write_bytes(png(pictures.noise(rng, 9, 7)))
    monkeypatch.setattr(photo, "decode", forbidden)
    monkeypatch.setattr(photo, "size", forbidden)
    data = upload.read_bytes()
    service = server.service
    assert service.restorer.decode(data).width == 7
    forms.validate(service, [("a.png", upload)], {}, None)
    assert service.estimate(data, {"outscale": 2})["width"] == 14
    page = page_of(tmp_path, service)
    values = [
        "auto",
        2,
        0,
        "",
        "",
        1,
        "off",
        1,
        False,
        "GFPGANv1.3",
        1,
        "same",
        90,
        0,
        True,
        False,
        False,
        0.5,
    ]
    shown = asyncio.run(page.pick(str(upload), None, "", *values))
    assert shown[page.components.selected].outline.width == 7


def test_no_gradio_input_is_an_image_component(server):
    """Gradio's image components decode what the browser sends, outside the sandbox."""
    image_components = (gr.Image, gr.ImageSlider, gr.Gallery, gr.ImageEditor, gr.AnnotatedImage, gr.Dataset)
    functions = server.blocks.fns.values()
    assert len(functions) > 20
    for function in functions:
        assert not any(isinstance(each, image_components) for each in function.inputs), function.api_name


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("decoded an untrusted file outside the sandbox")


def test_batch_decodes_its_photos_in_the_sandbox(tmp_path, monkeypatch, rng):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(png(pictures.noise(rng, 9, 9)))
    batch = plan.Batch(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        Options(),
        ((registry.BUILT_IN, ""),),
        weights=str(tmp_path),
    )
    worker = runner.Worker(batch)
    monkeypatch.setattr(photo, "decode", forbidden)
    assert worker._restorer.decode((tmp_path / "in/a.png").read_bytes()).width == 9


def test_worker_that_ends_before_reading_the_request_is_closed_quietly(start_method):
    with pytest.raises(KeyError), sandbox._child() as (_, sink):  # closing raises nothing of its own
        try:
            sink.write(LENGTH.pack(2) + b"{}")
            for _ in range(100):
                sink.write(bytes(1_000_000))
                sink.flush()
        except OSError as error:
            raise KeyError from error


def test_restorer_uses_its_decoder_argument(tmp_path, rng):
    data, calls = png(pictures.noise(rng, 9, 9)), []

    def decoder(contents: bytes, *, max_pixels: int) -> photo.Photo:
        calls.append((contents, max_pixels))
        raise DamagedImage("not this one")

    restorer = Restorer(weights=tmp_path, decoder=decoder)
    for method in (restorer.restore, restorer.find_faces, restorer.decode):
        with pytest.raises(DamagedImage, match="not this one"):
            method(data)
    assert calls == [(data, restorer.limits.input_pixels)] * 3


# A shorter version of stress_decoding.py


def test_mutated_files_raise_only_restore_errors(rng, caplog):
    for kind, data in whole_files(rng).items():
        for mutated in broken.mutations(data, 115, np.random.default_rng([7, *kind.encode()])):
            with contextlib.suppress(UnsupportedImage, ImageTooLarge):
                photo.decode(mutated, max_pixels=10_000_000)
    for data in (png(photo_like(rng, 30, 40)), pictures.pillow(photo_like(rng, 30, 40), "JPEG")):
        for mutated in broken.mutations(data, 150, rng):
            with contextlib.suppress(UnsupportedImage, ImageTooLarge):
                sandbox.decode(mutated)
    assert "restorer.images.sandbox" not in {record.name for record in caplog.records}


@pytest.mark.parametrize("name", sorted(set(broken.BOMBS) - {"png of 50,000 squared"}))
def test_bombs_are_refused(name):
    with pytest.raises((ImageTooLarge, DamagedImage)):
        sandbox.decode(broken.BOMBS[name]())


@pytest.mark.parametrize("name", sorted(broken.WEIGHTS))
def test_bombs_in_metadata_do_not_prevent_decoding(name):
    assert sandbox.decode(broken.WEIGHTS[name]()).height == 8


def test_fork_server_starts_with_a_descriptor_above_1023():
    """select() does not take such descriptors, which a busy server has."""
    code = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]\n"
        "from restorer.images import sandbox\n"
        "print(sandbox.decode(Path(sys.argv[1]).read_bytes(), max_pixels=10**6).width)\n"
    )
    sample = ROOT / "assets/samples/portrait.jpg"
    done = subprocess.run([sys.executable, "-c", code, sample], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "240", done.stderr
