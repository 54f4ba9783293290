"""A folder of photos: each exactly once, through crashes, full disks and second runs."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import fsspec
import pytest

import restorer
from restorer import InvalidOption
from restorer.__main__ import main
from restorer.batch import manifest, runner
from restorer.batch.storage import Storage
from restorer.inference import backends
from restorer.options import Options
from tests.conftest import photo_like, png, save_network, wait_until

ROOT = Path(__file__).parents[2]
PHOTOS = ("a.png", "b/a.png", "b/Größe & co.png", "c.PNG", "two.tif", "two.png")


@pytest.fixture
def folder(tmp_path, rng, monkeypatch) -> Path:
    """in/ with six photos, one broken and one that is none; a network custom/tiny."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_network(tmp_path / "weights/custom/tiny.safetensors", seed=1)
    for name in PHOTOS:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(photo_like(rng, 24, 32)))
    (tmp_path / "in/broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (tmp_path / "in/notes.txt").write_text("none")
    (tmp_path / "in/.hidden.png").write_bytes(b"none")
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    asked = ["batch", str(folder / "in"), str(folder / "out"), "--weights-dir", str(folder / "weights")]
    return [*asked, "--model", "custom/tiny", "--device", "cpu:torch", "--face-enhance", "off", *more]


def lines(folder: Path) -> list[dict]:
    files = (folder / "out/.manifest").glob("*.jsonl")
    return [json.loads(line) for file in sorted(files) for line in file.read_text().splitlines()]


def left_behind(folder: Path) -> list[str]:
    """Files below the results that are none, but for the manifest's."""
    out = folder / "out"
    below = [path.relative_to(out) for path in out.rglob(".*") if path.is_file()]
    return [str(path) for path in below if path.parts[0] != ".manifest"]


def names(folder: Path) -> set[str]:
    """Of the results, while they are being written too."""
    out = folder / "out"
    below = (path.relative_to(out) for path in out.rglob("[!.]*.*"))
    return {path.as_posix() for path in below if not path.parts[0].startswith(".")}


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "out" / name).read_bytes() for name in names(folder)}


def expected(folder: Path, **options) -> dict[str, bytes]:
    """By the photo's path, what the Restorer itself makes of it."""
    run = restorer.Restorer(
        weights=folder / "weights", device="cpu:torch", model="custom/tiny", face_enhance="off", **options
    )
    return {name: run.restore((folder / "in" / name).read_bytes()).data for name in PHOTOS}


def test_every_photo_has_its_result_and_its_line(folder, capsys):
    assert main(words(folder)) == 1, "one is broken"
    told = {line["path"]: line for line in lines(folder)}
    assert set(told) == {*PHOTOS, "broken.jpg"}
    assert results(folder) == {told[name]["output"]: data for name, data in expected(folder).items()}
    assert told["b/a.png"]["output"] == "b/a_4x.png"
    assert {told["two.png"]["output"], told["two.tif"]["output"]} == {"two_png_4x.png", "two_tif_4x.png"}
    assert (told["broken.jpg"]["state"], told["broken.jpg"]["output"]) == ("failed", "")
    assert "damaged" in told["broken.jpg"]["error"]
    assert "6 restored, 0 done before, 1 failed" in capsys.readouterr().out
    assert told["two.tif"]["key"] != told["two.png"]["key"]
    (folder / "in/two.tif").write_bytes((folder / "in/two.png").read_bytes())
    assert main(words(folder)) == 1
    keys = {line["path"]: line["key"] for line in lines(folder)}
    assert keys["two.tif"] == keys["two.png"], "the same bytes and options have the same key"


def test_a_second_run_does_only_what_is_new(folder, rng, capsys):
    main(words(folder))
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.png")}
    assert main(words(folder)) == 1, "the broken one is still failed"
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.png")} == before
    assert "0 restored, 6 done before, 1 failed" in capsys.readouterr().out
    (folder / "in/a.png").write_bytes(png(photo_like(rng, 24, 32)))
    (folder / "in/broken.jpg").unlink()
    (folder / "in/new.png").write_bytes(png(photo_like(rng, 24, 32)))
    assert main(words(folder)) == 0
    assert "2 restored, 5 done before, 0 failed" in capsys.readouterr().out
    assert main(words(folder, "--outscale", "2")) == 0
    assert "7 restored, 0 done before" in capsys.readouterr().out
    assert Counter(line["path"] for line in lines(folder))["a.png"] == 3


def test_what_failed_can_be_tried_again(folder, capsys):
    main(words(folder))
    capsys.readouterr()
    assert main(words(folder, "--retry-failed")) == 1
    assert "broken.jpg: failed" in capsys.readouterr().err
    source = folder / "in/broken.jpg"
    mended = (folder / "in/a.png").read_bytes()
    source.write_bytes(mended)
    assert main(words(folder)) == 0, "it changed, so it is tried again"


def test_the_results_may_lie_inside_the_photos_folder(folder):
    inside = folder / "in/restored"
    asked = words(folder)
    asked[2] = str(inside)
    main(asked)
    count = len(list(inside.rglob("*.png")))
    assert count == len(PHOTOS)
    main(asked)
    assert len(list(inside.rglob("*.png"))) == count, "results are not restored again"


# The command line, where each photo takes a while on any processor
PACED = """
import sys, time
from restorer import pipeline
from restorer.__main__ import main
real = pipeline.Restorer.restore
def restore(self, data, **options):
    time.sleep(0.1)
    return real(self, data, **options)
pipeline.Restorer.restore = restore
sys.exit(main(sys.argv[1:]))
"""


def killed_after(command: list[str], count: int, folder: Path) -> None:
    """Start a run and end it with SIGKILL when there are so many results."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(names(folder)) < count and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_run_that_is_killed_goes_on_where_it_was(folder, rng):
    save_network(folder / "weights/custom/tiny.safetensors", seed=1, features=64, convs=16)
    for index in range(40):
        (folder / f"in/more{index:02}.png").write_bytes(png(photo_like(rng, 32, 32)))
    paced = [sys.executable, "-c", PACED, *words(folder)]
    killed_after(paced, 8, folder)
    first = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*_4x.png")}
    assert len(first) >= 8
    killed_after(paced, len(first) + 6, folder)
    part = folder / f"out/b/.{'0' * 32}.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"of a result")
    command = [sys.executable, "-m", "restorer", *words(folder)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1
    redone = [path for path, when in first.items() if path.stat().st_mtime_ns != when]
    assert len(redone) <= 1, "at most the one whose record was not written yet"
    counts = Counter(line["path"] for line in lines(folder))
    assert set(counts.values()) == {1} and len(counts) == 47
    assert len(results(folder)) == 46
    assert left_behind(folder) == [], "no part of a file, and no record"
    data = expected(folder)
    for line in lines(folder):
        if line["path"] in data:
            assert (folder / "out" / line["output"]).read_bytes() == data[line["path"]]


def test_a_photo_that_brings_the_process_down_is_given_up(folder):
    script = """
import os, sys
from restorer import pipeline
from restorer.__main__ import main
real = pipeline.Restorer.restore
def restore(self, data, **options):
    if data == open(sys.argv[1], "rb").read():
        os._exit(9)
    return real(self, data, **options)
pipeline.Restorer.restore = restore
sys.exit(main(sys.argv[2:]))
"""
    command = [sys.executable, "-c", script, str(folder / "in/c.PNG"), *words(folder)]
    codes = [subprocess.run(command, cwd=ROOT, capture_output=True).returncode for _ in range(4)]
    assert codes == [9, 9, 9, 1]
    told = {line["path"]: line for line in lines(folder)}
    assert told["c.PNG"]["error"] == "the process ended 3 times while this was worked on"
    assert sum(line["state"] == "restored" for line in told.values()) == len(PHOTOS) - 1


def test_a_full_disk_ends_the_run_and_blames_no_photo(folder, monkeypatch, capsys):
    real = Storage.write

    def write(self, path: str, data: bytes) -> None:
        if path.endswith(".png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, path, data)

    monkeypatch.setattr(Storage, "write", write)
    for _ in range(4):
        assert main(words(folder)) == 1
        assert "No space left" in capsys.readouterr().err
    monkeypatch.undo()
    assert [line["state"] for line in lines(folder)] in ([], ["failed"]), "the broken one may have come first"
    assert main(words(folder)) == 1
    assert len(results(folder)) == len(PHOTOS)


def test_weights_that_are_missing_end_the_run_and_blame_no_photo(folder, capsys):
    asked = [*words(folder), "--face-enhance", "on"]
    for _ in range(4):
        assert main(asked) == 1
        assert "yunet is not present" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_lost_gpu_ends_the_process_and_the_photo_is_tried_again(folder, monkeypatch, capsys):
    real, last = restorer.Restorer.restore, (folder / "in/two.png").read_bytes()

    def restore(self, data: bytes, **options):
        if data == last:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(self, data, **options)

    monkeypatch.setattr(restorer.Restorer, "restore", restore)
    for _ in range(3):
        assert main(words(folder)) == 1
        assert "the GPU failed" in capsys.readouterr().err
    assert main(words(folder)) == 1
    told = {line["path"]: line for line in lines(folder)}
    assert told["two.png"]["error"].startswith("the process ended 3 times")
    assert told["two.tif"]["state"] == "restored", "the others came through"


def test_a_result_that_cannot_be_named_costs_only_its_photo(folder):
    long = "x" * 250 + ".png"
    (folder / "in" / long).write_bytes((folder / "in/a.png").read_bytes())
    (folder / "out/c_4x.png/full").mkdir(parents=True)
    assert main(words(folder)) == 1
    told = {line["path"]: line for line in lines(folder)}
    assert told[long]["state"] == told["c.PNG"]["state"] == "failed"
    assert sum(line["state"] == "restored" for line in told.values()) == len(PHOTOS) - 1


def test_photos_may_lie_in_folders_of_any_name(folder):
    for name in ("manifest", "records"):
        (folder / "in" / name).mkdir()
        (folder / "in" / name / "p.jsonl.png").write_bytes((folder / "in/a.png").read_bytes())
    assert main(words(folder)) == main(words(folder)) == 1
    assert {"manifest/p.jsonl_4x.png", "records/p.jsonl_4x.png"} <= names(folder)


def test_damaged_lines_and_records_cost_only_their_photo(folder, capsys):
    main(words(folder))
    (manifest,) = (folder / "out/.manifest").glob("*.jsonl")
    whole = manifest.read_text()
    manifest.write_text(whole[: len(whole) - 40])
    record = folder / "out/.records/00/0.json"
    record.parent.mkdir(parents=True)
    record.write_text("")
    capsys.readouterr()
    assert main(words(folder)) == 1
    assert "1 restored, 5 done before, 1 failed" in capsys.readouterr().out


def test_a_new_photo_takes_no_older_results_name(folder):
    (folder / "in/a_png.png").write_bytes((folder / "in/c.PNG").read_bytes())
    main(words(folder))
    before = results(folder)
    (folder / "in/a.tif").write_bytes((folder / "in/c.PNG").read_bytes())
    (folder / "in/a.png").write_bytes((folder / "in/two.png").read_bytes())
    main(words(folder))
    after = results(folder)
    assert after["a_png_4x.png"] == before["a_png_4x.png"]
    told = {line["path"]: line["output"] for line in lines(folder)}
    assert len(set(told.values())) == len(told)
    assert set(told.values()) - {""} <= set(after)


def test_results_that_were_deleted_are_made_again(folder, capsys):
    main(words(folder))
    (folder / "out/a_4x.png").unlink()
    capsys.readouterr()
    main(words(folder))
    assert "1 restored, 5 done before" in capsys.readouterr().out


def test_another_model_of_the_same_name_makes_other_results(folder, capsys):
    main(words(folder))
    save_network(folder / "weights/custom/tiny.safetensors", seed=2)
    capsys.readouterr()
    main(words(folder))
    assert "6 restored, 0 done before" in capsys.readouterr().out
    assert main(words(folder, "--fp32")) == 1
    assert "6 restored, 0 done before" in capsys.readouterr().out


def test_a_device_of_fewer_bits_makes_other_results(folder, monkeypatch, capsys):
    monkeypatch.setattr(backends, "has_bfloat16_kernels", lambda: True)  # slow without, but computed
    main(words(folder))
    before = results(folder)
    for device, restored in (("cpu:winograd", 0), ("cpu:bfloat16", 6), ("cpu:torch", 6)):
        capsys.readouterr()
        main(words(folder, "--device", device))
        assert f"{restored} restored" in capsys.readouterr().out
        assert (results(folder) == before) == (device != "cpu:bfloat16")


@pytest.mark.parametrize("device", ["cpu:0", "cuda:77"])
def test_a_device_that_is_not_there_ends_the_run_and_blames_no_photo(folder, device, capsys):
    for _ in range(2):
        assert main(words(folder, "--device", device)) == 2
        assert f"device is {device!r}" in capsys.readouterr().err
    assert not lines(folder) and not results(folder)
    assert main(words(folder)) == 1
    assert "6 restored" in capsys.readouterr().out


def test_bfloat16_without_kernels_ends_the_run_and_blames_no_photo(folder, monkeypatch, capsys):
    monkeypatch.setattr(backends, "has_bfloat16_kernels", lambda: False)
    assert main(words(folder, "--device", "cpu:bfloat16")) == 2
    assert "use cpu" in capsys.readouterr().err
    assert not lines(folder) and not results(folder)


def test_a_device_that_fails_at_the_first_photo_ends_the_run_too(folder, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(backends, "build", mock.Mock(side_effect=InvalidOption("no such GPU")))
        assert main(words(folder)) == 2
        assert "no such GPU" in capsys.readouterr().err
    assert main(words(folder)) == 1
    assert "6 restored" in capsys.readouterr().out


def test_links_are_followed_and_hide_nothing(folder):
    (folder / "in/link.png").symlink_to(folder / "in/a.png")
    (folder / "same").symlink_to(folder / "in")
    asked = words(folder)
    main(asked)
    assert "link_4x.png" in names(folder)
    asked[2] = str(folder / "same")
    assert main(asked) == 2, "the results would lie among the photos"


def test_a_folder_that_cannot_be_listed_is_told(folder, monkeypatch, capsys):
    from fsspec.implementations.local import LocalFileSystem

    real = LocalFileSystem.ls

    def ls(self, path: str, *given, **named):
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return real(self, path, *given, **named)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    assert main(words(folder)) == 1
    assert "Permission denied" in capsys.readouterr().err


def test_one_run_at_a_time_writes_a_folder(folder, capsys):
    with manifest.open_manifest(Storage(str(folder / "out"))):
        assert main(words(folder)) == 2
    assert "another run writes" in capsys.readouterr().err
    assert main(words(folder)) == 1


def test_what_a_result_lacks_is_told(folder, capsys):
    asked = [word for word in words(folder) if word not in ("--face-enhance", "off")]
    assert main(asked) == 1
    heard = capsys.readouterr()
    assert "6 with warnings" in heard.out
    assert "faces were not looked for" in heard.err
    assert all("yunet" in line["warnings"] for line in lines(folder) if line["state"] == "restored")


def test_several_at_a_time_as_before_a_gpu_are_the_same_and_one_that_was_tried_is_alone(folder, monkeypatch):
    monkeypatch.setattr(runner, "_abreast", lambda asked: 3)
    under_way, most, beside = set(), [], []
    really = runner.Worker._restored

    def watched(worker, entry, record):
        under_way.add(entry.path)
        most.append(len(under_way))
        time.sleep(0.1)
        if record.tries == 1:
            wait_until(lambda: max(most) == 3)  # none ends before three were under way together
        else:
            beside.append(set(under_way) - {entry.path})
        try:
            return really(worker, entry, record)
        finally:
            under_way.discard(entry.path)

    monkeypatch.setattr(runner.Worker, "_restored", watched)
    monkeypatch.setattr(runner.Worker, "tried", lambda worker, entry: entry.path == "c.PNG")
    began = runner.Worker._earlier
    monkeypatch.setattr(
        runner.Worker,
        "_earlier",
        lambda worker, entry: (
            manifest.Record(entry.path, entry.stamp, worker.asked.digest, "begun")
            if entry.path == "c.PNG"
            else began(worker, entry)
        ),
    )
    assert main(words(folder)) == 1, "one is broken"
    assert sorted(results(folder).values()) == sorted(expected(folder).values())
    assert max(most) == 3 and beside == [set()]
    assert Counter(line["state"] for line in lines(folder)) == {"restored": 6, "failed": 1}


def test_other_storages_are_written_too(folder):
    memory = fsspec.filesystem("memory")
    for name in PHOTOS:
        memory.pipe_file(f"/scans/{name}", (folder / "in" / name).read_bytes())
    asked = runner.prepare(
        "memory://scans",
        "memory://done",
        Options(model="custom/tiny", face_enhance="off"),
        weights=str(folder / "weights"),
        device="cpu:torch",
    )
    store, photos = Storage(asked.output), []
    for _ in range(2):
        with manifest.open_manifest(store) as records:
            found = runner.photos(asked)
            todo = [photo for photo in found if not records.done(photo, asked.digest)[0]]
            photos = photos or runner.entries(asked, todo, [])
            runner.run(asked, photos if todo else [], records.note)
    assert not todo, "the second run found nothing to do"
    data = expected(folder)
    for photo in photos:
        assert memory.cat_file(f"/done/{photo.target}.png") == data[photo.path]
    memory.rm("/scans", recursive=True)
    memory.rm("/done", recursive=True)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--workers", "-1"], "workers is -1"),
        (["--cpus-per-worker", "0"], "cpus_per_worker is 0"),
        (["--gpus-per-worker", "-1"], "gpus_per_worker is -1"),
        (["--model", "nothing"], "there is no model 'nothing'"),
        (["--outscale", "9"], "outscale is 9.0"),
    ],
)
def test_wrong_calls(folder, more, told, capsys):
    assert main(words(folder, *more)) == 2
    assert told in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_wrong_folders(folder, capsys):
    for source, output, told in (
        ("nowhere", "out", "nowhere does not exist"),
        ("in", "in", "give another for the results"),
        ("nokind://x", "out", "cannot be reached"),
        ("empty", "out", "no photos found"),
    ):
        (folder / "empty").mkdir(exist_ok=True)
        names = [name if "://" in name else str(folder / name) for name in (source, output)]
        assert main(["batch", *names, *words(folder)[3:]]) == 2
        assert told in capsys.readouterr().err
