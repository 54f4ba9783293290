"""Error responses: one body for all of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Scope

from ..errors import RestoreError

RETRY_AFTER = 30  # seconds


class Error(BaseModel):
    """The body of every error response; fields that do not apply are left out."""

    error: str = Field(description="the reason: the value, the limit and what to do")
    index: int | SkipJsonSchema[None] = Field(
        None,
        ge=0,
        description="which file of the request the error belongs to, from 0",
    )
    original_filename: str | SkipJsonSchema[None] = Field(None, description="name of that file")
    limit: int | SkipJsonSchema[None] = Field(None, description="the limit that was exceeded")
    allowed: list[str] | SkipJsonSchema[None] = Field(None, description="the names that are allowed")


class Refusal(Exception):
    """An error response. `details` are fields of Error; 503 and 507 get Retry-After."""

    def __init__(
        self,
        status: int,
        error: str,
        *,
        headers: Mapping[str, str] | None = None,
        **details: Any,  # noqa: ANN401  of the types in Error
    ) -> None:
        super().__init__(error)
        retry = {"Retry-After": str(RETRY_AFTER)} if status in (503, 507) else {}
        self.status, self.headers = status, retry | dict(headers or {})
        self.body = Error(error=error, **details)

    def response(self, scope: Scope) -> Response:
        """Return the response; an upload of the page, which displays the body, gets the reason alone."""
        if scope["path"].endswith("/gradio_api/upload"):
            return PlainTextResponse(self.body.error, self.status, self.headers)
        return JSONResponse(self.body.model_dump(exclude_none=True), self.status, self.headers)


@contextmanager
def refuse_with(status: int, error_type: type[RestoreError], **details: Any) -> Iterator[None]:  # noqa: ANN401
    """Convert an error of that type to a Refusal with this status and these details."""
    try:
        yield
    except error_type as error:
        file = details.get("original_filename")
        raise Refusal(status, f"{file}: {error}" if file else str(error), **details) from error


def invalid_values(errors: Sequence[Any]) -> str:
    """Describe Pydantic's errors: the name, value and limit of each field."""
    by_name = {str(error["loc"][-1 if error["loc"][0] == "path" else 0]): error for error in errors}
    return "; ".join(
        f"{name} is {error['input']!r}; {error['msg'].replace('Input should be', 'it must be')}"
        for name, error in by_name.items()
    )
