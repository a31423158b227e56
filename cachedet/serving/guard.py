"""Who may ask the page's server, and what browsers may do with its answers.

It listens on this machine only, but every web page that its user opens can send requests there.
A page under another name that was made to lead here (DNS rebinding) sends that name as Host; a
page of another origin says so in Origin or Sec-Fetch-Site. Both are refused, and no header ever
allows another origin to read an answer.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1)(:\d{1,5})?", re.IGNORECASE)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",  # the next folder on this port has other images
}


class Guard:
    """Refuses requests that are not the page's own; every answer gets the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        reason = _refusal(Headers(scope=scope), scope["method"], scope["path"])
        if reason is not None:
            await JSONResponse({"error": reason}, 403)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def _refusal(headers: Headers, method: str, path: str) -> str | None:
    """Why a request is refused; None where it is not."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _LOOPBACK.fullmatch(hosts[0]):
        return "this server answers only under the names localhost and 127.0.0.1"
    origins = headers.getlist("origin")
    if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
        return "requests of other origins are refused"
    site = headers.get("sec-fetch-site", "same-origin")
    is_link = method == "GET" and path == "/"
    if site not in ("same-origin", "none") and not is_link:
        return "requests of other sites are refused"
    return None
