"""Files of strangers: the same answers from a process of its own, whose death is one file's error."""

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
from restorer.batch import runner
from restorer.errors import DamagedImage, ImageTooLarge, UnsupportedImage
from restorer.images import photo, sandbox
from restorer.images.sandbox_worker import BLOCKS, HEAD, photo_head
from restorer.options import Options
from restorer.web.rest import forms
from restorer.web.server import Server
from restorer.web.settings import Settings
from restorer.web.ui import restore_tab
from tests import broken, pictures
from tests.conftest import photo_like, png
from tests.images.test_photo import whole_files

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc, or limits memory")
POSIX = pytest.mark.skipif(os.name != "posix", reason="there are no such limits")
# What a file that begins with a word makes the process do that opens it; the text of its error comes back
FAULTS = """
    import os, signal, socket, sys, time
    import restorer.images.photo
    from restorer.errors import UnsupportedImage
    real = restorer.images.photo.decode

    def spin():
        while True:
            pass

    def fill():
        kept = [bytearray(1 << 27) for _ in range(10**6)]

    def told(what):
        raise UnsupportedImage(repr(what))

    def refused(act):
        try:
            told(act())
        except OSError as error:
            told(type(error).__name__)

    def other_formats():
        from PIL import Image, UnidentifiedImageError
        import io
        try:
            told(Image.open(io.BytesIO(b"P6 2 2 255 " + bytes(12))).format)
        except UnidentifiedImageError:
            told(sorted(Image.OPEN))

    ACTS = {
        b"SEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        b"EXIT": lambda: os._exit(0),
        b"HANG": lambda: time.sleep(60),
        b"SPIN": spin,
        b"FILL": fill,
        b"BUG!": lambda: {}["no such key"],
        b"SHUT": lambda: os.kill(os.getppid(), signal.SIGKILL),
        b"READ": lambda: refused(lambda: open(sys.argv[0]).read()),
        b"SOCK": lambda: refused(socket.socket),
        b"VARS": lambda: told(sorted(os.environ)),
        b"UP__": lambda: told(os.getppid()),
        b"PICS": other_formats,
        b"LOUD": lambda: [os.write(fd, b"NOISE") for fd in (1, 2)] and told(print("NOISE")),
    }

    def decode(data, **more):
        act = ACTS.get(data[:4])
        return act() if act else real(data, **more)

    restorer.images.photo.decode = decode
"""


@pytest.fixture(params=["forked", "spawned"])
def way(request, monkeypatch):
    """Each way to have a process."""
    if request.param == "spawned":
        monkeypatch.setattr(sandbox, "_FORKS", False)
        monkeypatch.setattr(sandbox, "_child", sandbox._spawned)
    elif not sandbox._FORKS:
        pytest.skip("this system does not fork")
    return request.param


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Processes with faults."""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(FAULTS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sandbox, "_forker", sandbox._Forker())


def told(word: bytes) -> object:
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


# The same answers


def test_every_kind_of_file_is_read_as_in_this_process(rng):
    for kind, data in whole_files(rng).items():
        assert_same(sandbox.decode(data), photo.decode(data))
        assert sandbox.size(data) == (76, 60), kind


def test_alpha_depth_and_all_that_is_beside_the_picture(way, rng):
    deep = pictures.noise(rng, 13, 17, 4, deep=True)
    blocks = [(b"eXIf", pictures.camera_exif()), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + pictures.XMP)]
    blocks += [(b"tEXt", b"Title\0a"), (b"pHYs", bytes([0, 0, 9, 9, 0, 0, 9, 9, 1])), (b"eXIf", b"junk")]
    read = sandbox.decode(pictures.png(deep, *blocks))
    assert_same(read, photo.decode(pictures.png(deep, *blocks)))
    assert read.alpha is not None and read.meta.depth == 16 and read.meta.dpi and read.meta.text
    assert read.meta.xmp and read.meta.warnings


@pytest.mark.parametrize(
    ("data", "limit"),
    [(b"", 100), (b"hello", 100), (png(np.zeros((9, 9, 3), np.uint8))[:50], 100), (broken.huge("png"), 100)]
    + [(broken.huge("heic"), 10**8), (png(np.zeros((9, 9, 3), np.uint8)), 80)],
)
def test_errors_are_the_same(data, limit):
    for inside, outside in ((photo.decode, sandbox.decode), (photo.size, sandbox.size)):
        with pytest.raises((UnsupportedImage, ImageTooLarge)) as expected:
            inside(data, max_pixels=limit)
        with pytest.raises(expected.type) as caught:
            outside(data, max_pixels=limit)
        assert (type(caught.value), str(caught.value)) == (expected.type, str(expected.value))


def test_eight_threads_at_once(rng):
    files = [pictures.pillow(photo_like(rng, 40 + index, 60), "JPEG") for index in range(8)]
    read: dict[int, photo.Photo] = {}

    def work(index: int) -> None:
        for _ in range(4):
            read[index] = sandbox.decode(files[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, data in enumerate(files):
        assert_same(read[index], photo.decode(data))


# Death


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
def test_a_process_that_ends_is_this_files_error(word, faults, monkeypatch, caplog, rng):
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
def test_a_whole_process_that_ends_is_this_files_error(word, faults, monkeypatch):
    monkeypatch.setattr(sandbox, "_FORKS", False)
    monkeypatch.setattr(sandbox, "_child", sandbox._spawned)
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    monkeypatch.setattr(sandbox, "_START", 2.0)
    with pytest.raises(DamagedImage):
        sandbox.decode(word)


@LINUX
def test_memory_that_runs_out_is_this_files_error(faults):
    with pytest.raises(ImageTooLarge, match="more memory to open than one photo may"):
        sandbox.decode(b"FILL", max_pixels=1000)


@LINUX
def test_the_process_that_forks_comes_again(faults, rng):
    good = png(pictures.noise(rng, 9, 9))
    sandbox.decode(good)
    first = told(b"UP__")
    os.kill(int(str(first)), signal.SIGKILL)
    assert_same(sandbox.decode(good), photo.decode(good))
    assert told(b"UP__") != first
    with pytest.raises(DamagedImage):  # tried twice
        sandbox.decode(b"SHUT")
    assert_same(sandbox.decode(good), photo.decode(good))


@LINUX
def test_no_process_is_left_when_the_server_is_killed(faults):
    code = "import os, time\nfrom restorer.images import sandbox\nsandbox.start()\n"
    code += "try: contained.decode(b'UP__')\nexcept Exception as error: print(error, flush=True)\n"
    code += "contained.decode(b'HANG')"
    path = os.pathsep.join([str(ROOT), sys.path[0]])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as server:
        assert server.stdout
        forker = int(server.stdout.readline())
        children = Path(f"/proc/{forker}/task/{forker}/children")
        while not (found := children.read_text().split()):
            time.sleep(0.01)
        server.kill()
    for pid in (forker, *map(int, found)):
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)


@LINUX
def test_what_forks_has_one_thread(faults):
    sandbox.decode(png(np.zeros((9, 9, 3), np.uint8)))
    assert os.listdir(f"/proc/{told(b'UP__')}/task") == [str(told(b"UP__"))]


# What the process may


@POSIX
def test_no_file_and_no_socket_can_be_opened(faults):
    assert told(b"READ") == "OSError"
    assert told(b"SOCK") == "OSError"


def test_the_environment_holds_no_secret(faults, way, monkeypatch):
    monkeypatch.setenv("API_KEY", "canary")
    monkeypatch.setenv("HF_TOKEN", "canary")
    if way == "spawned":
        monkeypatch.setattr(sandbox, "_forker", sandbox._Forker())
    names = told(b"VARS")
    assert isinstance(names, list)
    assert "PATH" in names or "SYSTEMROOT" in names
    assert not {"API_KEY", "HF_TOKEN", "HOME", "USER"} & set(names)


def test_every_other_format_of_pillow_is_out_of_reach(faults, way):
    assert told(b"PICS") == ["AVIF", "BMP", "GIF", "JPEG", "TIFF", "WEBP"]


def test_what_is_printed_in_it_is_seen_nowhere(faults, way, capfd):
    assert told(b"LOUD") is None
    assert "NOISE" not in "".join(capfd.readouterr())


# Answers of a process that was taken over


def lies() -> dict[str, bytes]:
    read = photo.decode(png(np.zeros((4, 5, 3), np.uint8)))
    head = photo_head(read)
    other = {
        "larger": {"shape": [40, 50]},
        "negative": {"shape": [-4, -5]},
        "no numbers": {"shape": ["4", "5"]},
        "no list": {"shape": 4},
        "cut off": {"shape": [4, 6]},
        "objects": {"dtype": "object"},
        "structure": {"meta": 5},
        "format": {"meta": {**head["meta"], "format": "../../x"}},
        "depth": {"meta": {**head["meta"], "depth": 7}},
        "blocks": {"blocks": {**head["blocks"], "exif": 1 << 40}},
        "block": {"blocks": {**head["blocks"], "exif": -1}},
        "size": {"size": [1, 2], "shape": None},
        "error": {"error": "SystemExit", "text": ""},
        "no text": {"error": "DamagedImage"},
        "other error": {"error": "KeyboardInterrupt", "text": "stop"},
    }
    heads = {name: json.dumps({**head, **change}).encode() for name, change in other.items()}
    heads |= {"no json": b"\x80\x04pickle", "nested": b"[" * 100_000, "list": b"[]", "number": b"1e999"}
    found = {
        name: HEAD.pack(len(head)) + head + bytes(6000 if name == "larger" else 60)
        for name, head in heads.items()
    }
    return found | {"nothing": b"", "no head": b"\0\0", "long head": b"\xff\xff\xff\xff" + bytes(9)}


@pytest.mark.parametrize("name", sorted(lies()))
def test_an_answer_that_is_none_is_an_end(name, monkeypatch):
    @contextlib.contextmanager
    def child():
        yield sandbox.Stream(io.BytesIO(lies()[name]), io.BytesIO())

    monkeypatch.setattr(sandbox, "_child", child)
    monkeypatch.setattr(sandbox, "_FORKS", False)
    with pytest.raises(DamagedImage, match="could not be opened"):
        sandbox.decode(b"", max_pixels=1000)


def test_every_field_of_meta_is_sent():
    meta = photo.Meta(
        *(
            "tiff",
            True,
            16,
            True,
            b"icc",
            b"exif",
            b"xmp",
            (72.5, 300.0),
            b"iptc",
            b"comment",
            b"text",
            ("a",),
        )
    )
    head = json.loads(json.dumps(photo_head(photo.Photo(np.zeros((2, 3, 3), np.uint16), None, meta))))
    assert sandbox._meta(head["meta"], {name: getattr(meta, name) for name in BLOCKS}) == meta
    assert None not in vars(meta).values()
    assert sandbox._meta(head["meta"], dict.fromkeys(BLOCKS)).icc is None


# Who uses it


def test_no_room_of_a_server_opens_a_picture_itself():
    rooms = [
        *(ROOT / "restorer/web").glob("*.py"),
        *(ROOT / "restorer" / f"{n}.py" for n in ("batch", "jobs")),
    ]
    opens = re.compile(r"photo\.(decode|size)\(|Image\.open|imread|imdecode|imagecodecs|tifffile|pillow_heif")
    assert {path.name: found[0] for path in rooms if (found := opens.search(path.read_text()))} == {}


@pytest.fixture
def server(tmp_path):
    folders = {"upload_folder": tmp_path / "uploads", "processed_folder": tmp_path / "made"}
    return Server(Settings(restorer_weights=str(tmp_path), device="cpu", **folders))


def test_a_server_opens_what_was_sent_elsewhere(server, tmp_path, monkeypatch, rng):
    upload = tmp_path / "uploads/1/a.png"
    upload.parent.mkdir(parents=True)
    upload.write_bytes(png(pictures.noise(rng, 9, 7)))
    monkeypatch.setattr(photo, "decode", forbidden)
    monkeypatch.setattr(photo, "size", forbidden)
    data = upload.read_bytes()
    service = server.rest.service
    assert service.decode(data).width == 7
    forms.validate(service, [("a.png", upload)], {})
    assert service.quote(data, {"outscale": 2})["width"] == 14
    values = ["auto", 2, 0, "", 1, False, "GFPGANv1.3", 1, "same", 90, True, False]
    assert restore_tab.RestoreTab(service).picked(str(upload), *values)[0].outline.width == 7


def test_gradio_is_given_no_picture_to_open(server):
    """What its components of pictures are given by a browser, they open themselves."""
    pictured = (gr.Image, gr.ImageSlider, gr.Gallery, gr.ImageEditor, gr.AnnotatedImage, gr.Dataset)
    functions = server.blocks.fns.values()
    assert len(functions) > 20
    for function in functions:
        assert not [each for each in function.inputs if isinstance(each, pictured)], function.api_name


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("a stranger's file was opened here")


def test_a_batch_opens_its_photos_elsewhere(tmp_path, monkeypatch, rng):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(png(pictures.noise(rng, 9, 9)))
    asked = runner.Batch(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        Options(),
        (("restore-lite-x4", ""),),
        weights=str(tmp_path),
    )
    worker = runner.Worker(asked)
    monkeypatch.setattr(photo, "decode", forbidden)
    assert worker._restorer.decode((tmp_path / "in/a.png").read_bytes()).width == 9


def test_a_process_that_ends_before_it_has_read_all(way):
    with pytest.raises(KeyError), sandbox._child() as (_, sink):  # not what closing it would raise
        try:
            sink.write(HEAD.pack(2) + b"{}")
            for _ in range(100):
                sink.write(bytes(1_000_000))
                sink.flush()
        except OSError as error:
            raise KeyError from error


def test_a_restorer_asks_the_decoder_it_was_given(tmp_path, rng):
    data, seen = png(pictures.noise(rng, 9, 9)), []

    def decoder(given: bytes, *, max_pixels: int) -> photo.Photo:
        seen.append((given, max_pixels))
        raise DamagedImage("not this one")

    restorer = Restorer(weights=tmp_path, decoder=decoder)
    for call in (restorer.restore, restorer.find_faces, restorer.decode):
        with pytest.raises(DamagedImage, match="not this one"):
            call(data)
    assert seen == [(data, restorer.limits.input_pixels)] * 3


# A shorter part of `make torture`


def test_some_mutations(rng, caplog):
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
def test_what_unfolds_beside_a_picture_does_not_cost_it(name):
    assert sandbox.decode(broken.WEIGHTS[name]()).height == 8
