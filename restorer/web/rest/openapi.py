"""The routes of the REST API and their OpenAPI description."""

from collections.abc import Callable
from inspect import getdoc
from typing import Any

import swagger_ui_bundle
from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ...version import __version__
from ..refusal import Error
from ..ui.texts import TITLE
from .routes import MEDIA_TYPES, RestApi
from .schemas import NoOptions

_ERRORS: dict[int | str, str] = {
    400: "invalid Host header, or incomplete upload",
    401: "missing or wrong API key",
    403: "request of a page of another site",
    404: "no such job or file",
    408: "the upload stopped",
    413: "a file or the request is too large",
    416: "the range begins after the end of the file",
    422: "invalid files, options or parameters",
    429: "too many wrong API keys",
    503: "queue full, shutting down, or not ready",
    507: "disk full",
    "default": "unexpected error; see the server log",
}
_ALWAYS = (400, 401, 429, "default")
_FORM = (403, 408, 413, 422)
_RETRY = {"headers": {"Retry-After": {"description": "in seconds", "schema": {"type": "integer"}}}}
_LOCATION = {"headers": {"Location": {"description": "path of its status", "schema": {"type": "string"}}}}
_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}


def _router(rest: RestApi) -> APIRouter:
    router = APIRouter()

    def add(
        path: str,
        run: Callable[..., Any],
        method: str,
        *errors: int,
        content: dict[str, Any] | None = None,
        others: dict[int, dict[str, Any]] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Add a route.

        content  describes its response by media type where a model does not
        others   describes further responses by status
        """
        summary, _, details = (getdoc(run) or "").partition("\n\n")
        responses: dict[int | str, dict[str, Any]] = {**(others or {})} | {
            status: {"model": Error, "description": _ERRORS[status]}
            | (_RETRY if status in (429, 503, 507) else {})
            for status in (*_ALWAYS, *errors)
        }
        if content:
            responses[200] = {"content": content}
            options |= {"response_class": Response, "response_model": None}
        router.add_api_route(
            *(path, run),
            methods=[method],
            tags=["Restore photos"],
            summary=summary.rstrip("."),
            description=details,
            operation_id=run.__name__,
            responses=responses,
            **options,
        )
        if method == "GET" and "text/event-stream" not in (content or ()):  # which takes as long as the job
            router.add_api_route(path, run, methods=["HEAD"], response_model=None, include_in_schema=False)

    accepted = {
        "status_code": 202,
        "openapi_extra": _form(rest, "JobForm", several=True),
        "others": {202: _LOCATION},
    }
    add("/enhance", rest.enhance, "POST", *_FORM, 503, 507, **accepted)
    add("/status/{job_id}", rest.status, "GET", 404)
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    add(
        "/status/{job_id}/events",
        rest.events,
        "GET",
        404,
        content=events,
        others={204: {"description": "the stream has ended"}},
    )
    images = {media_type: {"schema": _BINARY} for media_type in MEDIA_TYPES.values()}
    part = {206: {"description": "the part that Range names", "content": images}}
    errors = (404, 416, 422)
    add("/processed/{job_id}/{index}/{name}", rest.processed, "GET", *errors, content=images, others=part)
    add("/jobs/{job_id}", rest.delete, "DELETE", 403, 404)
    add("/quote", rest.quote, "POST", *_FORM, openapi_extra=_form(rest, "PhotoForm"))
    add("/look", rest.look, "POST", *_FORM, openapi_extra=_form(rest, "LookForm", NoOptions))
    add("/models", rest.models, "GET")
    add("/health", rest.health, "GET", 503)
    add("/ready", rest.ready, "GET", 503)
    add("/metrics", rest.metrics, "GET", content={"text/plain": {"schema": {"type": "string"}}})
    return router


def _form(
    rest: RestApi, title: str, model: type[BaseModel] | None = None, *, several: bool = False
) -> dict[str, Any]:
    """Describe a form.

    model    of its options; default: all options
    several  photos, and a mask if there is one; else one photo
    """
    schema = (model or rest.options_model).model_json_schema()
    schema["properties"]["files"] = _BINARY
    if several:
        most = rest.settings.max_files_per_job
        schema["properties"]["files"] = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": most}
        about = "mask for a single photo; light pixels are filled"
        schema["properties"]["mask"] = _BINARY | {"description": about}
    schema.pop("description", None)  # that of the model, which does not know the files
    schema |= {"title": title, "required": ["files"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def routes(rest: RestApi) -> list[BaseRoute]:
    """Return all routes of the API, /openapi.json and /docs."""
    api = list(_router(rest).routes)
    return api + _documentation(api, rest.settings.root_path)


def _documentation(described: list[BaseRoute], root_path: str) -> list[BaseRoute]:
    """Return /openapi.json, and /docs, whose Swagger UI is served from an installed package."""
    # the installed Swagger UI supports 3.0
    schema = get_openapi(
        title=TITLE,
        version=__version__,
        openapi_version="3.0.3",
        routes=described,
        servers=[{"url": root_path or "/"}],
    )
    schema["components"]["securitySchemes"] = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-KEY"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    schema["security"] = [{}, {"key": []}, {"bearer": []}]

    def docs(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=TITLE,
            swagger_js_url=f"{root}/docs/static/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/static/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/static/favicon-32x32.png",
        )

    return [
        Route("/openapi.json", lambda _: JSONResponse(schema)),
        Route("/docs", docs),
        Mount("/docs/static", StaticFiles(directory=swagger_ui_bundle.swagger_ui_path)),
    ]
