"""The web server: what the page asks for, and the page itself."""

from __future__ import annotations

import contextlib
import logging
import mimetypes
import time
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from memvit.app.board import BusyError
from memvit.app.camera import VisitorCamera, read_pictures
from memvit.app.events import events
from memvit.app.guard import ANY_HOST, Guard
from memvit.app.job import RESULTS, Job, plain_name
from memvit.app.recognition import WENT_WRONG, plain_reason
from memvit.app.service import Service
from memvit.app.uploads import UploadError, check_size, receive
from memvit.report.page import REPORT_FILE

logger = logging.getLogger(__name__)

MAX_PICTURES_BYTES = 32_000_000
GONE = "These results are not here: they were removed, or the server was started anew."


class CameraRequest(BaseModel):
    """A visitor's own camera."""

    compare: bool = False


class SourceRequest(BaseModel):
    """An address, or a camera of the server."""

    source: str
    compare: bool = False


def create_app(service: Service, *, password: str | None = None, allowed_hosts: Sequence[str] = (ANY_HOST,)) -> FastAPI:
    """The web application; ends `service` when it is shut down.

    Args:
        service: does the work.
        password: what visitors must give, by HTTP's basic authentication; None: nothing.
        allowed_hosts: names under which the server may be addressed.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    # Its pages of documentation load scripts from elsewhere.
    app = FastAPI(title="memvit", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    _add_errors(app, service)
    _add_operation(app, service)
    _add_starts(app, service)
    _add_jobs(app, service)
    static = Path(str(resources.files("memvit.app").joinpath("static")))
    theme = Path(str(resources.files("memvit.report").joinpath("theme.css")))

    @app.get("/static/theme.css")  # it is the report's as well
    async def colours() -> Response:
        return FileResponse(theme, media_type="text/css")

    app.mount("/static", StaticFiles(directory=static), name="static")

    @app.get("/")
    async def page() -> Response:
        return FileResponse(static / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"})

    app.add_middleware(Guard, password=password, allowed_hosts=tuple(allowed_hosts))
    return app


def _add_errors(app: FastAPI, service: Service) -> None:
    """Every error is a sentence; what the visitor cannot help is in the log."""

    def answer(status: int, text: str) -> JSONResponse:
        service.telemetry.refused.labels(str(status)).inc()
        return JSONResponse({"error": text}, status)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> Response:
        texts = {404: "There is no such page.", 405: "This cannot be done here."}
        is_own = isinstance(error, HTTPException)
        return answer(error.status_code, str(error.detail) if is_own else texts.get(error.status_code, WENT_WRONG))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        where = ", ".join(".".join(map(str, entry["loc"][1:])) for entry in error.errors())
        return answer(422, f"The request does not make sense ({where}).")

    @app.exception_handler(UploadError)
    async def upload(_: Request, error: UploadError) -> Response:
        return answer(error.status, str(error))

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> Response:
        response = answer(503, str(error))
        response.headers["Retry-After"] = "60"
        return response

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        logger.error("a request failed", exc_info=error)
        return answer(500, WENT_WRONG)


def _add_operation(app: FastAPI, service: Service) -> None:
    """For whoever runs the server."""

    @app.get("/healthz")
    async def health() -> Response:
        is_well = service.engine.is_alive and not service.board.closed
        return JSONResponse({"status": "ok" if is_well else "failed"}, 200 if is_well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/about")
    async def about() -> dict[str, Any]:
        return service.about()


def _add_starts(app: FastAPI, service: Service) -> None:
    """What begins a recognition."""

    @app.post("/api/jobs", status_code=201)
    async def upload(request: Request, name: str = "video", compare: bool = False) -> dict[str, str]:
        size = check_size(request.headers.get("content-length"), service.limits.upload_bytes)
        job = service.board.new(plain_name(name), "file", compare and service.has_memory)
        try:
            await receive(request.stream(), job.upload, size, is_ending=lambda: service.board.closed)
            service.telemetry.received.inc(size)
            await run_in_threadpool(service.check_upload, job)
        except BaseException as error:
            service.board.remove(job)
            if isinstance(error, ClientDisconnect):
                raise UploadError(400, "The upload was broken off.") from error
            if isinstance(error, ValueError):
                raise UploadError(422, str(error)) from error
            raise
        service.start(job)
        return {"id": job.id}

    @app.post("/api/jobs/camera", status_code=201)
    async def camera(wanted: CameraRequest) -> dict[str, str]:
        return {"id": service.start_camera(wanted.compare).id}

    @app.post("/api/jobs/source", status_code=201)
    async def source(wanted: SourceRequest) -> dict[str, str]:
        if not service.sources:
            raise HTTPException(
                403, "This server opens no addresses. Whoever runs it can allow it with --allow_sources."
            )
        try:
            return {"id": service.start_source(wanted.source.strip(), wanted.compare).id}
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    @app.post("/api/jobs/{id}/frames")
    async def frames(id: str, request: Request) -> dict[str, int]:
        job = _find(service, id)
        if not isinstance(job.live, VisitorCamera) or job.stopping.is_set():
            raise HTTPException(409, "This camera was stopped.")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_PICTURES_BYTES:
                raise HTTPException(413, "These are too many pictures at once.")
        job.live.heard_s = time.monotonic()
        try:
            pictures = await run_in_threadpool(read_pictures, bytes(body))
        except ValueError as error:
            raise HTTPException(400, f"These pictures cannot be used: {error}.") from error
        if job.state != "running":  # nobody would take them from the queue
            return {"received": 0, "skipped": len(pictures)}
        received, skipped = await run_in_threadpool(job.live.push, pictures)
        return {"received": received, "skipped": skipped}


def _add_jobs(app: FastAPI, service: Service) -> None:
    """What can be asked of a recognition."""
    board = service.board

    @app.get("/api/jobs/{id}")
    async def state(id: str) -> dict[str, Any]:
        job = _find(service, id)
        return job.describe(board.position(job), service.limits.keep_s)

    @app.get("/api/jobs/{id}/events")
    async def follow(id: str, last_event_id: Annotated[str, Header()] = "0") -> Response:
        job = _find(service, id)
        last_id = int(last_event_id) if last_event_id.isdecimal() and len(last_event_id) < 16 else 0
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events(job, board, last_id), media_type="text/event-stream", headers=headers)

    @app.post("/api/jobs/{id}/stop")
    async def stop(id: str) -> dict[str, str]:
        job = _find(service, id)
        await run_in_threadpool(board.stop, job)
        return {"id": job.id}

    @app.delete("/api/jobs/{id}", status_code=204)
    async def remove(id: str) -> None:
        await run_in_threadpool(board.remove, _find(service, id))

    @app.get("/api/jobs/{id}/video")
    async def video(id: str) -> Response:
        job = _find(service, id)
        if not job.has_video:
            raise HTTPException(404, "There is no video of this.")
        guessed = mimetypes.guess_type(job.name)[0] or ""
        kind = guessed if guessed.startswith("video/") else "application/octet-stream"
        return FileResponse(job.upload, media_type=kind)

    @app.get("/api/jobs/{id}/picture")
    async def picture(id: str) -> Response:
        job = _find(service, id)
        if job.picture is None:
            raise HTTPException(404, "There is no picture yet.")
        return Response(job.picture, media_type="image/jpeg")

    @app.get("/api/jobs/{id}/files/{name}")
    async def file(id: str, name: str) -> Response:
        job = _find(service, id)
        if name not in job.files():
            raise HTTPException(
                404, f"There is no such file: there are {', '.join(RESULTS)} and {REPORT_FILE}, once it has ended."
            )
        if name == REPORT_FILE:
            try:
                path = await run_in_threadpool(service.report, job)
            except ValueError as error:
                logger.warning("%s (%s): no report: %s", job.id[:8], job.name, error)
                raise HTTPException(422, plain_reason(error, job)) from error
        else:
            path = job.results / name
        return FileResponse(path, filename=f"{Path(job.name).stem}.{name}")


def _find(service: Service, id: str) -> Job:
    job = service.board.get(id)
    if job is None:
        raise HTTPException(404, GONE)
    return job
