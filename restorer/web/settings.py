"""Server settings, read from the environment and from a .env file."""

import logging
import os
from pathlib import Path
from typing import Any, Literal

import dotenv
from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ..errors import InvalidOption
from ..models.registry import RENAMED
from ..options import AUTO_CPU_MEGAPIXELS, Limits, Options

_RENAMED = {
    "STEP_SECONDS": "WATCHDOG_TIMEOUT",
    "KEEP_SECONDS": "RETENTION_SECONDS",
    "SWEEP_SECONDS": "CLEANUP_INTERVAL",
}
_ORIGIN = r"https?://[\w.:\[\]-]+"
_SPACE_DISK = Path("/data")  # a Space's persistent storage, if it has any


def _field_with_alias(alias: str, name: str, default: Any, **limits: float) -> Any:  # noqa: ANN401  like Field()
    """Return a field that is read from the variable `alias` if `name` is not set."""
    return Field(default=default, validation_alias=AliasChoices(name, alias), **limits)  # type: ignore[arg-type]


class Settings(BaseSettings):
    """One field for each variable of .env.example, in lower case. Durations are in seconds."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, str_strip_whitespace=True
    )

    api_key: str = ""
    host: str = _field_with_alias("gradio_server_name", "host", "127.0.0.1")
    port: int = _field_with_alias("gradio_server_port", "port", 7860, ge=0, le=65535)
    upload_folder: Path = Path("temp_uploads")
    processed_folder: Path = Path("processed_images")
    restorer_weights: str = ""
    model: str = Options.model
    auto_cpu_megapixels: float = Field(default=AUTO_CPU_MEGAPIXELS, ge=0, le=10_000)
    device: str = ""
    allowed_origins: str = Field(
        default="",
        pattern=rf"^({_ORIGIN}(\s*,\s*{_ORIGIN})*)?$",
        description="origins such as https://app.example.org, separated by commas",
    )
    root_path: str = Field(default="", pattern=r"^(/[\w.~-]+)*$", description="a path such as /photos")
    forwarded_allow_ips: str = ""
    max_file_size_mb: int = Field(default=10, ge=1, le=10_000)
    upload_timeout: float = Field(default=30.0, ge=0.1, le=3600)
    max_input_megapixels: float = Field(default=Limits.input_pixels / 1e6, ge=0.001, le=10_000)
    max_output_megapixels: float = Field(default=Limits.output_pixels / 1e6, ge=0.001, le=100_000)
    max_files_per_job: int = Field(default=20, ge=1, le=10_000)
    max_queue: int = Field(default=20, ge=1, le=100_000)
    watchdog_timeout: float = _field_with_alias("step_seconds", "watchdog_timeout", 900.0, ge=0.1, le=1e7)
    retention_seconds: float = _field_with_alias("keep_seconds", "retention_seconds", 3600.0, ge=1, le=1e7)
    cleanup_interval: float = _field_with_alias("sweep_seconds", "cleanup_interval", 1800.0, ge=0.1, le=1e7)
    min_free_disk_mb: int = Field(default=200, ge=0, le=10_000_000)
    log_format: Literal["text", "json"] = "text"
    price_per_gpu_second: float = Field(default=0.0, ge=0, le=1000)

    @property
    def jobs_folder(self) -> Path:
        """The folder of jobs."""
        return self.upload_folder / "jobs"

    @property
    def limits(self) -> Limits:
        return Limits(int(self.max_input_megapixels * 1e6), int(self.max_output_megapixels * 1e6))


class _SpaceSettings(Settings):
    """Defaults on a Hugging Face Space, which is reached only through its proxy."""

    host: str = "0.0.0.0"
    forwarded_allow_ips: str = "*"
    restorer_weights: str = Field(
        default_factory=lambda: str(_SPACE_DISK / "weights") if os.access(_SPACE_DISK, os.W_OK) else ""
    )


def prepare_gradio(settings: Settings) -> None:
    """Set the environment variables that Gradio reads at import; call this before importing it."""
    os.environ["GRADIO_TEMP_DIR"] = str(settings.upload_folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"  # of /monitoring, which is disabled
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)  # else a table of them is built at each event
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn's; web/middleware.py handles proxies


def read(folder: Path) -> Settings:
    """Read the settings of a server from the environment, else from the .env file in `folder`.

    Relative paths are resolved against `folder`. Raises InvalidOption.
    """
    env_file = folder / ".env"
    names = {*os.environ, *dotenv.dotenv_values(env_file)}
    for old in sorted(names & _RENAMED.keys()):
        logging.getLogger(__name__).warning("%s is deprecated; use %s", old, _RENAMED[old])
    settings_class = _SpaceSettings if os.environ.get("SPACE_ID") else Settings
    try:
        settings = settings_class(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        raise InvalidOption("; ".join(map(_message, error.errors()))) from error
    resolved = {
        name: (folder / getattr(settings, name)).resolve() for name in ("upload_folder", "processed_folder")
    }
    if settings.restorer_weights:
        resolved["restorer_weights"] = str((folder / settings.restorer_weights).resolve())
    if model := RENAMED.get(settings.model):
        logging.getLogger(__name__).warning("MODEL=%s is deprecated; use %s", settings.model, model)
        resolved["model"] = model
    return settings.model_copy(update=resolved)


def _message(error: Any) -> str:  # noqa: ANN401  pydantic_core.ErrorDetails
    name = str(error["loc"][0])
    message = error["msg"].replace("Input should be", "it must be")
    if error["type"] == "string_pattern_mismatch":
        message = f"it must be {Settings.model_fields[name].description}"
    return f"{name.upper()} is {error['input']!r}; {message}"
