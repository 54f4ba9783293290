"""The command line: its output, exit status and files, in this process and in one of its own."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

import restorer
from restorer import InvalidOption
from restorer.__main__ import main
from restorer.cli.parser import device_name, limits, parser
from restorer.models import registry, sources
from restorer.models.registry import MODELS
from restorer.options import Options
from tests.conftest import photo_like, refuse_to_list, save_network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_network(folder / "custom/tiny.safetensors", seed=1)
    save_network(folder / "custom/other.pth", seed=2, scale=2)
    save_network(folder / "custom/slow.pth", seed=3, features=24, convs=4)
    save_network(folder / "custom/realesr-general-x4v3.pth", seed=4)
    save_network(folder / "custom/realesr-general-wdn-x4v3.pth", seed=5)
    (folder / "custom/broken.pth").write_bytes(b"not weights")
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, weights) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RESTORER_WEIGHTS", str(weights))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # enough for these tiny networks
    return tmp_path


def photos(*names: str, width: int = 20, height: int = 14) -> None:
    for seed, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo_like(np.random.default_rng(seed), height, width)).save(name)


def process(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "restorer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def run(*arguments: str) -> int:
    """Run `restorer restore` in this process, which has imported torch already."""
    return main(["restore", *arguments])


def files_in(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.slow
def test_photos_and_folders_in_one_run():
    photos("photo.jpg", "my scans/a.jpg", "my scans/a.png", "my scans/1950/Größe 写真.webp")
    Path("my scans/cut.jpg").write_bytes(Path("photo.jpg").read_bytes()[:300])
    Path("my scans/notes.txt").write_text("no photo")
    arguments = ["photo.jpg", "my scans/", "-o", "my scans/out", "--model", "custom/tiny"]
    arguments += ["--face-enhance", "off", "--outscale", "4", "--format", "png"]
    finished = process(*arguments, umask=0o027)
    assert finished.returncode == 1
    names = {"photo_4x.png", "a_jpg_4x.png", "a_png_4x.png", "1950/Größe 写真_4x.png"}
    assert files_in("my scans/out") == names
    lines = finished.stdout.splitlines()
    by_source = {line.partition(" -> ")[0]: line for line in lines}
    for source, target in [
        ("photo.jpg", "photo_4x.png"),
        ("my scans/1950/Größe 写真.webp", "1950/Größe 写真_4x.png"),
    ]:
        assert re.fullmatch(
            re.escape(f"{source} -> my scans/out/{target}: 80 x 56, custom/tiny, ") + r"\d+\.\d s",
            by_source[source],
        )
    summary = r"4 restored, 0 skipped, 1 failed, 1 left out in \d+\.\d s"
    assert len(lines) == 5 and re.fullmatch(summary, lines[-1])
    left_out, using, failed = finished.stderr.splitlines()
    assert left_out.startswith("my scans/notes.txt: left out, ")
    assert re.fullmatch(r"using custom/tiny \(custom file\) on cpu:\w+", using)
    assert failed.startswith("my scans/cut.jpg: failed, ")
    api = restorer.Restorer(model="custom/tiny", outscale=4, format="png", face_enhance="off")
    for name in ("photo.jpg", "my scans/a.jpg", "my scans/a.png"):
        target = by_source[name].partition(" -> ")[2].partition(": ")[0]
        assert Path(target).read_bytes() == api.restore(Path(name).read_bytes()).data
    assert all((Path("my scans/out") / name).stat().st_mode & 0o777 == 0o640 for name in names)


@pytest.mark.slow
def test_interrupt_leaves_only_complete_files():
    photos(*(f"in/{number}.png" for number in range(30)), width=128, height=128)
    options = ["in", "-o", "out", "--model", "custom/slow", "--tile", "64"]
    interrupted = subprocess.Popen(
        [sys.executable, "-u", ROOT / "tests/slow_cli.py", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a background shell ignores SIGINT, and its processes inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert interrupted.stdout and interrupted.stdout.readline().startswith("in/0.png -> out/0_4x.png")
    time.sleep(0.05)
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130
    assert errors.splitlines()[1:] == ["restorer: stopped; finished photos are kept"]
    results = sorted(Path("out").iterdir())
    assert 1 <= len(results) < 30 and {path.suffix for path in results} == {".png"}
    for path in results:
        assert Image.open(path).convert("RGB").size == (512, 512)


PRINT_HEAVY_IMPORTS = """
import runpy, sys
sys.argv = ["restorer", *{arguments!r}]
try:
    {statement}
except SystemExit as stop:
    print("exit", stop.code, file=sys.stderr)
heavy = {{"torch", "numpy", "PIL", "cv2", "gradio", "torchvision", "basicsr"}}
print(*sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("statement", "arguments", "stderr"),
    [
        ("import restorer", [], "\n"),
        ("import restorer; restorer.Options, restorer.UnknownModel", [], "\n"),
        ("runpy.run_module('restorer', run_name='__main__')", ["--help"], "exit 0\n\n"),
        ("runpy.run_module('restorer', run_name='__main__')", ["restore", "--help"], "exit 0\n\n"),
        ("runpy.run_module('restorer', run_name='__main__')", ["--version"], "exit 0\n\n"),
        ("runpy.run_module('restorer', run_name='__main__')", ["models"], "exit 0\n\n"),
    ],
)
def test_heavy_packages_are_imported_only_when_needed(statement, arguments, stderr):
    script = PRINT_HEAVY_IMPORTS.format(statement=statement, arguments=arguments)
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.stderr == stderr
    assert bool(finished.stdout) == bool(arguments)


def test_help_names_every_option():
    text = process("restore", "--help").stdout
    for name in (
        "--model",
        "--outscale",
        "--format",
        "--overwrite",
        "-o",
        "--weights-dir",
        "--denoise",
        "--tile",
        "--device",
        "--backend",
    ):
        assert re.search(rf"^ +(-\w, )?{name}\b", text, re.MULTILINE), name
    assert process().stdout == process("--help").stdout != ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in"], "in is a folder; name another folder for its results with -o"),
        (["in", "-o", "in"], "in is a folder"),
        (["empty", "-o", "out"], "no photos found"),
        (["a.jpg", "--model", "custom/tyny"], "unknown model 'custom/tyny'; did you mean 'custom/tiny'?"),
        (["a.jpg", "--model", "realesr-general"], "did you mean 'realesr-general-x4v3'?"),
        (["a.jpg", "--model", "GFPGANv1.4"], "GFPGANv1.4 is a 'face' model"),
        (["a.jpg", "--outscale", "9"], "outscale is 9.0; it must be from 1 to 8"),
        (["a.jpg", "--outscale", "nan"], "outscale is nan"),
        (["a.jpg", "--quality", "0"], "quality is 0"),
        (["a.jpg", "--tile", "5"], "tile is 5; it must be from 32 to 4096, or 0"),
        (["a.jpg", "--model", "custom/tiny", "--denoise", "0.5"], "custom/tiny does not support denoise"),
        (["a.jpg", "--model", "custom/tiny", "--device", "abacus"], "unknown device 'abacus'"),
        (["a.jpg", "--device", "cuda", "--backend", "ncnn"], "backend ncnn does not run on device 'cuda'"),
        (["a.jpg", "-o", "b.gif"], "b.gif: cannot write .gif files; use .png, .jpg"),
        (["a.jpg", "-o", "b.gif", "--frames", "all"], "b.gif: cannot write .gif files; use .png, .jpg"),
        (["a.gif", "-o", "b.gif", "--frames", "all"], "b.gif: name a folder with -o; an animation in GIF"),
        (["a.jpg", "-o", "b.png", "--format", "jpeg"], "b.png is not a jpeg file name"),
        (["a.jpg", "-o", "a.jpg", "--overwrite"], "a.jpg is the photo itself"),
        (["a.jpg", "in/b.jpg", "-o", "c.png"], "c.png is a file; name a folder with -o for several photos"),
    ],
)
def test_wrong_usage_prints_one_line_and_exits_with_2(arguments, message, capsys):
    photos("a.jpg", "in/b.jpg")
    Path("empty").mkdir()
    before = files_in(".")
    assert run(*arguments) == 2
    out, errors = capsys.readouterr()
    assert out == "" and errors.startswith("restorer: ") and message in errors
    assert errors.count("\n") == 1
    assert files_in(".") == before


@pytest.mark.parametrize(
    "arguments",
    [["--format", "gif"], ["--outscale", "big"], ["--backend", "abacus"], ["--wrong"], []],
)
def test_arguments_that_argparse_rejects_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, *(["a.jpg"] if arguments else []))
    assert stopped.value.code == 2
    assert "usage: python -m restorer " in capsys.readouterr().err


def test_missing_or_broken_weights_stop_the_run_at_the_first_photo(capsys):
    photos("a.jpg", "b.jpg")
    absent = next(model for model in MODELS if model.name == "RealESRNet_x4plus")
    assert run("a.jpg", "b.jpg", "--model", absent.name, "--weights-dir", "new") == 1
    errors = capsys.readouterr().err
    assert errors.count("restorer: RealESRNet_x4plus") == 1
    for part in (absent.url, str(Path("new").absolute()), "RealESRNet_x4plus.pth"):
        assert part in errors
    assert run("a.jpg", "--model", "custom/broken") == 1
    assert "broken.pth" in capsys.readouterr().err
    assert files_in(".") <= {"a.jpg", "b.jpg", "new/.RealESRNet_x4plus.pth.lock"}


def test_existing_results_are_skipped_without_overwrite(capsys):
    photos("in/a.png", "in/b.png")
    assert run("in", "-o", "out", "--model", "custom/tiny") == 0
    Path("out/a_4x.png").write_bytes(b"old")
    Path("out/b_4x.png").unlink()
    capsys.readouterr()
    assert run("in", "-o", "out", "--model", "custom/tiny") == 0
    out = capsys.readouterr().out
    assert "in/a.png: skipped, out/a_4x.png exists" in out and "in/b.png -> " in out
    assert "1 restored, 1 skipped, 0 failed" in out
    assert Path("out/a_4x.png").read_bytes() == b"old"
    assert run("in", "-o", "out", "--model", "custom/tiny", "--overwrite") == 0
    assert "2 restored, 0 skipped" in capsys.readouterr().out
    assert Image.open("out/a_4x.png").size == (80, 56)
    assert files_in("out") == {"a_4x.png", "b_4x.png"}


def test_no_model_is_loaded_if_all_results_exist(capsys):
    photos("a.png", "a_4x.png")
    assert run("a.png", "--model", "custom/broken") == 0
    assert capsys.readouterr().out.startswith(
        "a.png: skipped, a_4x.png exists (use --overwrite to restore it again)\n0 res"
    )


def test_existing_result_of_a_photo_with_a_wrong_suffix_is_skipped(capsys):
    photos("really.png")
    Path("really.png").rename("a.jpg")
    Path("a_4x.png").write_bytes(b"mine")
    assert run("a.jpg", "--model", "custom/tiny") == 0
    assert "a.jpg: skipped, a_4x.png exists" in capsys.readouterr().out
    assert Path("a_4x.png").read_bytes() == b"mine"
    assert run("a.jpg", "--model", "custom/tiny", "--overwrite") == 0
    assert Image.open("a_4x.png").size == (80, 56)


def test_photo_is_never_replaced_by_a_result(capsys):
    photos("a.png", "a_4x.png")
    old = Path("a_4x.png").read_bytes()
    assert run("a.png", "a_4x.png", "--model", "custom/tiny", "--overwrite") == 0
    assert "a.png: skipped, a_4x.png is one of the photos" in capsys.readouterr().out
    assert Path("a_4x.png").read_bytes() == old
    assert files_in(".") == {"a.png", "a_4x.png", "a_4x_4x.png"}


def test_output_may_name_a_file(capsys):
    photos("a.png")
    assert run("a.png", "-o", "new folder/b.jpg", "--model", "custom/other", "--outscale", "2") == 0
    assert "a.png -> new folder/b.jpg: 40 x 28, custom/other" in capsys.readouterr().out
    with Image.open("new folder/b.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (40, 28))
    assert files_in("new folder") == {"b.jpg"}


def test_default_output_is_beside_the_photo_in_its_format():
    photos("in/a.webp", "in/a.tif")
    assert run("in/a.webp", "in/a.tif", "--model", "custom/tiny", "--outscale", "1.5") == 0
    formats = {name: Image.open(f"in/{name}").format for name in files_in("in") if "1.5x" in name}
    assert formats == {"a_webp_1.5x.webp": "WEBP", "a_tif_1.5x.tif": "TIFF"}


def test_missing_and_unreadable_photos_do_not_stop_the_others(capsys):
    photos("a.png", "z.png")
    Path("text.png").write_text("words")
    Path("empty.png").touch()
    photos(long := "n" * 251 + ".png")
    names = ["none.png", "text.png", "a.png", "empty.png", long, "z.png"]
    assert run(*names, "--model", "custom/tiny", "--format", "jpeg") == 1
    out, errors = capsys.readouterr()
    assert out.count(" -> ") == 3 and "3 restored, 0 skipped, 3 failed" in out
    assert "none.png: failed, No such file or directory\n" in errors
    assert errors.count("failed, ") == 3 and errors.count("using custom/tiny") == 1
    assert errors.count("\n") == 4
    results = {"a_4x.jpg", "z_4x.jpg", "n" * 247 + "_4x.jpg"}
    assert results == {name for name in files_in(".") if "_4x" in name}


def test_outputs_are_checked_before_any_model_is_loaded(capsys, monkeypatch):
    photos("a.png")
    Path("out").write_text("a file")
    assert run("a.png", "-o", "out/deeper", "--model", "custom/broken") == 1
    assert "a.png: failed, out/deeper cannot be written: Not a directory" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        assert run("a.png", "--model", "custom/broken") == 1
    assert "the results need at least" in capsys.readouterr().err
    Path("folder/a_4x.png").mkdir(parents=True)
    assert run("a.png", "-o", "folder", "--model", "custom/broken", "--overwrite") == 1
    assert "a.png: failed, folder/a_4x.png cannot be written: Is a directory" in capsys.readouterr().err


def test_unreadable_folder_is_a_failure_that_does_not_stop_the_others(capsys, monkeypatch):
    photos("in/a.png", "in/closed/b.png")
    refuse_to_list(monkeypatch, "closed")
    assert run("in", "-o", "out", "--model", "custom/tiny") == 1
    out, errors = capsys.readouterr()
    assert "in/closed: failed, Permission denied" in errors and "1 restored, 0 skipped, 1 failed" in out
    assert run("in/closed", "-o", "out", "--model", "custom/tiny") == 1


def test_long_side_print_size_and_dpi_set_pixels_and_resolution(capsys):
    photos("a.png", width=60, height=40)
    common = ["a.png", "--model", "custom/tiny", "--overwrite"]
    for arguments, name, size, dpi in [
        (["--long-side", "150"], "a_150px.png", (150, 100), None),
        (["--print-size", "2x3cm"], "a_2x3cm.png", (354, 236), 300),
        (["--print-size", "1x0.5in", "--dpi", "100"], "a_1x0.5in.png", (75, 50), 100),
        (["--print-size", "5x5mm", "--dpi", "100"], "a_5x5mm.png", (60, 40), 305),
        (["--outscale", "2", "--dpi", "72"], "a_2x.png", (120, 80), 72),
    ]:
        assert run(*common, *arguments) == 0
        with Image.open(name) as image:
            assert image.size == size
            assert image.info.get("dpi") == (pytest.approx((dpi, dpi), abs=0.01) if dpi else None)
    capsys.readouterr()
    for arguments, message in [
        (["--long-side", "50"], "choose from 60 to 480"),
        (["--print-size", "30x20cm"], "at 300 dpi it needs 59.1 times the photo's 60 x 40 pixels"),
    ]:
        assert run(*common, *arguments) == 1
        assert message in capsys.readouterr().err
    for arguments, message in [
        (["--long-side", "-1"], "from 0 to 100000"),
        (["--print-size", "A4"], "write it as 30x20cm"),
        (["--print-size", "0x20cm"], "the limits are 0.1 and 1000 inches"),
        (["--print-size", "3x2cm", "--long-side", "90"], "use one"),
        (["--max-megapixels", "0"], "must be above 0"),
    ]:
        assert run(*common, *arguments) == 2
        assert message in capsys.readouterr().err


def test_limit_of_megapixels_can_be_raised_and_lowered(capsys):
    photos("a.png", width=60, height=40)
    assert run("a.png", "--model", "custom/tiny", "--max-megapixels", "0.002") == 1
    assert "the limit is 0.0; --max-megapixels changes it" in capsys.readouterr().err
    assert run("a.png", "--model", "custom/tiny", "--max-megapixels", "0.0024") == 1, "16 times the pixels"
    assert run("a.png", "--model", "custom/tiny", "--max-megapixels", "0.0024", "--outscale", "2") == 0
    assert limits(200) == restorer.Limits(200_000_000, 800_000_000)
    assert limits(100) == restorer.Limits()


def test_quality_is_lowered_to_fit_a_size_in_bytes(capsys):
    photos("a.jpg", width=60, height=40)
    assert run("a.jpg", "--model", "custom/tiny", "-o", "full.jpg") == 0
    limit = Path("full.jpg").stat().st_size // 2
    capsys.readouterr()
    assert run("a.jpg", "--model", "custom/tiny", "-o", "c.jpg", "--max-bytes", str(limit)) == 0
    quality = int(re.findall(r"lowered from 95 to (\d+)", capsys.readouterr().out)[0])
    data = Path("c.jpg").read_bytes()
    options = ["--model", "custom/tiny", "-o", "b.jpg", "--overwrite", "--quality"]
    images = [image_data("b.jpg") for one in (quality, quality + 1) if run("a.jpg", *options, str(one)) == 0]
    assert images[0] == image_data("c.jpg")
    assert len(data) <= limit < len(data) + len(images[1]) - len(images[0])
    assert run("a.jpg", "--model", "custom/tiny", "-o", "d.jpg", "--max-bytes", "100") == 1
    assert "max_bytes is 100; use another format or a smaller scale" in capsys.readouterr().err
    assert run("a.jpg", "--model", "custom/tiny", "-o", "d.png", "--max-bytes", "2000") == 1
    assert not Path("d.jpg").exists() and not Path("d.png").exists()


def test_results_keep_the_times_of_their_photos():
    photos("in/a.png")
    os.utime("in/a.png", ns=(10**18, 10**18 + 7))
    run("in/a.png", "--model", "custom/tiny", "-o", "b.png")
    assert Path("b.png").stat().st_mtime_ns > 10**18 + 7
    assert run("in/a.png", "--model", "custom/tiny", "-o", "b.png", "--overwrite", "--keep-times") == 0
    assert Path("b.png").stat().st_mtime_ns == 10**18 + 7
    assert main(["batch", "in", "out", "--model", "custom/tiny", "--keep-times"]) == 0
    assert Path("out/a_4x.png").stat().st_mtime_ns == 10**18 + 7


def image_data(name: str) -> bytes:
    """The file without its EXIF block, whose length depends on the options that it lists."""
    data = Path(name).read_bytes()
    start = data.index(b"Exif\0\0") - 2
    return data[: start - 2] + data[start + int.from_bytes(data[start : start + 2]) :]


def test_named_model_is_used(capsys):
    photos("a.png")
    results = set()
    for name in ("custom/tiny", "custom/other", "custom/realesr-general-x4v3"):
        assert run("a.png", "-o", "out.png", "--model", name, "--overwrite") == 0
        assert f", {name}, " in capsys.readouterr().out
        results.add(Path("out.png").read_bytes())
    assert len(results) == 3


def test_auto_names_the_model_that_it_uses(capsys, tmp_path):
    photos("a.png")
    save_network(tmp_path / "w/custom/mine.pth", seed=6)  # used only by name
    assert run("a.png", "--weights-dir", "w") == 0
    out, errors = capsys.readouterr()
    assert f", {registry.BUILT_IN}, " in out
    assert re.fullmatch(rf"using {registry.BUILT_IN} \(built in\) on cpu:\w+\n", errors)


@pytest.mark.parametrize("arguments", [["--backend", "ncnn"], ["--device", "cpu:ncnn"]])
def test_backend_can_be_chosen(arguments, capsys):
    photos("a.png")
    assert run("a.png", "--model", "custom/tiny", *arguments) == 0
    assert capsys.readouterr().err == "using custom/tiny (custom file) on cpu:ncnn\n"


@pytest.mark.parametrize(
    ("device", "backend", "name"),
    [
        (None, "auto", None),
        ("cuda:1", "auto", "cuda:1"),
        ("cpu:ncnn", "auto", "cpu:ncnn"),
        (None, "openvino", "cpu:openvino"),
        ("cpu", "bfloat16", "cpu:bfloat16"),
        ("cpu:ncnn", "ncnn", "cpu:ncnn"),
        ("vulkan", "ncnn", "vulkan"),
    ],
)
def test_device_and_backend_give_a_device_name(device, backend, name):
    assert device_name(device, backend) == name


@pytest.mark.parametrize(
    ("device", "backend"), [("cuda", "ncnn"), ("mps", "torch"), ("vulkan", "openvino"), ("cpu:ncnn", "torch")]
)
def test_backend_of_another_device_is_rejected(device, backend):
    with pytest.raises(InvalidOption, match=f"backend {backend} does not run on device '{device}'"):
        device_name(device, backend)


@pytest.mark.parametrize(
    "arguments", [["restore", "a"], ["batch", "in", "out"], ["cost"]], ids=lambda it: it[0]
)
def test_commands_that_upscale_accept_a_backend(arguments):
    assert parser().parse_args(arguments).backend == "auto"
    assert parser().parse_args([*arguments, "--backend", "openvino"]).backend == "openvino"


def test_faces_has_no_backend_as_detectors_do_not_use_one(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["faces", "a", "--backend", "ncnn"])
    assert "unrecognized arguments: --backend" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "first", "second"),
    [
        ("--denoise", ["0"], ["0.5"]),
        ("--denoise", ["0.5"], ["1"]),
        ("--quality", ["20"], ["90"]),
        ("--outscale", ["2"], ["3"]),
        ("--no-metadata", None, []),
        ("--remove-gps", None, []),
    ],
)
def test_options_change_the_result(option, first, second, capsys):
    exif = Image.Exif()
    exif[0x010E] = "grandmother"
    exif.get_ifd(0x8825)[1] = "N"
    Image.fromarray(photo_like(np.random.default_rng(1), 16, 16)).save("a.jpg", exif=exif)
    results = []
    for values in (first, second):
        arguments = [] if values is None else [option, *values]
        model = ["--model", "custom/realesr-general-x4v3"]
        assert run("a.jpg", "-o", "b.jpg", "--overwrite", *model, *arguments) == 0
        results.append(Path("b.jpg").read_bytes())
    assert results[0] != results[1]


def test_tile_option_is_used(monkeypatch, capsys):
    photos("a.png", width=100, height=40)
    tiles = []
    upscale = restorer.pipeline.upscale_matched
    monkeypatch.setattr(
        restorer.pipeline,
        "upscale_matched",
        lambda *args, **kwargs: tiles.append(kwargs["tile"]) or upscale(*args, **kwargs),
    )
    assert run("a.png", "--model", "custom/tiny", "--tile", "48") == 0
    assert tiles == [48]


def test_face_options_are_parsed():
    arguments = ["--face-enhance", "on", "--face-model", "RestoreFormer", "--face-detector", "retinaface"]
    arguments += ["--face-strength", "0.5", "--face-mask", "parsing", "--face-large"]
    parsed = parser().parse_args(["restore", "a.jpg", *arguments])
    values = {name: getattr(parsed, name) for name in Options.names() if name.startswith("face_")}
    assert list(values.values()) == ["on", "RestoreFormer", "retinaface", 0.5, "parsing", True]
    assert all(value != getattr(Options(), name) for name, value in values.items())


def test_defaults_are_those_of_options():
    parsed = parser().parse_args(["restore", "a.jpg"])
    for name in Options.names():
        assert getattr(parsed, name) == getattr(Options(), name)


def test_models_are_fetched_by_name(capsys, tmp_path):
    assert main(["models", "--weights-dir", str(tmp_path), "--fetch", registry.BUILT_IN]) == 0
    assert f"{registry.BUILT_IN}: " in capsys.readouterr().out.splitlines()[0]
    assert main(["models", "--weights-dir", str(tmp_path), "--fetch", "restore-lite-x4"]) == 0  # former name
    assert f"{registry.BUILT_IN}: " in capsys.readouterr().out.splitlines()[0]
    assert main(["models", "--weights-dir", str(tmp_path), "--fetch", "nothing"]) == 2
    assert "unknown model 'nothing'; use one of" in capsys.readouterr().err


def test_models_are_listed_with_size_licence_and_source(capsys, tmp_path, weights):
    save_network(tmp_path / "w/custom/my own.pth", seed=1)
    (tmp_path / "w/RealESRNet_x4plus.pth").write_bytes(b"cut off")
    assert main(["models", "--weights-dir", "w"]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    for model in MODELS:
        packaged = sources.PACKAGED.get(model.name)
        source, size, sha256 = "to download", model.bytes, model.sha256
        if packaged:
            source, size, sha256 = "installed, fp16 copy", packaged.bytes, packaged.sha256
        elif not model.url:
            source = "built in"
        cells = [f"{size / 1e6:.1f}", model.licence, source, sha256[:12], model.about]
        assert all(f"  {cell}" in lines[model.name] for cell in cells), model.name
    assert "  custom file  " in lines["custom/my own"]
    assert lines["Weights folder: w"]
    assert main(["models"]) == 0
    assert f"Weights folder: {weights}" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar_shows_photo_percentage_and_remaining_time(monkeypatch, capsys):
    photos("a.png", "b" * 40 + ".png", width=72, height=72)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert (
        run("a.png", "b" * 40 + ".png", "--model", "custom/tiny", "--tile", "32", "--backend", "torch") == 0
    )
    bars = terminal.getvalue().split("\r")
    assert any(re.match(r"Loading the model +0%\|.*\? left", bar) for bar in bars)
    quarters = [
        bar for bar in bars if re.match(r"1/2 a\.png +(12|25|38|50)%\|.*\| \d\d:\d\d, \d\d:\d\d left", bar)
    ]
    assert len({bar.split("%")[0] for bar in quarters}) == 4
    assert any(bar.startswith(f"2/2 {'b' * 29}... ") and " 88%|" in bar for bar in bars)
    assert not bars[-1].strip(), "the bar is erased at the end"
    assert capsys.readouterr().out.count(" -> ") == 2


def test_unprintable_names_are_escaped():
    name, result = (os.fsdecode(b"caf\xe9 \xe5" + suffix) for suffix in (b".png", b"_4x.png"))
    Path(name).touch()
    Path(result).touch()
    finished = process(name, "--model", "custom/tiny", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(r"caf\udce9 \udce5.png: skipped, caf\udce9 \udce5_4x.png exists")


def multipage(name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(photo_like(np.random.default_rng(seed), 14, 20 + seed)) for seed in range(3)]
    pages[0].save(name, save_all=True, append_images=pages[1:])


def animation(name: str, count: int = 3) -> None:
    frames = [Image.fromarray(photo_like(np.random.default_rng(seed), 14, 20)) for seed in range(count)]
    frames[0].save(name, save_all=True, append_images=frames[1:], duration=90, loop=2)


def test_pages_become_numbered_results(capsys):
    multipage("in/scan.tif")
    photos("in/photo.tif")
    options = ["in", "-o", "out", "--model", "custom/tiny", "--outscale", "2"]
    assert run(*options, "--pages", "all") == 0
    assert files_in("out") == {"photo_2x.tif", "scan_2x_p1.tif", "scan_2x_p2.tif", "scan_2x_p3.tif"}
    widths = [Image.open(f"out/scan_2x_p{number}.tif").width for number in (1, 2, 3)]
    assert widths == [40, 42, 44]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines[1:4]] == [
        f"in/scan.tif -> out/scan_2x_p{number}.tif" for number in (1, 2, 3)
    ]
    assert lines[4].startswith("2 restored, 0 skipped, 0 failed")
    Path("out/scan_2x_p3.tif").unlink()
    assert run(*options, "--pages", "all") == 0
    assert "scan_2x_p1.tif exists" in capsys.readouterr().out, "the first page is written last"
    Path("out/scan_2x_p1.tif").unlink()
    assert run(*options, "--pages", "all", "--overwrite") == 0
    assert len(files_in("out")) == 4
    for number in (1, 2):  # as after a crash: the last page is written first
        Path(f"out/scan_2x_p{number}.tif").unlink()
    Path("out/scan_2x_p3.tif").write_bytes(b"kept")
    capsys.readouterr()
    assert run(*options, "--pages", "all") == 0
    assert "1 restored, 1 skipped" in (out := capsys.readouterr().out) and "scan_2x_p3.tif exists" in out
    assert len(files_in("out")) == 4 and Path("out/scan_2x_p3.tif").read_bytes() == b"kept"
    assert run("in/scan.tif", "-o", "new.tif", "--model", "custom/tiny", "--pages", "all") == 0
    assert {name for name in files_in(".") if name.startswith("new")} == {f"new_p{n}.tif" for n in (1, 2, 3)}
    assert run("in/scan.tif", "-o", "one.tif", "--model", "custom/tiny") == 0
    assert "only the first picture" in capsys.readouterr().out and Path("one.tif").exists()


def test_frames_stay_an_animation(capsys):
    animation("a.gif")
    assert run("a.gif", "--model", "custom/tiny", "--frames", "all") == 0
    result = Image.open("a_4x.gif")
    assert (result.n_frames, result.size, result.info["duration"], result.info["loop"]) == (
        3,
        (80, 56),
        90,
        2,
    )
    assert run("a.gif", "--model", "custom/tiny", "--frames", "all") == 0
    assert "a_4x.gif exists" in capsys.readouterr().out
    assert run("a.gif", "--model", "custom/tiny", "--frames", "all", "--format", "webp") == 0
    assert Image.open("a_4x.webp").n_frames == 3
    assert run("a.gif", "--model", "custom/tiny", "--frames", "all", "--format", "jpeg") == 2
    assert "with --frames all use one of same, webp, png" in capsys.readouterr().err
    assert run("a.gif", "--model", "custom/tiny") == 0
    assert "only the first picture" in capsys.readouterr().out and Path("a_4x.png").exists()


def scratched() -> None:
    """Write photo.png, with a bright scratch on a smooth background, and mask.png, which marks it."""
    y, x = np.mgrid[0:96, 0:128]
    pixels = np.stack([90 + y / 4, 80 + x / 5, 100 + 0 * x], axis=2).astype(np.uint8)
    mask = np.zeros((96, 128), np.uint8)
    cv2.line(mask, (10, 10), (110, 80), 255, 3)
    pixels[mask > 0] = 245
    Image.fromarray(pixels).save("photo.png")
    Image.fromarray(mask).save("mask.png")


def test_repair_writes_its_mask_and_takes_one(capsys):
    scratched()
    common = ["--model", "custom/tiny", "--face-enhance", "off"]
    for arguments in (
        ["-o", "off.png"],
        ["-o", "auto.png", "--repair", "auto"],
        ["-o", "on.png", "--repair", "on", "--mask-out", "found.png"],
        ["-o", "high.png", "--repair", "on", "--repair-sensitivity", "0.9", "--mask-out", "more.png"],
        ["-o", "own.png", "--mask", "mask.png", "--mask-out", "same.png"],
        ["-o", "again.png", "--mask", "found.png"],
    ):
        assert run("photo.png", *arguments, *common) == 0, arguments
    assert "% repaired" in capsys.readouterr().out
    pixels = {name: np.asarray(Image.open(f"{name}.png")) for name in ("off", "on", "high", "own", "again")}
    assert len({array.tobytes() for name, array in pixels.items() if name != "again"}) == 4
    np.testing.assert_array_equal(pixels["again"], pixels["on"])
    masks = {name: np.asarray(Image.open(f"{name}.png")) > 0 for name in ("found", "more", "same", "mask")}
    np.testing.assert_array_equal(masks["same"], masks["mask"])
    assert masks["found"][masks["mask"]].mean() > 0.8 and masks["found"].mean() < 0.2
    assert masks["more"].sum() > masks["found"].sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png", "other.png", "--mask", "mask.png"], "for one photo, not 2"),
        (["photo.png", "--mask", "mask.png", "--pages", "all"], "omit --pages and --frames"),
        (["photo.png", "--mask-out", "new.png"], "needs --repair"),
        (["photo.png", "--repair", "on", "--mask-out", "new.jpg"], "must end in .png"),
        (["photo.png", "--repair", "on", "--mask-out", "mask.png"], "mask.png exists"),
        (["photo.png", "--mask", "mask.png", "--mask-out", "mask.png", "--overwrite"], "name another file"),
        (["photo.png", "--repair", "on", "--mask-out", "photo.png", "--overwrite"], "name another file"),
        (["photo.png", "--mask", "mask.png", "--mask-out", "photo_4x.png"], "name another file"),
        (["photo.png", "-o", "a.png", "--mask", "mask.png", "--mask-out", "a.png"], "name another file"),
        (["photo.png", "--mask", "absent.png"], "absent.png cannot be read"),
        (["photo.png", "--repair-sensitivity", "2"], "repair_sensitivity is 2.0"),
        (
            ["photo.png", "--mask", "mask.png", "--repair-sensitivity", "1"],
            "changes nothing without --repair auto",
        ),
    ],
)
def test_wrong_use_of_masks_is_refused(arguments, message, capsys):
    scratched()
    shutil.copy("photo.png", "other.png")
    before = {name: Path(name).read_bytes() for name in ("photo.png", "mask.png")}
    assert run(*arguments, "--model", "custom/tiny") == 2
    assert message in capsys.readouterr().err
    assert {name: Path(name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--colour-strength", "0.5"], "--colour auto or --colour on or --colour neutral"),
        (["--face-enhance", "off", "--face-large"], "--face-enhance auto or --face-enhance on"),
        (["--face-enhance", "off", "--autopilot", "--face-mask", "parsing"], "--face-enhance auto or"),
    ],
)
@pytest.mark.parametrize("command", [["restore"], ["batch"]])
def test_an_option_of_what_is_off_is_refused(command, arguments, needed, capsys):
    scratched()
    assert run(*command, "photo.png", *["out"] * (command == ["batch"]), *arguments) == 2
    flag = next(one for one in arguments[::-1] if one.startswith("--"))
    assert f"{flag} changes nothing without {needed}" in capsys.readouterr().err
    assert run("photo.png", "--colour-strength", "0.5", "--autopilot", "--model", "custom/tiny") == 0


def test_broken_mask_is_named(capsys):
    scratched()
    Path("broken.png").write_bytes(b"no picture")
    assert run("photo.png", "--mask", "broken.png", "--model", "custom/tiny") == 1
    assert "photo.png: failed, the mask: the file is not an image" in capsys.readouterr().err


def test_mask_of_another_size_fails_the_photo(capsys):
    scratched()
    Image.new("L", (20, 30), 255).save("small.png")
    assert run("photo.png", "--mask", "small.png", "--model", "custom/tiny") == 1
    assert "the mask has 20 x 30 pixels and the photo 128 x 96" in capsys.readouterr().err


def test_look_prints_findings_and_suggestions(tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    ramp = np.tile(np.linspace(90, 170, 30).astype(np.uint8), (20, 1))  # neither black nor white
    Image.fromarray(ramp).save(tmp_path / "scans/pale.png")
    (tmp_path / "scans/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    weights = ["--weights-dir", str(tmp_path)]
    assert main(["look", str(tmp_path / "scans"), *weights]) == 1
    text = capsys.readouterr()
    line = "Faded, black and white, 30 × 20. Suggested: 4x, colour auto"
    assert f"pale.png: {line}\n  faded: " in text.out and "broken.png: failed" in text.err
    assert main(["look", str(tmp_path / "scans/pale.png"), "--json", *weights]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["line"] == line and seen["options"] == {"outscale": 4.0, "colour": "auto"}
    assert [finding["name"] for finding in seen["findings"]] == ["faded", "grey"]
