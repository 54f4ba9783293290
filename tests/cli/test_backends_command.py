import json

import pytest

from restorer.cli import backends as command
from restorer.cli.main import main
from restorer.inference import backends
from restorer.models import registry


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(command, "_MODELS", ((registry.BUILT_IN, 48), ("RealESRNet_x4plus", 48)))


def test_backends_are_timed_and_the_fastest_is_saved(small, tmp_path, monkeypatch, capsys):
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setattr(command, "_time", lambda *_: ("SRVGGNetCompact", {"cpu:torch": 1.5, "cpu:ncnn": 2.0}))
    monkeypatch.setattr(command.sources, "locate", lambda model, _: model.name == registry.BUILT_IN or None)
    assert main(["backends", "--weights-dir", str(weights), "--save"]) == 0
    out = capsys.readouterr().out
    assert "RealESRNet_x4plus is not present" in out
    assert out.index("cpu:torch") < out.index("cpu:ncnn"), "the fastest first"
    assert json.loads((weights / "backends.json").read_text()) == {"SRVGGNetCompact": "cpu:torch"}
    backends.save({"RRDBNet": "cpu:ncnn"}, weights)
    assert main(["backends", "--weights-dir", str(weights), "--save"]) == 0
    assert json.loads((weights / "backends.json").read_text())["RRDBNet"] == "cpu:ncnn"
    assert backends.choose("SRVGGNetCompact", weights) == "cpu:torch"


def test_folder_is_checked_before_anything_is_timed(small, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(command, "_time", lambda *_: pytest.fail("timed first"))
    assert main(["backends", "--weights-dir", str(tmp_path / "file/weights"), "--save"]) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_rounds_must_be_positive(capsys):
    assert main(["backends", "--rounds", "0"]) == 2
    assert "--rounds is 0; it must be 1 or more" in capsys.readouterr().err


def test_every_available_backend_is_timed(small, capsys):
    assert main(["backends", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert all(out.count(f" {name} ") == 1 for name in backends.available())
    assert out.count("used") == 1
