"""The page's server as a Starlette application: addresses, limits, and errors as one sentence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cachedet.drawing.image_drawing import PALETTE
from cachedet.errors import InputError
from cachedet.prediction.image_detector import ImageDetector
from cachedet.serving.answer import answer
from cachedet.serving.gallery import PAGE, Gallery
from cachedet.serving.guard import Guard
from cachedet.serving.turns import GONE, MOST_WAITING, Turns
from cachedet.text import printable

_log = logging.getLogger(__name__)
_THUMBNAIL_THREADS = 2
_DEFAULT_CUT = 0.3
_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """What the page shows, and its limits."""

    detector: ImageDetector
    title: str  # name of the run or file
    cut: float | None = None  # score at which the slider starts: the run's best cut
    gallery: Gallery | None = None
    most_nbytes: int = 32 << 20  # of an image that is sent
    most_waiting: int = MOST_WAITING  # images, while one is detected in

    def facts(self) -> dict[str, Any]:
        """What the page needs to know before any image."""
        categories = self.detector.categories
        pairs = zip(categories.ids, categories.names, strict=True)
        return {
            "title": printable(self.title),
            "classes": [{"id": number, "name": printable(name)} for number, name in pairs],
            "colours": PALETTE,
            "image_size": self.detector.image_size,
            "cut": _DEFAULT_CUT if self.cut is None else self.cut,
            "cut_is_best": self.cut is not None,
            "most_nbytes": self.most_nbytes,
            "folder": None if self.gallery is None else printable(self.gallery.folder),
            "images": 0 if self.gallery is None else len(self.gallery),
            "page": PAGE,
        }


def make_application(served: Served) -> Starlette:
    """Everything under one address; nothing is written to disk."""
    handlers = _Handlers(served)
    page = files("cachedet.serving")
    look = files("cachedet.reporting").joinpath("page.css")  # the look of the report
    parts = {"/": page.joinpath("page.html"), "/look.css": look}
    parts |= {f"/page.{kind}": page.joinpath(f"page.{kind}") for kind in ("css", "js")}
    routes = [
        Route(path, partial(_part, content=part.read_bytes(), kind=part.name.rpartition(".")[2]))
        for path, part in parts.items()
    ]
    routes += [
        Route("/facts", handlers.facts),
        Route("/images", handlers.images),
        Route("/images/{number}/thumbnail", handlers.thumbnail),
        Route("/images/{number}/detect", handlers.detect_listed, methods=["POST"]),
        Route("/detect", handlers.detect_sent, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard)],
        exception_handlers={HTTPException: _as_json, InputError: _as_json},
    )


async def _part(request: Request, *, content: bytes, kind: str) -> Response:
    return Response(content, media_type=_MEDIA_TYPES[kind])


async def _as_json(request: Request, error: Exception) -> Response:
    """One sentence for the page."""
    if isinstance(error, HTTPException):
        status, text, headers = error.status_code, error.detail, error.headers
    else:
        status, text, headers = 422, str(error), None
    return JSONResponse({"error": printable(text)}, status, headers=headers)


class _Handlers:
    """What each address answers."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._turns = Turns(most_waiting=served.most_waiting)
        self._thumbnails = ThreadPoolExecutor(_THUMBNAIL_THREADS, "thumbnail")

    async def facts(self, request: Request) -> Response:
        return JSONResponse(self._served.facts())

    async def images(self, request: Request) -> Response:
        """The names on one page of the folder: ?start=24."""
        gallery = self._gallery()
        text = request.query_params.get("start", "0")
        start = _whole_number(text)
        if start is None:
            raise HTTPException(400, f"start expects a number of an image, got {text!r}")
        return JSONResponse({"images": gallery.listed(start), "total": len(gallery)})

    async def thumbnail(self, request: Request) -> Response:
        gallery, number = self._number(request)
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._thumbnails, gallery.thumbnail, number)
        return Response(image, media_type="image/jpeg")

    async def detect_listed(self, request: Request) -> Response:
        """In an image of the folder."""
        gallery, number = self._number(request)
        await _read_body(request, self._served.most_nbytes)  # behind it is seen who has gone

        def detect() -> bytes:
            name, truth = gallery.names[number], gallery.truth_of(number)
            with gallery.opened(number) as content:
                return answer(content, self._served.detector, name=name, truth=truth)

        return await self._detect(request, detect)

    async def detect_sent(self, request: Request) -> Response:
        """In an image file whose bytes are the body."""
        content = await _read_body(request, self._served.most_nbytes)
        name = request.query_params.get("name", "image")[:255]
        return await self._detect(
            request, partial(answer, content, self._served.detector, name=name)
        )

    async def _detect(self, request: Request, job: Callable[[], bytes]) -> Response:
        content = await self._turns.take(partial(_guarded, job), is_gone=request.is_disconnected)
        return Response(content, media_type="application/json")

    def _number(self, request: Request) -> tuple[Gallery, int]:
        """Raises HTTPException where there is no such image."""
        gallery, text = self._gallery(), request.path_params["number"]
        number = _whole_number(text)
        if number is None or number >= len(gallery):
            raise HTTPException(404, f"there is no image {text}; the folder has {len(gallery)}")
        return gallery, number

    def _gallery(self) -> Gallery:
        if self._served.gallery is None:
            raise HTTPException(404, "no folder was given: start `cachedet serve` with --images")
        return self._served.gallery


def _whole_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _guarded(job: Callable[[], Value]) -> Value:
    """Raises InputError, and HTTPException for whatever else goes wrong inside a detector."""
    try:
        return job()
    except InputError:
        raise
    except Exception as error:  # the page stays, and says so
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _log.warning("detection failed: %s: %s", type(error).__name__, reason)
        raise HTTPException(500, f"the detector failed on this image: {reason}") from error


async def _read_body(request: Request, most: int) -> bytes:
    """Raises HTTPException as soon as it is known to be too large."""
    too_large = HTTPException(
        413,
        f"images of up to {most >> 20} MB are taken; start with a larger --most-mb",
        headers={"Connection": "close"},  # else the server would wait for the rest
    )
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async for part in request.stream():
            if len(body) + len(part) > most:
                raise too_large
            body += part
    except ClientDisconnect as error:
        raise HTTPException(GONE, "the image was not sent to its end") from error
    return bytes(body)
