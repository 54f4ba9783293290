import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from restorer import InvalidOption
from restorer.models import registry
from restorer.web import settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_environment_overrides_file_and_file_overrides_default(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("API_KEY=from-file\nMAX_FILE_SIZE_MB=3\nPORT=\n")
    monkeypatch.setenv("API_KEY", "from-environment")
    result = settings.read(tmp_path)
    assert result.api_key == "from-environment"
    assert result.max_file_size_mb == 3
    assert result.port == 7860
    assert result.upload_folder == (tmp_path / "temp_uploads").resolve()
    assert result.processed_folder == (tmp_path / "processed_images").resolve()


def test_absolute_folder_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("UPLOAD_FOLDER", str(tmp_path / "elsewhere"))
    assert settings.read(Path("/nowhere")).upload_folder == (tmp_path / "elsewhere").resolve()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "http", "PORT is 'http'; it must be a valid integer"),
        ("PORT", "70000", "PORT is '70000'; it must be less than or equal to 65535"),
        ("MAX_FILE_SIZE_MB", "0", "MAX_FILE_SIZE_MB is '0'"),
        ("MAX_INPUT_MEGAPIXELS", "nan", "MAX_INPUT_MEGAPIXELS is 'nan'"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT is 'xml'; it must be 'text' or 'json'"),
        ("ROOT_PATH", "photos", "ROOT_PATH is 'photos'; it must be a path such as /photos"),
        ("ROOT_PATH", "/photos/", "it must be a path such as /photos"),
        (
            "ALLOWED_ORIGINS",
            "*",
            "ALLOWED_ORIGINS is '\\*'; it must be origins such as https://app.example.org,",
        ),
        ("ALLOWED_ORIGINS", "https://a.example/", "it must be origins"),
        ("ALLOWED_ORIGINS", "https://a.example b.example", "it must be origins"),
        ("WATCHDOG_TIMEOUT", "soon", "WATCHDOG_TIMEOUT is 'soon'"),
    ],
)
def test_invalid_value_raises_invalid_option(tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidOption, match=message):
        settings.read(tmp_path)


def test_example_lists_every_setting_with_its_default(tmp_path):
    example = (ROOT / ".env.example").read_text()
    names = re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)
    assert sorted(names) == sorted(name.upper() for name in settings.Settings.model_fields)
    (tmp_path / ".env").write_text(example)
    assert settings.read(tmp_path) == settings.Settings(
        upload_folder=(tmp_path / "temp_uploads").resolve(),
        processed_folder=(tmp_path / "processed_images").resolve(),
    )


def test_gradio_variables_are_read_if_ours_are_not_set(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8001")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.2")
    monkeypatch.setenv("HOST", "127.0.0.3")
    result = settings.read(tmp_path)
    assert (result.host, result.port) == ("127.0.0.3", 8001)


def test_former_model_name_is_replaced_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MODEL", "restore-lite-x4")
    assert settings.read(tmp_path).model == registry.BUILT_IN
    assert [record.getMessage() for record in caplog.records] == [
        f"MODEL=restore-lite-x4 is deprecated; use {registry.BUILT_IN}"
    ]


def test_deprecated_variables_are_read_with_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / ".env").write_text("KEEP_SECONDS=7\n")
    monkeypatch.setenv("STEP_SECONDS", "5")
    monkeypatch.setenv("SWEEP_SECONDS", "6")
    monkeypatch.setenv("CLEANUP_INTERVAL", "8")
    result = settings.read(tmp_path)
    assert (result.watchdog_timeout, result.retention_seconds, result.cleanup_interval) == (5, 7, 8)
    assert [record.getMessage() for record in caplog.records] == [
        "KEEP_SECONDS is deprecated; use RETENTION_SECONDS",
        "STEP_SECONDS is deprecated; use WATCHDOG_TIMEOUT",
        "SWEEP_SECONDS is deprecated; use CLEANUP_INTERVAL",
    ]


@pytest.mark.slow
def test_first_event_does_not_import_pyplot(tmp_path):
    """It takes 0.2 s, in which the server answers nobody."""
    code = (
        "import sys; from pathlib import Path; from restorer.web import server, settings\n"
        "folders = {name: Path(sys.argv[1], name) for name in ('upload_folder', 'processed_folder')}\n"
        "server.Server(settings.Settings(**folders))\n"
        "from gradio import utils\n"
        "with utils.MatplotlibBackendMananger(): pass\n"
        "assert 'gradio' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=environment)
