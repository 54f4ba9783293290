"""The fields of requests and responses, as Pydantic models that also describe them in OpenAPI."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model
from pydantic.json_schema import SkipJsonSchema

from ...options import CHOICES, RANGES, Options
from ..jobs import State

_TYPES: dict[str, Any] = {name: Literal[choices] for name, choices in CHOICES.items()}
_FACE_ENHANCE = CHOICES["face_enhance"]
_TYPES["face_enhance"] = Annotated[
    bool | Literal[_FACE_ENHANCE],
    WithJsonSchema({"type": "string", "enum": [*_FACE_ENHANCE, "true", "false"]}),
]
_MAX_TILE = 1024  # pixels; a larger tile would let a client choose how much memory the network takes
_RANGES = {**RANGES, "tile": (0, _MAX_TILE)}
_NULLABLE: dict[str, Any] = {"nullable": True}  # OpenAPI 3.0 has no null type
Position = Annotated[
    int, Field(ge=0, description="jobs and calls of all clients before this one; 0 once it runs or has ended")
]
Index = Annotated[int, Field(ge=0, description="position of the file among the files of the job")]


def options_model(defaults: Options) -> type[BaseModel]:
    """Return a model of the fields of Options, with these defaults."""
    fields: dict[str, Any] = {}
    for name, default in vars(defaults).items():
        low, high = _RANGES.get(name, (None, None))
        field = Field(default, ge=low, le=high, description=Options.descriptions().get(name))
        fields[name] = (_TYPES.get(name, type(default)), field)
    return create_model("RestoreOptions", __config__=ConfigDict(extra="forbid"), **fields)


class Accepted(BaseModel):
    """A job that is on disk and in the queue."""

    job_id: str
    status: State
    queue_position: Position


class Progress(BaseModel):
    """Progress in thousandths of a file: a job of two files has a total of 2000."""

    done: int = Field(ge=0)
    total: int = Field(ge=1000)


class Repair(BaseModel):
    """What was repaired in a photo."""

    mask: Annotated[
        Literal["off", "auto", "on", "own"], Field(description="own if it was sent, else the option repair")
    ] = "off"
    share: Annotated[float, Field(ge=0, le=1, description="of the photo's pixels that were filled")] = 0
    models: Annotated[dict[str, str], Field(description="SHA-256 of the weights by name")] = {}
    sensitivity: Annotated[float, Field(ge=0, le=1, description="of the detection; 0 without one")] = 0


class FileResult(BaseModel):
    """A restored photo, and how it was restored."""

    index: Index
    original_filename: str
    url: str = Field(description="absolute address of the file")
    width: int = Field(ge=1, description="in pixels")
    height: int = Field(ge=1, description="in pixels")
    software: str
    model: str
    sha256: str = Field(description="of the bytes that the model's weights were read from")
    source: str = Field(description="of the weights")
    device: str = Field(description="device and backend, such as cuda or cpu:ncnn")
    options: Options
    repair: Repair = Repair()
    mask_url: str = Field("", description="of the mask of filled pixels (white); empty if nothing was filled")
    seconds: float = Field(ge=0)
    faces: str = Field(description="how many faces were detected and restored, or why none were looked for")
    warnings: list[str] = Field(description="what could not be kept or done")


class FileError(BaseModel):
    """A file that could not be restored, and why."""

    index: Index
    original_filename: str
    error: str


class Status(Accepted):
    """A job; each file is in results or in errors once it is finished."""

    progress: Progress
    activity: str = Field(description="the download that the running job waits for; empty without one")
    results: list[FileResult]
    errors: list[FileError]


class Deleted(BaseModel):
    """What happened to the job: an unfinished one is cancelled, an ended one deleted."""

    job_id: str
    status: Literal["cancelled", "deleted"]


class Estimate(BaseModel):
    """What restoring a photo takes."""

    width: int = Field(ge=1, description="of the result in pixels")
    height: int = Field(ge=1, description="of the result in pixels")
    model: str
    reason: str = Field(description="why this model")
    present: bool = Field(description="whether its file is present, or must be downloaded first")
    tiles: int | SkipJsonSchema[None] = Field(
        description="null while the model is not loaded", json_schema_extra=_NULLABLE
    )
    seconds: float | SkipJsonSchema[None] = Field(description="null if unknown", json_schema_extra=_NULLABLE)
    cost: float | SkipJsonSchema[None] = Field(
        description="in dollars; null without a price", json_schema_extra=_NULLABLE
    )
    warnings: list[str]


class NoOptions(BaseModel):
    """The options of a form that has none."""

    model_config = ConfigDict(extra="forbid")


class Finding(BaseModel):
    """Something about a photo."""

    name: Literal["noise", "jpeg", "blur", "damage", "faded", "grey", "toned", "faces"]
    text: str
    reason: str = Field(description="the measurement behind it")


class Look(BaseModel):
    """What is wrong with a photo, and which options suit it."""

    width: int = Field(ge=1, description="in pixels")
    height: int = Field(ge=1, description="in pixels")
    findings: list[Finding]
    options: dict[str, float | str] = Field(description="the suggested options by name")
    line: str = Field(description="the findings and the suggestion in one line")


class ModelInfo(BaseModel):
    """A model, and where its weights come from."""

    name: str
    kind: str
    about: str
    licence: str
    bytes: int
    present: bool
    source: str
    sha256: str


class Health(BaseModel):
    """The server responds."""

    status: str = "ok"


class Ready(Health):
    """A job would run. A probe without the API key gets the status alone."""

    model: str | SkipJsonSchema[None] = None
    queue_length: int | SkipJsonSchema[None] = Field(None, ge=0, description="running job included")
