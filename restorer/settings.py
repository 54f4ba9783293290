"""How a server is run: from the environment, and from a .env file for what the environment lacks."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

import dotenv

from .errors import InvalidOption
from .options import AUTO_CPU_MEGAPIXELS, Limits, Options

_ON_A_SPACE = {"HOST": "0.0.0.0", "FORWARDED_ALLOW_IPS": "*"}  # only Hugging Face's own proxy reaches it
_OTHER_NAMES = {
    "HOST": "GRADIO_SERVER_NAME",
    "PORT": "GRADIO_SERVER_PORT",
}  # Gradio's own, where ours is not set
_SPACE_DISK = Path("/data")  # of a Space that has one; anything else is gone when it sleeps


@dataclass(frozen=True)
class Settings:
    """One field for each variable of .env.example, in lower case; read() makes folders absolute.

    Raises InvalidOption for a number that is none, or is out of range.
    """

    api_key: str = ""
    host: str = "127.0.0.1"
    port: int = 7860
    upload_folder: Path = Path("temp_uploads")
    processed_folder: Path = Path("processed_images")
    restorer_weights: str = ""
    model: str = Options.model
    auto_cpu_megapixels: float = AUTO_CPU_MEGAPIXELS
    device: str = ""
    forwarded_allow_ips: str = ""
    max_file_size_mb: int = 10
    max_input_megapixels: float = Limits.input_pixels / 1e6
    max_output_megapixels: float = Limits.output_pixels / 1e6
    max_files_per_job: int = 20
    max_queue: int = 20
    step_seconds: float = 900
    keep_seconds: float = 3600
    sweep_seconds: float = 1800
    min_free_disk_mb: int = 200
    log_format: str = "text"
    price_per_gpu_second: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535),
            ("max_file_size_mb", 1, 10_000),
            ("max_input_megapixels", 0.001, 10_000),
            ("max_output_megapixels", 0.001, 100_000),
            ("auto_cpu_megapixels", 0, 10_000),
            ("max_files_per_job", 1, 10_000),
            ("max_queue", 1, 100_000),
            ("step_seconds", 0.1, 10_000_000),
            ("keep_seconds", 1, 10_000_000),
            ("sweep_seconds", 0.1, 10_000_000),
            ("min_free_disk_mb", 0, 10_000_000),
            ("price_per_gpu_second", 0, 1000),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidOption(
                    f"{name.upper()} is {getattr(self, name)}; it must be from {low} to {high}"
                )

        if self.log_format not in ("text", "json"):
            raise InvalidOption(f"LOG_FORMAT is {self.log_format!r}; it must be text or json")

    @property
    def jobs_folder(self) -> Path:
        """Where the REST interface keeps its jobs."""
        return self.upload_folder / "jobs"

    @property
    def limits(self) -> Limits:
        return Limits(int(self.max_input_megapixels * 1e6), int(self.max_output_megapixels * 1e6))


def prepare_gradio(found: Settings) -> None:
    """Set what Gradio reads from the environment when it is imported: call this before."""
    os.environ["GRADIO_TEMP_DIR"] = str(found.upload_folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn's: web/guard.py looks at what proxies say


def read(folder: Path) -> Settings:
    """The settings of a server started in `folder`: the environment's, else those of its .env file.

    On a Hugging Face Space (SPACE_ID) what neither has is chosen for that.
    """
    found = {**dotenv.dotenv_values(folder / ".env"), **os.environ}
    if found.get("SPACE_ID"):
        disk = {"RESTORER_WEIGHTS": str(_SPACE_DISK / "weights")} if os.access(_SPACE_DISK, os.W_OK) else {}
        found = {**_ON_A_SPACE, **disk, **{name: text for name, text in found.items() if text}}
    given = {}
    for field in fields(Settings):
        name = field.name.upper()
        text = (found.get(name) or found.get(_OTHER_NAMES.get(name, "")) or "").strip()
        if text:
            given[field.name] = _typed(name, text, type(field.default))
    for name in ("upload_folder", "processed_folder"):
        given[name] = (folder / given.get(name, getattr(Settings, name))).resolve()
    if "restorer_weights" in given:
        given["restorer_weights"] = str((folder / given["restorer_weights"]).resolve())
    return Settings(**given)


def _typed(name: str, text: str, kind: type) -> object:
    try:
        return kind(text)
    except ValueError as error:
        raise InvalidOption(f"{name} is {text!r}; it must be a number") from error
