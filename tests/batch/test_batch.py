"""Each photo of a folder is restored exactly once, through crashes, full disks and second runs."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import fsspec
import pytest
from PIL import Image

import restorer
from restorer import InvalidOption, WeightsUnavailable
from restorer.__main__ import main
from restorer.batch import manifest, plan, runner
from restorer.batch.storage import Storage
from restorer.inference import backends
from restorer.options import Options
from tests import pictures
from tests.conftest import files_below, photo_like, png, refuse_to_list, save_network, wait_until
from tests.images.test_photo import with_aperture

ROOT = Path(__file__).parents[2]
PHOTOS = ("a.png", "b/a.png", "b/Größe & co.png", "c.PNG", "two.tif", "two.png")


@pytest.fixture
def folder(tmp_path, rng, monkeypatch) -> Path:
    """A folder in/ with six photos, a broken one, a text file and a hidden file; a network custom/tiny."""
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


def arguments(folder: Path, *extra: str) -> list[str]:
    command = ["batch", str(folder / "in"), str(folder / "out"), "--weights-dir", str(folder / "weights")]
    return [*command, "--model", "custom/tiny", "--device", "cpu:torch", "--face-enhance", "off", *extra]


def records(folder: Path) -> list[dict]:
    """The lines of the manifest."""
    files = (folder / "out/.manifest").glob("*.jsonl")
    return [json.loads(line) for file in sorted(files) for line in file.read_text().splitlines()]


def records_by_path(folder: Path) -> dict[str, dict]:
    return {record["path"]: record for record in records(folder)}


def hidden_files(folder: Path) -> list[str]:
    """Temporary files and records below the output, without the manifest."""
    out = folder / "out"
    hidden = [path.relative_to(out) for path in files_below(out) if path.name.startswith(".")]
    return [str(path) for path in hidden if path.parts[0] != ".manifest"]


def result_names(folder: Path) -> set[str]:
    """Names of the results; also works during a run."""
    out = folder / "out"
    paths = (path.relative_to(out) for path in files_below(out))
    return {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "out" / name).read_bytes() for name in result_names(folder)}


def modification_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.png")}


def expected_results(folder: Path, **options) -> dict[str, bytes]:
    """The results of Restorer.restore() by the photo's path."""
    direct = restorer.Restorer(
        weights=folder / "weights", device="cpu:torch", model="custom/tiny", face_enhance="off", **options
    )
    return {name: direct.restore((folder / "in" / name).read_bytes()).data for name in PHOTOS}


_real_restore = restorer.Restorer.restore


def direct(folder: Path, name: str) -> restorer.Result:
    own = restorer.Restorer(
        weights=folder / "weights", device="cpu:torch", model="custom/tiny", face_enhance="off"
    )
    return _real_restore(own, (folder / "in" / name).read_bytes())


def test_each_photo_gets_a_result_and_a_record(folder, capsys):
    assert main(arguments(folder)) == 1, "one photo is broken"
    by_path = records_by_path(folder)
    assert set(by_path) == {*PHOTOS, "broken.jpg"}
    assert results(folder) == {
        by_path[name]["output"]: data for name, data in expected_results(folder).items()
    }
    assert by_path["b/a.png"]["output"] == "b/a_4x.png"
    assert {by_path["two.png"]["output"], by_path["two.tif"]["output"]} == {
        "two_png_4x.png",
        "two_tif_4x.png",
    }
    assert (by_path["broken.jpg"]["state"], by_path["broken.jpg"]["output"]) == ("failed", "")
    assert "damaged" in by_path["broken.jpg"]["error"]
    assert "6 restored, 0 done before, 1 failed" in capsys.readouterr().out
    assert by_path["two.tif"]["key"] != by_path["two.png"]["key"]
    (folder / "in/two.tif").write_bytes((folder / "in/two.png").read_bytes())
    assert main(arguments(folder)) == 1
    keys = {record["path"]: record["key"] for record in records(folder)}
    assert keys["two.tif"] == keys["two.png"], "same bytes and options, same key"


def test_second_run_restores_only_new_and_changed_photos(folder, rng, capsys):
    main(arguments(folder))
    before = modification_times(folder)
    assert main(arguments(folder)) == 1, "the broken photo still counts as failed"
    assert modification_times(folder) == before
    assert "0 restored, 6 done before, 1 failed" in capsys.readouterr().out
    (folder / "in/a.png").write_bytes(png(photo_like(rng, 24, 32)))
    (folder / "in/broken.jpg").unlink()
    (folder / "in/new.png").write_bytes(png(photo_like(rng, 24, 32)))
    assert main(arguments(folder)) == 0
    assert "2 restored, 5 done before, 0 failed" in capsys.readouterr().out
    assert main(arguments(folder, "--outscale", "2")) == 0
    assert "7 restored, 0 done before" in capsys.readouterr().out
    keys = [record["key"] for record in records(folder) if record["path"] == "a.png"]
    assert len(keys) == len(set(keys)) == 3, "a photo or an option changed, the key did not"


def test_photo_whose_size_stays_the_same_is_restored_again(folder, rng, capsys):
    for restored in (7, 1, 0):
        if restored:
            Image.fromarray(photo_like(rng, 24, 32)).save(folder / "in/a.bmp")
        main(arguments(folder))
        assert f"{restored} restored" in capsys.readouterr().out


BATCH = plan.Batch("in", "out", Options(), (("small", "1" * 64), ("large", "2" * 64)), ("yunet",))


@pytest.mark.parametrize(
    "change",
    [
        {"options": Options(outscale=2)},
        {"options": Options(face_strength=0.5)},
        {"models": (("small", "1" * 64), ("large", "3" * 64))},
        {"models": (("small", "1" * 64), ("other", "2" * 64))},
        {"networks": ()},
        {"networks": ("yunet", "GFPGANv1.4")},
        {"half": False},
        {"auto_cpu_megapixels": 2.0},
        {"device": "cpu:bfloat16"},
    ],
    ids=str,
)
def test_digest_changes_with_whatever_determines_the_results(change):
    assert replace(BATCH, **change).digest != BATCH.digest


@pytest.mark.parametrize("change", [{"source": "b"}, {"output": "c"}, {"threads": 3}, {"device": "cpu"}])
def test_digest_does_not_depend_on_where_the_batch_runs(change):
    assert replace(BATCH, **change).digest == BATCH.digest


def test_failed_photos_are_retried_on_request_or_after_a_change(folder, capsys):
    main(arguments(folder))
    capsys.readouterr()
    assert main(arguments(folder, "--retry-failed")) == 1
    assert "broken.jpg: failed" in capsys.readouterr().err
    (folder / "in/broken.jpg").write_bytes((folder / "in/a.png").read_bytes())
    assert main(arguments(folder)) == 0


def test_order_of_records_does_not_depend_on_the_clock(folder, monkeypatch, capsys):
    main(arguments(folder))
    (file,) = (folder / "out/.manifest").glob("*.jsonl")
    file.rename(
        file.with_name(f"{time.time_ns() + 10**18:020}-0.jsonl")
    )  # by an earlier version, in the future
    with monkeypatch.context() as patched:
        patched.setattr(restorer.Restorer, "restore", lambda *_, **__: direct(folder, "a.png"))
        assert main(arguments(folder, "--retry-failed")) == 0
    capsys.readouterr()
    assert main(arguments(folder)) == 0
    assert "0 restored, 7 done before, 0 failed" in capsys.readouterr().out


def test_record_of_a_retried_photo_survives_a_kill(folder, monkeypatch, capsys):
    main(arguments(folder))
    with monkeypatch.context() as patched:
        patched.setattr(restorer.Restorer, "restore", lambda *_, **__: direct(folder, "a.png"))
        patched.setattr(manifest.Manifest, "flush", lambda _: None)
        patched.setattr(Storage, "remove", lambda *_: None)
        assert main(arguments(folder, "--retry-failed")) == 0
    capsys.readouterr()
    assert main(arguments(folder)) == 0
    assert "0 restored, 7 done before, 0 failed" in capsys.readouterr().out


def test_worker_with_other_weights_of_the_same_name_restores_nothing(folder):
    job = plan.prepare(
        plan.Batch(
            str(folder / "in"),
            str(folder / "out"),
            Options(model="custom/tiny", face_enhance="off"),
            weights=str(folder / "weights"),
            device="cpu:torch",
        )
    )
    save_network(folder / "weights/custom/tiny.safetensors", seed=2)
    with pytest.raises(WeightsUnavailable, match=f"another file here: .* not {job.models[0][1]}"):
        runner.run(job, plan.entries(job, plan.photos(job)[:1], []), pytest.fail)
    assert not result_names(folder)
    with pytest.raises(WeightsUnavailable, match="repair and colours here: none; .* with GFPGANv1.3"):
        runner.Worker(replace(job, networks=("GFPGANv1.3",)))


def test_options_and_weights_of_repair_and_colours_are_part_of_the_digest(folder):
    def digest(**options):
        chosen = Options(model="custom/tiny", face_enhance="off", **options)
        job = plan.prepare(
            plan.Batch(str(folder / "in"), str(folder / "out"), chosen, weights=str(folder / "weights"))
        )
        return job, job.digest

    jobs = [digest(), digest(repair="on"), digest(repair="auto"), digest(repair="on", repair_sensitivity=0.3)]
    assert len({digest for _, digest in jobs}) == len(jobs)
    job = jobs[1][0]
    assert [name.partition(" ")[0] for name in job.networks] == ["damage-detector", "damage-filler"]
    assert replace(job, networks=("damage-detector 0123", job.networks[1])).digest != job.digest
    for options in ({"colour": "auto"}, {"autopilot": True}):
        assert [name.partition(" ")[0] for name in digest(**options)[0].networks] == ["fading-estimator"]


def test_what_fills_wide_holes_belongs_to_a_batch_that_may_have_some(folder, monkeypatch):
    monkeypatch.setattr(plan.download, "ensure", lambda *_: None)
    monkeypatch.setattr(plan.sources, "is_present", lambda *_: True)
    names = {
        repair: [
            name.partition(" ")[0]
            for name in plan.present_networks(Options(face_enhance="off", repair=repair), folder)
        ]
        for repair in ("off", "auto", "on")
    }
    assert names["off"] == [] and names["on"] == [*names["auto"], "big-lama"]


def test_results_inside_the_photo_folder_are_not_restored_again(folder):
    inside = folder / "in/restored"
    command = arguments(folder)
    command[2] = str(inside)
    for _ in range(2):
        main(command)
        assert len(list(inside.rglob("*.png"))) == len(PHOTOS)


def kill_after(command: list[str], count: int, folder: Path) -> None:
    """Start a run and send SIGKILL once there are `count` results."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(result_names(folder)) < count and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.long
def test_killed_run_resumes_without_repeating_photos(folder, rng):
    save_network(folder / "weights/custom/tiny.safetensors", seed=1, features=64, convs=16)
    for index in range(40):
        (folder / f"in/more{index:02}.png").write_bytes(png(photo_like(rng, 32, 32)))
    slow = [sys.executable, str(ROOT / "tests/slow_cli.py"), *arguments(folder)]
    kill_after(slow, 8, folder)
    first = modification_times(folder)
    assert len(first) >= 8
    kill_after(slow, len(first) + 6, folder)
    part = folder / f"out/b/.{'0' * 32}.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"part of a result")
    command = [sys.executable, "-m", "restorer", *arguments(folder)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1
    repeated = [path for path, time_ns in first.items() if path.stat().st_mtime_ns != time_ns]
    assert len(repeated) <= 1, "only the photo whose record was not written yet"
    counts = Counter(record["path"] for record in records(folder))
    assert set(counts.values()) == {1} and len(counts) == 47
    assert len(results(folder)) == 46
    assert hidden_files(folder) == []
    by_path = records_by_path(folder)
    for path, data in expected_results(folder).items():
        assert (folder / "out" / by_path[path]["output"]).read_bytes() == data


@pytest.mark.slow
def test_photo_that_kills_the_process_fails_after_three_attempts(folder):
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
    command = [sys.executable, "-c", script, str(folder / "in/c.PNG"), *arguments(folder)]
    codes = [subprocess.run(command, cwd=ROOT, capture_output=True).returncode for _ in range(4)]
    assert codes == [9, 9, 9, 1]
    by_path = records_by_path(folder)
    assert by_path["c.PNG"]["error"] == "the process died 3 times while restoring this photo"
    assert sum(record["state"] == "restored" for record in by_path.values()) == len(PHOTOS) - 1


def test_full_disk_stops_the_run_and_fails_no_photo(folder, monkeypatch, capsys):
    real = Storage.write

    def write(self, path: str, data: bytes) -> None:
        if path.endswith(".png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, path, data)

    monkeypatch.setattr(Storage, "write", write)
    for _ in range(4):
        assert main(arguments(folder)) == 1
        assert "No space left" in capsys.readouterr().err
    monkeypatch.undo()
    assert [record["state"] for record in records(folder)] in ([], ["failed"]), (
        "the broken photo may have come first"
    )
    assert main(arguments(folder)) == 1
    assert len(results(folder)) == len(PHOTOS)


def test_missing_weights_stop_the_run_and_fail_no_photo(folder, capsys):
    command = arguments(folder, "--face-enhance", "on")
    for _ in range(4):
        assert main(command) == 1
        assert "yunet" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_lost_gpu_stops_the_process_and_counts_as_an_attempt(folder, monkeypatch, capsys):
    real, last = restorer.Restorer.restore, (folder / "in/two.png").read_bytes()

    def restore(self, data: bytes, **options):
        if data == last:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(self, data, **options)

    monkeypatch.setattr(restorer.Restorer, "restore", restore)
    for _ in range(3):
        assert main(arguments(folder)) == 1
        assert "the GPU failed" in capsys.readouterr().err
    assert main(arguments(folder)) == 1
    by_path = records_by_path(folder)
    assert by_path["two.png"]["error"].startswith("the process died 3 times")
    assert by_path["two.tif"]["state"] == "restored"


def test_impossible_result_name_fails_only_its_photo(folder):
    (folder / "out/c_4x.png/full").mkdir(parents=True)
    assert main(arguments(folder)) == 1
    by_path = records_by_path(folder)
    assert by_path["c.PNG"]["state"] == "failed"
    assert sum(record["state"] == "restored" for record in by_path.values()) == len(PHOTOS) - 1


def test_folders_of_photos_may_have_the_names_of_the_record_folders(folder):
    for name in ("manifest", "records"):
        (folder / "in" / name).mkdir()
        (folder / "in" / name / "p.jsonl.png").write_bytes((folder / "in/a.png").read_bytes())
    assert main(arguments(folder)) == main(arguments(folder)) == 1
    assert {"manifest/p.jsonl_4x.png", "records/p.jsonl_4x.png"} <= result_names(folder)


def test_damaged_records_repeat_only_their_photo(folder, capsys):
    main(arguments(folder))
    (file,) = (folder / "out/.manifest").glob("*.jsonl")
    file.write_text(file.read_text()[:-40])
    record = folder / "out/.records/00/0.json"
    record.parent.mkdir(parents=True)
    record.write_text("")
    capsys.readouterr()
    assert main(arguments(folder)) == 1
    assert "1 restored, 5 done before, 1 failed" in capsys.readouterr().out


def test_new_photo_does_not_replace_an_older_result(folder):
    (folder / "in/a_png.png").write_bytes((folder / "in/c.PNG").read_bytes())
    main(arguments(folder))
    before = results(folder)
    (folder / "in/a.tif").write_bytes((folder / "in/c.PNG").read_bytes())
    (folder / "in/a.png").write_bytes((folder / "in/two.png").read_bytes())
    main(arguments(folder))
    after = results(folder)
    assert after["a_png_4x.png"] == before["a_png_4x.png"]
    outputs = {record["path"]: record["output"] for record in records(folder)}
    assert len(set(outputs.values())) == len(outputs)
    assert set(outputs.values()) - {""} <= set(after)


def test_deleted_results_are_restored_again(folder, capsys):
    main(arguments(folder))
    (folder / "out/a_4x.png").unlink()
    capsys.readouterr()
    main(arguments(folder))
    assert "1 restored, 5 done before" in capsys.readouterr().out


def test_other_weights_or_precision_restore_everything_again(folder, capsys):
    main(arguments(folder))
    save_network(folder / "weights/custom/tiny.safetensors", seed=2)
    capsys.readouterr()
    main(arguments(folder))
    assert "6 restored, 0 done before" in capsys.readouterr().out
    assert main(arguments(folder, "--fp32")) == 1
    assert "6 restored, 0 done before" in capsys.readouterr().out


def test_only_bfloat16_among_cpu_backends_restores_everything_again(folder, monkeypatch, capsys):
    monkeypatch.setattr(backends, "has_bfloat16_kernels", lambda: True)  # slow without them, but it computes
    main(arguments(folder))
    before = results(folder)
    for device, restored in (("cpu:openvino", 0), ("cpu:bfloat16", 6), ("cpu:torch", 6)):
        capsys.readouterr()
        main(arguments(folder, "--device", device))
        assert f"{restored} restored" in capsys.readouterr().out
        assert (results(folder) == before) == (device != "cpu:bfloat16")


@pytest.mark.parametrize("device", ["cpu:0", "cuda:77"])
def test_absent_device_stops_the_run_and_fails_no_photo(folder, device, capsys):
    for _ in range(2):
        assert main(arguments(folder, "--device", device)) == 2
        assert repr(device) in capsys.readouterr().err
    assert not records(folder) and not results(folder)
    assert main(arguments(folder)) == 1
    assert "6 restored" in capsys.readouterr().out


def test_bfloat16_without_kernels_stops_the_run_and_fails_no_photo(folder, monkeypatch, capsys):
    monkeypatch.setattr(backends, "has_bfloat16_kernels", lambda: False)
    assert main(arguments(folder, "--device", "cpu:bfloat16")) == 2
    assert "use cpu" in capsys.readouterr().err
    assert not records(folder) and not results(folder)


def test_device_that_fails_at_the_first_photo_stops_the_run(folder, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(backends, "build", mock.Mock(side_effect=InvalidOption("no such GPU")))
        assert main(arguments(folder)) == 2
        assert "no such GPU" in capsys.readouterr().err
    assert main(arguments(folder)) == 1
    assert "6 restored" in capsys.readouterr().out


def test_a_size_that_suits_only_the_stored_photo_fails_that_photo(folder, rng, capsys):
    large = pictures.pillow(photo_like(rng, 100, 100), "AVIF")
    (folder / "in/crop.avif").write_bytes(with_aperture(large, 10, 1, 10, 1, 0, 1, 0, 1))
    assert main(arguments(folder, "--long-side", "128")) == 1
    by_path = records_by_path(folder)
    assert by_path["crop.avif"]["state"] == "failed" and "12.8 times" in by_path["crop.avif"]["error"]
    assert "6 restored" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_records_below_a_folder_with_brackets_are_read_and_removed(tmp_path, kind):
    storage = Storage(f"{kind}://{tmp_path}/scans [1950]")
    storage.write("a.json", b"{}")
    assert storage.read_all(["a.json"]) == {"a.json": b"{}"}
    storage.remove_all(["a.json", "b.json"])
    assert not storage.exists("a.json")
    storage.write(".records/a.json", b"{}")
    storage.remove(".records")
    storage.remove(".records")
    assert not storage.paths(".records")


def test_photos_that_failed_before_are_counted_and_can_be_retried(folder, capsys):
    assert main(arguments(folder)) == 1
    assert "earlier runs" not in capsys.readouterr().err
    assert main(arguments(folder)) == 1
    assert "failed in earlier runs: 1; --retry-failed restores these too" in capsys.readouterr().err
    assert main(arguments(folder, "--retry-failed")) == 1
    assert "earlier runs" not in (err := capsys.readouterr().err) and "broken.jpg: failed" in err


def test_a_file_is_no_folder_of_photos(folder, capsys):
    command = arguments(folder)
    command[1] = str(folder / "in/a.png")
    assert main(command) == 2
    assert "a.png is not a folder; name a folder of photos" in capsys.readouterr().err


def test_link_to_nothing_fails(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "absent.png")
    left_out = []
    assert not [*Storage(str(tmp_path)).files(left_out)]
    assert [(one.path, one.failed) for one in left_out] == [(str(tmp_path / "gone.png"), True)]


def test_symbolic_links_are_followed(folder):
    (folder / "in/link.png").symlink_to(folder / "in/a.png")
    (folder / "same").symlink_to(folder / "in")
    command = arguments(folder)
    main(command)
    assert "link_4x.png" in result_names(folder)
    command[2] = str(folder / "same")
    assert main(command) == 2, "the output is the source"


def test_results_in_a_linked_folder_count_as_done(folder, capsys):
    (folder / "in/broken.jpg").unlink()
    (folder / "disk").mkdir()
    (folder / "out").mkdir()
    (folder / "out/b").symlink_to(folder / "disk")
    for restored, before in ((6, 0), (0, 6)):
        assert main(arguments(folder)) == 0
        assert f"{restored} restored, {before} done before" in capsys.readouterr().out
    assert len(list((folder / "disk").iterdir())) == 2


def test_a_folder_inside_that_of_the_results_is_refused(folder, capsys):
    """in/in/b.png with the size mark may be the name of a photo, in/b_2x.png."""
    command = arguments(folder)
    command[2] = str(folder)
    assert main(command) == 2
    assert "is inside the folder of the results" in capsys.readouterr().err


def test_result_that_is_gone_is_restored_after_a_kill_while_records_are_removed(folder, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "remove_all", lambda *_: None)
        patched.setattr(Storage, "remove", lambda *_: None)
        assert main(arguments(folder)) == 1
    (folder / "out/a_4x.png").unlink()
    capsys.readouterr()
    assert main(arguments(folder, "--retry-failed")) == 1
    assert "1 restored, 5 done before, 1 failed" in capsys.readouterr().out
    assert (folder / "out/a_4x.png").read_bytes() == direct(folder, "a.png").data


def test_unreadable_folder_fails_and_does_not_stop_the_run(folder, monkeypatch, capsys):
    (folder / "in/broken.jpg").unlink()
    with monkeypatch.context() as patched:
        refuse_to_list(patched, "/in/b")
        assert main(arguments(folder)) == 1
    printed = capsys.readouterr()
    assert f"{folder}/in/b: failed, Permission denied" in printed.err
    assert "4 restored, 0 done before, 1 failed, 2 left out" in printed.out
    for name in ("notes.txt", ".hidden.png"):
        assert f"{folder}/in/{name}: left out, " in printed.err
    assert main(arguments(folder)) == 0
    assert "2 restored, 4 done before, 0 failed" in capsys.readouterr().out


def test_restore_and_batch_agree_on_the_photos_of_a_folder(folder, capsys):
    (folder / "other").mkdir()
    (folder / "other/far.png").write_bytes((folder / "in/a.png").read_bytes())
    for name, target in (("album", "../other"), ("far.png", "../other/far.png"), ("again.png", "a.png")):
        (folder / "in" / name).symlink_to(target)

    def outcome() -> tuple[set[str], list[str]]:
        errors = capsys.readouterr().err.splitlines()
        return result_names(folder), sorted(line for line in errors if "left out" in line)

    main(arguments(folder))
    names, left_out = outcome()
    assert {"far_4x.png", "again_4x.png"} < names and len(left_out) == 3
    shutil.rmtree(folder / "out")
    main(["restore", str(folder / "in"), "-o", str(folder / "out"), *arguments(folder)[3:]])
    assert outcome() == (names, left_out)


def test_photos_that_do_not_suit_the_size_fail_alone(folder, rng):
    (folder / "in/large.png").write_bytes(png(photo_like(rng, 24, 70)))
    assert main(arguments(folder, "--long-side", "64")) == 1
    by_path = records_by_path(folder)
    assert by_path["large.png"]["error"].endswith("choose from 70 to 560")
    assert by_path["a.png"]["output"] == "a_64px.png"
    assert Image.open(folder / "out/a_64px.png").size == (64, 48)


def test_outputs_are_checked_before_the_first_photo(folder, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    assert main(arguments(folder)) == 1
    assert "the results need at least" in capsys.readouterr().err
    assert not result_names(folder)
    shutil.rmtree(folder / "out")
    (folder / "out").write_text("a file")
    assert main(arguments(folder)) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_times_can_be_copied_between_folders_of_this_machine_only(folder, capsys):
    command = arguments(folder, "--keep-times")
    command[2] = "memory://done"
    assert main(command) == 2
    assert "keep_times needs folders on this machine" in capsys.readouterr().err


def test_second_run_at_the_same_time_is_rejected(folder, capsys):
    with manifest.open_manifest(Storage(str(folder / "out"))):
        assert main(arguments(folder)) == 2
    assert "another run is writing" in capsys.readouterr().err
    assert main(arguments(folder)) == 1


def test_warnings_of_results_are_counted_and_recorded(folder, capsys):
    assert main(arguments(folder, "--face-enhance", "auto")) == 1
    printed = capsys.readouterr()
    assert "6 with warnings" in printed.out
    assert "face detection skipped" in printed.err
    assert all("yunet" in record["warnings"] for record in records(folder) if record["state"] == "restored")


def test_concurrent_photos_give_the_same_results_and_an_interrupted_one_runs_alone(folder, monkeypatch):
    monkeypatch.setattr(runner, "_concurrency", lambda job: 3)
    running, counts, beside_interrupted = set(), [], []
    restore = runner.Worker._restore

    def watched(worker, entry, record):
        running.add(entry.path)
        counts.append(len(running))
        time.sleep(0.1)
        if record.tries == 1:
            wait_until(lambda: max(counts) == 3)  # finish no photo before three ran at the same time
        else:
            beside_interrupted.append(set(running) - {entry.path})
        try:
            return restore(worker, entry, record)
        finally:
            running.discard(entry.path)

    existing_record = runner.Worker._existing_record

    def interrupted(worker, entry):
        if entry.path == "c.PNG":
            return manifest.Record(entry.path, entry.stamp, worker.job.digest, manifest.STARTED)
        return existing_record(worker, entry)

    monkeypatch.setattr(runner.Worker, "_restore", watched)
    monkeypatch.setattr(runner.Worker, "_existing_record", interrupted)
    assert main(arguments(folder)) == 1, "one photo is broken"
    assert sorted(results(folder).values()) == sorted(expected_results(folder).values())
    assert max(counts) == 3 and beside_interrupted == [set()]
    assert Counter(record["state"] for record in records(folder)) == {"restored": 6, "failed": 1}


def test_other_storages_are_read_and_written(folder):
    memory = fsspec.filesystem("memory")
    for name in PHOTOS:
        memory.pipe_file(f"/scans/{name}", (folder / "in" / name).read_bytes())
    job = plan.prepare(
        plan.Batch(
            "memory://scans",
            "memory://done",
            Options(model="custom/tiny", face_enhance="off"),
            weights=str(folder / "weights"),
            device="cpu:torch",
        )
    )
    todo_counts, entries = [], []
    for _ in range(2):
        with manifest.open_manifest(Storage(job.output)) as opened:
            todo = [photo for photo in plan.photos(job) if not opened.done(photo, job.digest)[0]]
            todo_counts.append(len(todo))
            entries += plan.entries(job, todo, [])
            runner.run(job, entries if todo else [], opened.note)
    assert todo_counts == [len(PHOTOS), 0]
    data = expected_results(folder)
    for entry in entries:
        assert memory.cat_file(f"/done/{entry.target}.png") == data[entry.path]
    memory.rm("/scans", recursive=True)
    memory.rm("/done", recursive=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "-1"], "workers is -1"),
        (["--workers", "2"], "add --ray"),
        (["--cpus-per-worker", "2"], "add --ray"),
        (["--cpus-per-worker", "0"], "cpus_per_worker is 0"),
        (["--gpus-per-worker", "-1"], "gpus_per_worker is -1"),
        (["--model", "nothing"], "'nothing'"),
        (["--outscale", "9"], "outscale is 9.0"),
    ],
)
def test_invalid_options_are_wrong_usage(folder, options, message, capsys):
    assert main(arguments(folder, *options)) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_invalid_folders_are_wrong_usage(folder, capsys):
    (folder / "empty").mkdir()
    for source, output, message in (
        ("nowhere", "out", "nowhere does not exist"),
        ("in", "in", "name another for the results"),
        ("nokind://x", "out", "cannot be reached"),
        ("empty", "out", "no photos found"),
    ):
        roots = [name if "://" in name else str(folder / name) for name in (source, output)]
        assert main(["batch", *roots, *arguments(folder)[3:]]) == 2
        assert message in capsys.readouterr().err


def test_pages_and_frames_of_a_folder(folder, rng, capsys):
    for name in PHOTOS:
        (folder / "in" / name).unlink()
    first, *rest = (Image.fromarray(photo_like(rng, 16, 20)) for _ in range(3))
    first.save(folder / "in/scan.tif", save_all=True, append_images=rest)
    first.save(folder / "in/move.webp", save_all=True, append_images=rest, duration=50, lossless=True)
    assert main(arguments(folder)) == 1, "the broken photo"
    assert result_names(folder) == {"scan_4x.tif", "move_4x.webp"}
    assert main(arguments(folder, "--pages", "all", "--frames", "all")) == 1
    pages = {f"scan_4x_p{number}.tif" for number in (1, 2, 3)}
    assert result_names(folder) == {"scan_4x.tif", "move_4x.webp", *pages}
    assert Image.open(folder / "out/move_4x.webp").n_frames == 3
    assert records_by_path(folder)["scan.tif"]["output"] == "scan_4x_p1.tif"
    first.save(folder / "in/scan.png")
    capsys.readouterr()
    assert main(arguments(folder, "--pages", "all", "--frames", "all", "--format", "png")) == 1
    assert "3 restored, 0 done before, 1 failed" in capsys.readouterr().out, "with another format"
    assert main(arguments(folder, "--pages", "all", "--frames", "all", "--format", "png")) == 1
    assert "0 restored, 3 done before, 1 failed" in capsys.readouterr().out
    assert main(arguments(folder, "--long-side", "40", "--pages", "all")) == 1
    widths = [Image.open(folder / f"out/scan_tif_40px_p{number}.tif").width for number in (1, 2, 3)]
    assert widths == [40, 40, 40]
