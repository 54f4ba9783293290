"""The routes of the REST API and their OpenAPI description."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import swagger_ui_bundle
from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ...options import FACE_MASKS, FORMATS, Options
from ...version import __version__
from ..ui.layout import TITLE
from .routes import RestApi

_STATUS = {
    "job_id": "0123456789abcdef0123456789abcdef",
    "status": "completed",
    "queue_position": 0,
    "progress": {"done": 1000, "total": 1000},
    "results": [
        {
            "original_filename": "old.jpg",
            "url": "http://127.0.0.1:7860/processed/0123456789abcdef0123456789abcdef/0/old_4x.jpg",
            "width": 1600,
            "height": 1200,
            "model": "restore-lite-2-x4",
            "faces": "faces: 2 found, 2 restored",
            "warnings": [],
        }
    ],
    "errors": [],
}


def _router(rest: RestApi) -> APIRouter:
    router = APIRouter()

    def add(path: str, run: Callable, method: str, summary: str, status: int = 200, **extra: Any) -> None:  # noqa: ANN401
        example = f"curl {_CURL.get(path, '')}http://127.0.0.1:7860{path}"
        router.add_api_route(
            *(path, run),
            methods=[method],
            tags=["Restore photos"],
            summary=summary,
            description=f"`{example}`",
            status_code=status,
            response_model=None,
            openapi_extra=extra,
        )
        if method == "GET":
            router.add_api_route(path, run, methods=["HEAD"], response_model=None, include_in_schema=False)

    example = {"200": {"content": {"application/json": {"example": _STATUS}}}}
    add("/enhance", rest.enhance, "POST", "Submit a job", 202, requestBody=_form(multiple=True))
    add("/status/{job_id}", rest.status, "GET", "Get a job's status", parameters=[_JOB], responses=example)
    add(
        "/status/{job_id}/events",
        rest.events,
        "GET",
        "Stream status as server-sent events; the last one is named end",
        parameters=[_JOB],
    )
    index = {"name": "index", "in": "path", "required": True, "schema": {"type": "integer"}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    path = "/processed/{job_id}/{index}/{name}"
    add(path, rest.processed, "GET", "Get a restored photo; supports Range", parameters=[_JOB, index, name])
    add("/jobs/{job_id}", rest.delete, "DELETE", "Cancel a job, or delete an ended one", parameters=[_JOB])
    add("/quote", rest.quote, "POST", "Estimate size, time and cost", requestBody=_form(multiple=False))
    add("/models", rest.models, "GET", "List the models")
    add("/health", rest.health, "GET", "Check that the server responds")
    add("/ready", rest.ready, "GET", "Check that a job would run")
    add("/metrics", rest.metrics, "GET", "Export metrics for Prometheus")
    return router


# curl options of the examples
_CURL = {
    "/enhance": "-F files=@old.jpg -F outscale=2 -F face_enhance=auto ",
    "/quote": "-F files=@old.jpg -F outscale=2 ",
    "/jobs/{job_id}": "-X DELETE ",
    "/status/{job_id}/events": "-N ",
}
_JOB = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}


def _form(*, multiple: bool) -> dict[str, Any]:
    """Describe a form: the files, and every option with its default."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    types = {str: "string", float: "number", int: "integer", bool: "boolean"}
    options: dict[str, Any] = {
        field.name: {"type": types[type(field.default)], "default": field.default}
        for field in fields(Options)
    }
    options["long_side"]["description"] = "in pixels; 0: use outscale"
    options["print_size"] |= {"description": "replaces outscale", "example": "30x20cm"}
    options["max_bytes"]["description"] = "lowers the quality until the file is no larger; 0: no limit"
    options["face_enhance"] = {"enum": ["auto", "true", "false"], "default": "auto"}
    options["format"]["enum"], options["face_mask"]["enum"] = list(FORMATS), list(FACE_MASKS)
    schema = {
        "type": "object",
        "required": ["files"],
        "properties": {"files": {"type": "array", "items": file} if multiple else file, **options},
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


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
    if "components" not in schema:
        schema["components"] = {}
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
