import re
from dataclasses import fields
from pathlib import Path

import pytest

from restorer import InvalidOption, settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for field in fields(settings.Settings):
        monkeypatch.delenv(field.name.upper(), raising=False)


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("API_KEY=from-file\nMAX_FILE_SIZE_MB=3\nPORT=\n")
    monkeypatch.setenv("API_KEY", "from-environment")
    found = settings.read(tmp_path)
    assert found.api_key == "from-environment"
    assert found.max_file_size_mb == 3
    assert found.port == 7860
    assert found.upload_folder == (tmp_path / "temp_uploads").resolve()
    assert found.processed_folder == (tmp_path / "processed_images").resolve()


def test_an_absolute_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("UPLOAD_FOLDER", str(tmp_path / "elsewhere"))
    assert settings.read(Path("/nowhere")).upload_folder == (tmp_path / "elsewhere").resolve()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "http", "PORT is 'http'; it must be a number"),
        ("PORT", "70000", "PORT is 70000; it must be from 0 to 65535"),
        ("MAX_FILE_SIZE_MB", "0", "MAX_FILE_SIZE_MB is 0"),
        ("MAX_INPUT_MEGAPIXELS", "nan", "MAX_INPUT_MEGAPIXELS is nan"),
    ],
)
def test_a_bad_value_is_named(tmp_path, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidOption, match=words):
        settings.read(tmp_path)


def test_the_example_names_every_setting_with_its_default(tmp_path):
    example = (ROOT / ".env.example").read_text()
    named = re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)
    assert sorted(named) == sorted(field.name.upper() for field in fields(settings.Settings))
    (tmp_path / ".env").write_text(example)
    assert settings.read(tmp_path) == settings.Settings(
        upload_folder=(tmp_path / "temp_uploads").resolve(),
        processed_folder=(tmp_path / "processed_images").resolve(),
    )
