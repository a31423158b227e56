"""An S3 server on this machine (moto), which can fail as servers do, be ended and come back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Request = tuple[str, str]  # method and key, without the bucket
Fault = Callable[[str, str], "tuple[int, str] | None"]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "S3CRETKEY",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        pass

    def log(self, *_: object, **__: object) -> None:
        """A client that went away is no news."""


def nothing(_: str, __: str) -> None:
    """No fault."""


class S3Server:
    """`before` may answer a request instead of the storage, `after` instead of its answer.

    Requests come to the storage one at a time, as moto looks and writes without a lock.
    """

    def __init__(self) -> None:
        os.environ.setdefault("MOTO_S3_CUSTOM_ENDPOINTS", "")
        self._storage = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()
        self._port = 0
        self._buckets = 0
        self.forget()
        self.start()
        os.environ.update(ENVIRONMENT)

    def forget(self) -> None:
        """No faults from here on, and no requests so far."""
        self.before: Fault = nothing
        self.after: Fault = nothing
        self.requests: list[Request] = []

    def start(self) -> None:
        self._server = make_server(
            "127.0.0.1", self._port, self._answer, threaded=True, request_handler=_Quiet
        )
        self._port = self._server.port
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{self._port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Connections are cut; what was stored stays."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def new_url(self, name: str = "s.zarr") -> str:
        """A place in a new bucket."""
        self._buckets += 1
        bucket = f"bucket-{self._buckets}"
        self._call("PUT", f"/{bucket}")
        return f"s3://{bucket}/some/{name}"

    def _call(self, method: str, path: str) -> None:
        import urllib.request

        url = f"http://127.0.0.1:{self._port}{path}"
        headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4"}
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers)):
            pass

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"])
        key = path.lstrip("/").partition("/")[2]
        self.requests.append((method, key))
        if (fault := self.before(method, key)) is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return _say(fault, start)
        with self._one_at_a_time:
            said: list[Any] = []
            body = b"".join(self._storage(environ, lambda *args: said.append(args)))
        if (fault := self.after(method, key)) is not None:
            return _say(fault, start)
        start(*said[0])
        return [body]


def _say(fault: tuple[int, str], start: Callable[..., Any]) -> Iterator[bytes]:
    status, code = fault
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    headers = {"Content-Type": "application/xml", "Content-Length": str(len(body))}
    start(f"{status} {code}", list(headers.items()))
    return iter([body])
