"""The command line as its users have it: a process, its output, its exit code, the files it leaves."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import restorer
from restorer.__main__ import main
from restorer.cli.parser import parser
from restorer.models import sources
from restorer.models.registry import MODELS
from restorer.options import Options
from tests.conftest import photo_like, save_network

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
def here(tmp_path, monkeypatch, weights) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RESTORER_WEIGHTS", str(weights))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes: their networks are tiny
    return tmp_path


def photos(*names: str, width: int = 20, height: int = 14) -> None:
    for seed, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo_like(np.random.default_rng(seed), height, width)).save(name)


def process(*words: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "restorer", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def below(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_photos_and_folders_in_one_run():
    photos("photo.jpg", "my scans/a.jpg", "my scans/a.png", "my scans/1950/Größe 写真.webp")
    Path("my scans/cut.jpg").write_bytes(Path("photo.jpg").read_bytes()[:300])
    Path("my scans/notes.txt").write_text("no photo")
    words = ["photo.jpg", "my scans/", "-o", "my scans/out", "--model", "custom/tiny"]
    words += ["--face-enhance", "off"]
    run = process(*words, "--outscale", "4", "--format", "png", umask=0o027)
    assert run.returncode == 1
    names = {"photo_4x.png", "a_jpg_4x.png", "a_png_4x.png", "1950/Größe 写真_4x.png"}
    assert below("my scans/out") == names
    lines = run.stdout.splitlines()
    told = {source: target for line in lines if (source := line.partition(" -> ")[0]) and (target := line)}
    for source, target in [
        ("photo.jpg", "photo_4x.png"),
        ("my scans/1950/Größe 写真.webp", "1950/Größe 写真_4x.png"),
    ]:
        assert re.fullmatch(
            re.escape(f"{source} -> my scans/out/{target}: 80 x 56, custom/tiny, ") + r"\d+\.\d s",
            told[source],
        )
    assert len(lines) == 5 and re.fullmatch(r"4 restored, 0 skipped, 1 failed in \d+\.\d s", lines[-1])
    using, failed = run.stderr.splitlines()
    assert re.fullmatch(r"using custom/tiny \(custom file\) on cpu:\w+", using)
    assert failed.startswith("my scans/cut.jpg: failed, ")
    api = restorer.Restorer(model="custom/tiny", outscale=4, format="png", face_enhance="off")
    for name in ("photo.jpg", "my scans/a.jpg", "my scans/a.png"):
        target = told[name].partition(" -> ")[2].partition(": ")[0]
        assert Path(target).read_bytes() == api.restore(Path(name).read_bytes()).data
    assert all((Path("my scans/out") / name).stat().st_mode & 0o777 == 0o640 for name in names)


# The command line, where each photo takes a while on any processor
PACED = """
import sys, time
from restorer import pipeline
from restorer.__main__ import main
real = pipeline.Restorer.restore
def restore(self, data, **options):
    time.sleep(0.2)
    return real(self, data, **options)
pipeline.Restorer.restore = restore
sys.exit(main(sys.argv[1:]))
"""


def test_stopped_by_ctrl_c_leaves_whole_files_only():
    photos(*(f"in/{number}.png" for number in range(30)), width=128, height=128)
    command = [
        sys.executable,
        "-u",
        "-c",
        PACED,
        "in",
        "-o",
        "out",
        "--model",
        "custom/slow",
        "--tile",
        "64",
    ]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background has it ignored, which processes inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.stdout and run.stdout.readline().startswith("in/0.png -> out/0_4x.png")
    time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 130
    assert errors.splitlines()[1:] == ["restorer: stopped; what is finished is kept"]
    left = sorted(Path("out").iterdir())
    assert 1 <= len(left) < 30 and {path.suffix for path in left} == {".png"}
    for path in left:
        assert Image.open(path).convert("RGB").size == (512, 512)


SAY_WHAT_IS_IMPORTED = """
import runpy, sys
sys.argv = ["restorer", *{words!r}]
try:
    {statement}
except SystemExit as stop:
    print("exit", stop.code, file=sys.stderr)
heavy = {{"torch", "numpy", "PIL", "cv2", "gradio", "torchvision", "basicsr"}}
print(*sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("statement", "words", "heard"),
    [
        ("import restorer", [], "\n"),
        ("import restorer; restorer.Options, restorer.UnknownModel", [], "\n"),
        ("runpy.run_module('restorer', run_name='__main__')", ["--help"], "exit 0\n\n"),
        ("runpy.run_module('restorer', run_name='__main__')", ["restore", "--help"], "exit 0\n\n"),
        ("runpy.run_module('restorer', run_name='__main__')", ["--version"], "exit 0\n\n"),
        ("runpy.run_module('restorer', run_name='__main__')", ["models"], "exit 0\n\n"),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement, words, heard):
    script = SAY_WHAT_IS_IMPORTED.format(statement=statement, words=words)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stderr == heard
    assert bool(run.stdout) == bool(words)


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
    ):
        assert re.search(rf"^ +(-\w, )?{name}\b", text, re.MULTILINE), name
    assert process().stdout == process("--help").stdout != ""


def run(*words: str) -> int:
    """The command line in this process: torch is here already."""
    return main(["restore", *words])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["in"], "in is a folder: give another folder for its results with -o"),
        (["in", "-o", "in"], "in is a folder"),
        (["empty", "-o", "out"], "no photos found"),
        (["a.jpg", "--model", "custom/tyny"], "no model 'custom/tyny'. Did you mean 'custom/tiny'?"),
        (["a.jpg", "--model", "realesr-general"], "Did you mean 'realesr-general-x4v3'?"),
        (["a.jpg", "--model", "GFPGANv1.4"], "GFPGANv1.4 is a model of the kind 'face'"),
        (["a.jpg", "--outscale", "9"], "outscale is 9.0; it must be from 1 to 8"),
        (["a.jpg", "--outscale", "nan"], "outscale is nan"),
        (["a.jpg", "--quality", "0"], "quality is 0"),
        (["a.jpg", "--tile", "5"], "tile is 5"),
        (["a.jpg", "--model", "custom/tiny", "--denoise", "0.5"], "custom/tiny does not support denoise"),
        (["a.jpg", "--model", "custom/tiny", "--device", "abacus"], "device is 'abacus'"),
        (["a.jpg", "-o", "b.gif"], "b.gif ends with .gif, which is not written"),
        (["a.jpg", "-o", "b.png", "--format", "jpeg"], "b.png does not end like a jpeg file"),
        (["a.jpg", "-o", "a.jpg", "--overwrite"], "a.jpg is the photo itself"),
        (["a.jpg", "in/b.jpg", "-o", "c.png"], "c.png is a file: several photos need a folder"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words, told, capsys, here):
    photos("a.jpg", "in/b.jpg")
    Path("empty").mkdir()
    before = below(".")
    assert run(*words) == 2
    out, errors = capsys.readouterr()
    assert out == "" and errors.startswith("restorer: ") and told in errors
    assert errors.count("\n") == 1
    assert below(".") == before


@pytest.mark.parametrize("words", [["--format", "gif"], ["--outscale", "big"], ["--wrong"], []])
def test_what_argparse_refuses_is_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*words, *(["a.jpg"] if words else []))
    assert stopped.value.code == 2
    assert "usage: python -m restorer " in capsys.readouterr().err


def test_weights_that_cannot_be_had_stop_the_run_once(capsys):
    photos("a.jpg", "b.jpg")
    absent = next(model for model in MODELS if model.name == "RealESRNet_x4plus")
    assert run("a.jpg", "b.jpg", "--model", absent.name, "--weights-dir", "new") == 1
    errors = capsys.readouterr().err
    assert errors.count("RealESRNet_x4plus is not present") == 1
    for told in (absent.url, str(Path("new").absolute()), "as RealESRNet_x4plus.pth"):
        assert told in errors
    assert run("a.jpg", "--model", "custom/broken") == 1
    assert "broken.pth is not a readable weights file" in capsys.readouterr().err
    assert below(".") <= {"a.jpg", "b.jpg", "new/.RealESRNet_x4plus.pth.lock"}


def test_existing_outputs_are_skipped_unless_overwrite(capsys):
    photos("in/a.png", "in/b.png")
    assert run("in", "-o", "out", "--model", "custom/tiny") == 0
    Path("out/a_4x.png").write_bytes(b"kept as it is")
    Path("out/b_4x.png").unlink()
    capsys.readouterr()
    assert run("in", "-o", "out", "--model", "custom/tiny") == 0
    out = capsys.readouterr().out
    assert "in/a.png: skipped, out/a_4x.png exists" in out and "in/b.png -> " in out
    assert "1 restored, 1 skipped, 0 failed" in out
    assert Path("out/a_4x.png").read_bytes() == b"kept as it is"
    assert run("in", "-o", "out", "--model", "custom/tiny", "--overwrite") == 0
    assert "2 restored, 0 skipped" in capsys.readouterr().out
    assert Image.open("out/a_4x.png").size == (80, 56)
    assert below("out") == {"a_4x.png", "b_4x.png"}


def test_nothing_left_to_do_loads_no_model(capsys):
    photos("a.png", "a_4x.png")
    assert run("a.png", "--model", "custom/broken") == 0
    assert capsys.readouterr().out.startswith(
        "a.png: skipped, a_4x.png exists (--overwrite restores it again)\n0 res"
    )


def test_existing_output_of_a_photo_whose_name_lies_is_kept(capsys):
    photos("really.png")
    Path("really.png").rename("a.jpg")
    Path("a_4x.png").write_bytes(b"mine")
    assert run("a.jpg", "--model", "custom/tiny") == 0
    assert "a.jpg: skipped, a_4x.png exists" in capsys.readouterr().out
    assert Path("a_4x.png").read_bytes() == b"mine"
    assert run("a.jpg", "--model", "custom/tiny", "--overwrite") == 0
    assert Image.open("a_4x.png").size == (80, 56)


def test_photo_is_never_replaced_by_the_result_of_another(capsys):
    photos("a.png", "a_4x.png")
    old = Path("a_4x.png").read_bytes()
    assert run("a.png", "a_4x.png", "--model", "custom/tiny", "--overwrite") == 0
    assert "a.png: skipped, a_4x.png is itself one of the photos" in capsys.readouterr().out
    assert Path("a_4x.png").read_bytes() == old
    assert below(".") == {"a.png", "a_4x.png", "a_4x_4x.png"}


def test_one_photo_to_a_named_file(capsys):
    photos("a.png")
    assert run("a.png", "-o", "new folder/b.jpg", "--model", "custom/other", "--outscale", "2") == 0
    assert "a.png -> new folder/b.jpg: 40 x 28, custom/other" in capsys.readouterr().out
    with Image.open("new folder/b.jpg") as made:
        assert (made.format, made.size) == ("JPEG", (40, 28))
    assert below("new folder") == {"b.jpg"}


def test_same_format_beside_the_photo():
    photos("in/a.webp", "in/a.tif")
    assert run("in/a.webp", "in/a.tif", "--model", "custom/tiny", "--outscale", "1.5") == 0
    made = {name: Image.open(f"in/{name}").format for name in below("in") if "1.5x" in name}
    assert made == {"a_webp_1.5x.webp": "WEBP", "a_tif_1.5x.tif": "TIFF"}


def test_what_is_missing_or_no_photo_fails_and_the_others_are_done(capsys):
    photos("a.png", "z.png")
    Path("text.png").write_text("words")
    Path("empty.png").touch()
    photos(long := "n" * 251 + ".png")
    words = ["none.png", "text.png", "a.png", "empty.png", long, "z.png"]
    assert run(*words, "--model", "custom/tiny", "--format", "jpeg") == 1
    out, errors = capsys.readouterr()
    assert out.count(" -> ") == 2 and "2 restored, 0 skipped, 4 failed" in out
    assert "none.png: failed, No such file or directory\n" in errors
    assert errors.count("failed, ") == 4 and errors.count("using custom/tiny") == 1
    assert errors.count("\n") == 5
    assert {"a_4x.jpg", "z_4x.jpg"} == {name for name in below(".") if "_4x" in name}


def test_output_that_cannot_be_written_fails(capsys):
    photos("a.png")
    Path("out").write_text("a file")
    assert run("a.png", "-o", "out/deeper", "--model", "custom/tiny") == 1
    assert "a.png: failed, out/deeper/a_4x.png cannot be written: Not a directory" in capsys.readouterr().err


def test_the_model_that_is_named_is_used(capsys):
    photos("a.png")
    made = {}
    for name in ("custom/tiny", "custom/other", "custom/realesr-general-x4v3"):
        assert run("a.png", "-o", "out.png", "--model", name, "--overwrite") == 0
        assert f", {name}, " in capsys.readouterr().out
        made[name] = Path("out.png").read_bytes()
    assert len(set(made.values())) == 3


def test_auto_says_which_it_took(capsys, tmp_path):
    photos("a.png")
    save_network(tmp_path / "w/custom/mine.pth", seed=6)  # taken only where it is named
    assert run("a.png", "--weights-dir", "w") == 0
    out, errors = capsys.readouterr()
    assert ", restore-lite-x4, " in out
    assert re.fullmatch(r"using restore-lite-x4 \(built in\) on cpu:\w+\n", errors)


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
def test_options_reach_the_result(option, first, second, capsys):
    exif = Image.Exif()
    exif[0x010E] = "grandmother"
    exif.get_ifd(0x8825)[1] = "N"
    Image.fromarray(photo_like(np.random.default_rng(1), 16, 16)).save("a.jpg", exif=exif)
    made = []
    for words in (first, second):
        given = [] if words is None else [option, *words]
        model = ["--model", "custom/realesr-general-x4v3"]
        assert run("a.jpg", "-o", "b.jpg", "--overwrite", *model, *given) == 0
        made.append(Path("b.jpg").read_bytes())
    assert made[0] != made[1]


def test_tile_option_reaches_the_engine(monkeypatch, capsys):
    photos("a.png", width=100, height=40)
    seen = []
    upscale = restorer.pipeline.upscale
    monkeypatch.setattr(
        restorer.pipeline,
        "upscale",
        lambda *words, **named: seen.append(named["tile"]) or upscale(*words, **named),
    )
    assert run("a.png", "--model", "custom/tiny", "--tile", "48") == 0
    assert seen == [48]


def test_face_options_are_parsed_as_options():
    words = ["--face-enhance", "on", "--face-model", "RestoreFormer", "--face-detector", "retinaface"]
    words += ["--face-strength", "0.5", "--face-mask", "parsing", "--face-large"]
    parsed = parser().parse_args(["restore", "a.jpg", *words])
    given = {name: getattr(parsed, name) for name in Options.names() if name.startswith("face_")}
    assert list(given.values()) == ["on", "RestoreFormer", "retinaface", 0.5, "parsing", True]
    assert all(value != getattr(Options(), name) for name, value in given.items())


def test_defaults_are_those_of_the_options():
    parsed = parser().parse_args(["restore", "a.jpg"])
    for name in Options.names():
        assert getattr(parsed, name) == getattr(Options(), name)


def test_models_are_fetched_by_name(capsys, tmp_path):
    assert main(["models", "--weights-dir", str(tmp_path), "--fetch", "restore-lite-x4"]) == 0
    assert "restore-lite-x4: " in capsys.readouterr().out.splitlines()[0]
    assert main(["models", "--weights-dir", str(tmp_path), "--fetch", "nothing"]) == 2
    assert "there is no model 'nothing' to fetch" in capsys.readouterr().err


def test_models_lists_each_with_size_licence_and_presence(capsys, tmp_path, weights):
    save_network(tmp_path / "w/custom/my own.pth", seed=1)
    (tmp_path / "w/RealESRNet_x4plus.pth").write_bytes(b"cut off")
    assert main(["models", "--weights-dir", "w"]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    for model in MODELS:
        packaged = sources.PACKAGED.get(model.name)
        source, size, sha256 = "to download", model.bytes, model.sha256
        if packaged:
            source, size, sha256 = "installed, fp16 copy", packaged.bytes, packaged.sha256
        elif model.name == "restore-lite-x4":
            source = "built in"
        words = [f"{size / 1e6:.1f}", model.licence, source, sha256[:12], model.about]
        assert all(f"  {word}" in lines[model.name] for word in words), model.name
    assert "  custom file  " in lines["custom/my own"]
    assert lines["Folder of the files: w"]
    assert main(["models"]) == 0
    assert f"Folder of the files: {weights}" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_with_the_time_left_on_a_terminal(monkeypatch, capsys):
    photos("a.png", "b" * 40 + ".png", width=64, height=64)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert run("a.png", "b" * 40 + ".png", "--model", "custom/tiny", "--tile", "32") == 0
    shown = terminal.getvalue().split("\r")
    assert any(re.match(r"Loading the model +0%\|.*\? left", text) for text in shown)
    quarters = [
        text
        for text in shown
        if re.match(r"1/2 a\.png +(12|25|38|50)%\|.*\| \d\d:\d\d, \d\d:\d\d left", text)
    ]
    assert len({text.split("%")[0] for text in quarters}) == 4
    assert any(text.startswith(f"2/2 {'b' * 29}... ") and " 88%|" in text for text in shown)
    assert shown[-1] == "" or not shown[-1].strip()  # the bar goes, the lines stay
    assert capsys.readouterr().out.count(" -> ") == 2


def test_names_that_the_terminal_cannot_show():
    name, done = (os.fsdecode(b"caf\xe9 \xe5" + ending) for ending in (b".png", b"_4x.png"))
    Path(name).touch()
    Path(done).touch()
    shown = process(name, "--model", "custom/tiny", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(r"caf\udce9 \udce5.png: skipped, caf\udce9 \udce5_4x.png exists")
