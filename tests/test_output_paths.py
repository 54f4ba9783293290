"""Output paths, file types by name, and atomic writes."""

import itertools
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

import restorer
from restorer import atomic, folders, output_paths
from restorer.errors import InvalidOption
from restorer.images import encode, file_types, photo
from restorer.options import Options
from restorer.output_paths import OutputTask, plan


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> list[Path]:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())
    return [Path(name) for name in names]


def plan_as_text(photos: list[str], output: str | None = None, **options) -> dict[str, str]:
    """Source to target, as text."""
    folder = Path(output) if output else None
    tasks = plan([Path(name) for name in photos], folder, **{"mark": "_4x", **options})
    return {str(task.source): str(task.target) for task in tasks}


def test_result_is_beside_the_photo_or_in_the_output_folder():
    touch("a/x.jpg", "y.png")
    assert plan_as_text(["a/x.jpg", "y.png"]) == {"a/x.jpg": "a/x_4x", "y.png": "y_4x"}
    assert plan_as_text(["a/x.jpg", "y.png"], "out") == {"a/x.jpg": "out/x_4x", "y.png": "out/y_4x"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "x_4x"),
        ({"outscale": 1}, "x_1x"),
        ({"outscale": 2.5}, "x_2.5x"),
        ({"long_side": 2000}, "x_2000px"),
        ({"print_size": "30 x 20 CM"}, "x_30x20cm"),
    ],
)
def test_size_is_in_the_name(options, name):
    mark = Options(**options).size_mark
    assert plan_as_text(["x.jpg"], mark=mark) == {"x.jpg": name}
    assert plan_as_text(["x.jpg"], "out", mark=mark) == {"x.jpg": f"out/{name}"}


def test_folder_keeps_its_structure():
    touch("scans/1950/a.jpg", "scans/1950/b.png", "scans/1960/summer/a.jpg", "scans/c.heic")
    assert plan_as_text(["scans"], "out") == {
        "scans/1950/a.jpg": "out/1950/a_4x",
        "scans/1950/b.png": "out/1950/b_4x",
        "scans/1960/summer/a.jpg": "out/1960/summer/a_4x",
        "scans/c.heic": "out/c_4x",
    }


def test_folder_yields_photos_only():
    photos = [f"in/{number}{ending}" for number, ending in enumerate(file_types.FORMAT_OF)]
    photos += ["in/LOUD.JPG", "in/ü ñ 写真.Png"]
    touch(*photos, "in/notes.txt", "in/film.mp4", "in/.hidden.jpg", "in/._a.jpg", "in/.cache/a.jpg", "in/a")
    Path("in/folder.jpg").mkdir()
    assert set(plan_as_text(["in"], "out")) == set(photos)
    touch(".photos/a.jpg")
    assert plan_as_text([".photos"], "out") == {".photos/a.jpg": "out/a_4x"}


def test_output_folder_inside_the_input_is_skipped():
    touch("in/a.jpg", "in/out/a_4x.jpg", "in/out/deep/b_4x.jpg", "in/outer/c.jpg")
    assert set(plan_as_text(["in"], "in/out")) == {"in/a.jpg", "in/outer/c.jpg"}
    assert set(plan_as_text(["in", "in/out/a_4x.jpg"], "in/out")) == {
        "in/a.jpg",
        "in/outer/c.jpg",
        "in/out/a_4x.jpg",
    }
    assert plan_as_text(["in"], ".")["in/a.jpg"] == "a_4x"


def test_each_photo_is_planned_once():
    touch("in/a.jpg", "in/b.jpg")
    Path("link.jpg").symlink_to("in/a.jpg")
    assert list(plan_as_text(["in/a.jpg", "in", "link.jpg", "./in/../in/b.jpg"], "out")) == [
        "in/a.jpg",
        "in/b.jpg",
    ]


def test_targets_are_unique():
    names = ["a.jpg", "a.png", "A.webp", "a_jpg.tif", "b.jpg", "x/a.jpg", "y/a.jpg", "x/b.gif"]
    touch(*(f"in/{name}" for name in names), *names)
    kinds = [*names, "in", "in/x", "in/y/../y/a.jpg"]
    for photos in itertools.chain(itertools.permutations(names, 4), [kinds, kinds[::-1]]):
        tasks = plan([Path(name) for name in photos], Path("out"), mark="_4x", image_format="png")
        paths = [str(task.path("png").resolve()).casefold() for task in tasks]
        assert len(set(paths)) == len(tasks)


def test_names_of_photos_with_the_same_stem():
    touch("a.jpg", "a.png", "b.jpg", "x/a.jpg", "y/a.jpg")
    assert plan_as_text(["a.jpg", "a.png", "b.jpg"], "out") == {
        "a.jpg": "out/a_jpg_4x",
        "a.png": "out/a_png_4x",
        "b.jpg": "out/b_4x",
    }
    assert plan_as_text(["x/a.jpg", "y/a.jpg"], "out") == {
        "x/a.jpg": "out/a_jpg_4x",
        "y/a.jpg": "out/a_jpg_2_4x",
    }
    assert plan_as_text(["x/a.jpg", "y/a.jpg"]) == {"x/a.jpg": "x/a_4x", "y/a.jpg": "y/a_4x"}


def test_unicode_normal_forms_are_one_target():
    composed, decomposed = "in/\u00e9.jpg", "other/e\u0301.png"
    touch(composed, decomposed)
    targets = {*plan_as_text([composed, decomposed], "out").values()}
    assert len({output_paths._key(Path(target)) for target in targets}) == 2
    absolute = str(Path("in/\u00e9.png").absolute())
    touch(absolute)
    tasks = plan([Path(composed), Path(absolute)], None, mark="_4x", image_format="webp")
    assert len({task.path("webp").resolve() for task in tasks}) == 2


def test_single_photo_to_a_named_file():
    touch("a.jpg")
    for name in ("new.png", "new.JPEG", "deep/er/new.tif", "new.avif", "new.webp", "new.jxl"):
        (task,) = plan([Path("a.jpg")], Path(name), mark="_4x")
        assert task == OutputTask(Path("a.jpg"), Path(name))
        assert task.path("png") == Path(name)
    (task,) = plan([Path("a.jpg")], Path("new.photo.png"), mark="_4x")
    assert [task.path("png", number).name for number in (0, 2)] == ["new.photo.png", "new.photo_p2.png"]
    Path("folder.png").mkdir()
    assert plan_as_text(["a.jpg"], "folder.png") == {"a.jpg": "folder.png/a_4x"}


@pytest.mark.parametrize(
    ("photos", "output", "message"),
    [
        (["in"], None, "in is a folder; name another folder .* -o"),
        (["a.jpg", "in"], None, "in is a folder"),
        (["in"], "in", "in is a folder"),
        (["in"], "./in/../in", "in is a folder"),
        (["a.jpg"], "b.gif", r"b.gif: cannot write .gif files; use .png, .jpg"),
        (["a.jpg"], "b.txt", r"cannot write .txt files"),
        (["a.jpg"], "a.jpg", "a.jpg is the photo itself"),
        (["a.jpg"], "in/../a.jpg", "is the photo itself"),
        (["a.jpg", "b.jpg"], "c.jpg", "c.jpg is a file; name a folder with -o for several photos"),
        (["a.jpg", "b.jpg"], "notes", "notes is a file; name a folder with -o for several photos"),
        (["in"], "notes", "notes is a file; name a folder with -o for several photos"),
    ],
)
def test_contradictory_output_is_rejected(photos, output, message):
    touch("a.jpg", "b.jpg", "in/c.jpg", "notes")
    with pytest.raises(InvalidOption, match=message):
        plan_as_text(photos, output)


def test_missing_photo_is_planned_to_fail_later():
    assert plan_as_text(["none.jpg"], "out") == {"none.jpg": "out/none_4x"}


@pytest.mark.parametrize(
    ("source", "image_format", "existing", "matches"),
    [
        ("a.jpg", "same", "a_4x.jpg", True),
        ("a.jpg", "same", "a_4x.png", False),
        ("a.JPEG", "same", "a_4x.jpg", True),
        ("a.jpg", "png", "a_4x.png", True),
        ("a.jpg", "png", "a_4x.jpg", False),
        ("a.gif", "same", "a_4x.png", True),
        ("a.gif", "same", "a_4x.jpg", False),
        ("a.heic", "same", "a_4x.jpg", True),
        ("a.heic", "same", "a_4x.png", True),
        ("a.heic", "same", "a_4x.tif", False),
        ("a.xyz", "same", "a_4x.webp", True),
        ("a.jpg", "same", "a_4x.part", False),
    ],
)
def test_existing_output_has_the_expected_format(source, image_format, existing, matches):
    touch(source)
    (task,) = plan([Path(source)], Path("out"), mark="_4x", image_format=image_format)
    assert task.existing() is None
    touch(f"out/{existing}")
    assert task.existing() == (Path("out", existing) if matches else None)


def test_too_long_names_are_shortened_and_stay_distinct():
    names = ["n" * 251 + ".jpg", "n" * 250 + "m.jpg", "ü" * 125 + ".jpg", "n" * 251 + ".png", "n" * 300]
    tasks = plan([Path(name) for name in names], Path("out"), mark="_4x", image_format="webp")
    paths = [task.path("webp") for task in tasks]
    assert len(set(paths)) == len(names)
    for path in paths:
        atomic.write_atomic(path, b"x")
        assert 250 < len(os.fsencode(path.name)) <= 255
    assert paths[0].name == "n" * 247 + "_4x.webp"
    assert plan_as_text(["n" * 248 + ".jpg"]) == {"n" * 248 + ".jpg": "n" * 247 + "_4x"}
    assert plan_as_text(["n" * 247 + ".jpg"]) == {"n" * 247 + ".jpg": "n" * 247 + "_4x"}


def test_everything_in_a_folder_is_planned_or_left_out_with_a_reason():
    touch("in/a.jpg", "in/notes.txt", "in/none", "in/.b.jpg", "in/.git/c.jpg", "in/out/d.jpg", "other/e.jpg")
    Path("in/album").symlink_to("../other")
    Path("in/linked.jpg").symlink_to("../other/e.jpg")
    Path("in/again.jpg").symlink_to("a.jpg")
    Path("in/broken.jpg").symlink_to("nothing")
    os.mkfifo("in/pipe.jpg")
    left_out: list[folders.LeftOut] = []
    photos = [Path("in"), Path("in/a.jpg"), Path("in/../in/again.jpg"), Path("other/e.jpg")]
    tasks = plan(photos, Path("in/out"), mark="_4x", left_out=left_out)
    names = ["again", "a", "broken", "linked"]
    assert sorted(str(task.source) for task in tasks) == sorted(f"in/{name}.jpg" for name in names)
    assert {one.path: one.reason for one in left_out} == {
        "in/notes.txt": folders.NOT_A_PHOTO,
        "in/none": folders.NOT_A_PHOTO,
        "in/.b.jpg": folders.HIDDEN,
        "in/.git": folders.HIDDEN,
        "in/out": folders.RESULTS,
        "in/album": "a link to a folder; name that folder to restore its photos",
        "in/pipe.jpg": "not a regular file",
        "other/e.jpg": "the same file as in/linked.jpg",
    }
    assert not any(one.failed for one in left_out)


def test_unreadable_and_vanishing_folders_do_not_stop_the_walk(monkeypatch):
    touch("in/a.jpg", "in/closed/b.jpg", "in/gone/c.jpg", "in/z.jpg")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        if str(path).endswith("gone"):
            shutil.rmtree("in/gone")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    left_out: list[folders.LeftOut] = []
    assert [entry.name for entry in folders.files("in", left_out)] == ["a.jpg", "z.jpg"]
    assert left_out == [folders.LeftOut("in/closed", "Permission denied", failed=True)]


def test_room_is_checked_by_disk(monkeypatch):
    free = 40_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    folder = Path("not/yet").absolute()
    output_paths.check_room([(folder, Path("a.png"), 62_500_000)], Options(outscale=4))
    output_paths.check_room([(folder, Path("a.png"), 125_000_000)] * 2, Options(outscale=2))
    two = [(folder, Path("a.png"), 62_500_000), (Path(), Path("a.png"), 1_600_000)]
    with pytest.raises(restorer.errors.DiskFull, match=f"at least 41 MB and {Path().absolute()} has 40 MB"):
        output_paths.check_room(two, Options(outscale=4))
    for unknown in (Options(outscale=4, quality=50), Options(outscale=4, max_bytes=500_000)):
        output_paths.check_room(two, unknown)
    output_paths.check_room([(folder, Path("white.tif"), 10**9)], Options(outscale=4))


def test_existing_named_output():
    touch("a.jpg")
    (task,) = plan([Path("a.jpg")], Path("b.png"), mark="_4x")
    assert task.existing() is None
    touch("b.png")
    assert task.existing() == Path("b.png")


def encoded_as(image_format: str, *, depth: int = 8, alpha: np.ndarray | None = None) -> str:
    meta = SimpleNamespace(format=image_format, depth=depth)
    return encode.output_format(cast("photo.Photo", SimpleNamespace(meta=meta, alpha=alpha)), "same")


@pytest.mark.parametrize(
    "image_format", [image_format for image_format in file_types.SUFFIXES if image_format != "heif"]
)
def test_same_matches_the_encoder(image_format):
    written = encoded_as(image_format)
    for suffix in file_types.SUFFIXES[image_format]:
        assert file_types.result_formats(Path("a" + suffix), "same") == (written,)


def test_heif_becomes_jpeg_or_png():
    kinds = itertools.product((8, 16), (None, np.zeros((1, 1))))
    written = {encoded_as("heif", depth=depth, alpha=alpha) for depth, alpha in kinds}
    assert set(file_types.result_formats(Path("a.heic"), "same")) == written


@pytest.mark.parametrize(
    "suffix", [suffix for suffix in file_types.FORMAT_OF if suffix not in (".mpo", ".dib", ".avifs")]
)
def test_suffixes_match_pillow(suffix):
    """Pillow maps each suffix to the same format; HEIF and JPEG XL need plug-ins."""
    Image.init()
    image_format = file_types.FORMAT_OF[suffix]
    names = {".hif": "HEIF", ".heif": "HEIF", ".heic": "HEIF", ".jxl": "jxl"} | Image.registered_extensions()
    names |= {".jph": "jp2", ".jhc": "jp2"}  # with the block coder of JPEG 2000, part 15
    assert names[suffix].lower().replace("jpeg2000", "jp2") == image_format
    assert image_format in {name.lower() for name in photo.READABLE} | {"heif", "jxl", "jp2"}


def test_format_of_file_name():
    assert [
        file_types.format_of(Path(name)) for name in ("a.JPG", "a.tiff", "a.gif", "a.heic", "a", "png")
    ] == [
        "jpeg",
        "tiff",
        None,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "tiff", "avif", "jxl"])
def test_format_of_inverts_suffixed(image_format):
    path = file_types.suffixed(Path("out/holiday.2019_2.5x"), image_format)
    assert path.name.startswith("holiday.2019_2.5x.")
    assert file_types.format_of(path) == image_format


def test_write_atomic_creates_folders_and_replaces():
    path = Path("deep/er/a.png")
    atomic.write_atomic(path, b"first")
    atomic.write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(umask):
    old = os.umask(umask)
    try:
        atomic.write_atomic(Path("a.png"), b"x")
    finally:
        os.umask(old)
    assert Path("a.png").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("stopped", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_write_leaves_the_old_file(stopped, monkeypatch):
    touch("a.png")

    def stop(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == 3  # the new bytes are written under a temporary name
        assert Path("a.png").read_bytes() == b"a.png"
        raise stopped

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(type(stopped)):
        atomic.write_atomic(Path("a.png"), b"new")
    assert Path("a.png").read_bytes() == b"a.png"
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_longest_file_name():
    path = Path("n" * 251 + ".png")
    atomic.write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


def test_readers_see_complete_files_only():
    bodies = [bytes([number]) * 300_000 for number in range(4)]
    atomic.write_atomic(Path("a.bin"), bodies[0])
    writers = [
        threading.Thread(
            target=lambda body=body: [atomic.write_atomic(Path("a.bin"), body) for _ in range(15)]
        )
        for body in bodies
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert Path("a.bin").read_bytes() in bodies
    assert [path.name for path in Path().iterdir()] == ["a.bin"]
