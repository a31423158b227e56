"""A server on this machine alone, until it is stopped."""

from __future__ import annotations

import errno
import logging
import os
import socket

import uvicorn
from starlette.types import ASGIApp

from cachedet.errors import InputError

_HOST = "127.0.0.1"
_PATIENCE = 3  # seconds that answers under way have once it is stopped


class LocalServer:
    """Its port is taken from the start, so that one that is in use is known before any work."""

    def __init__(self, port: int) -> None:
        """Raises InputError where the port cannot be had; 0 takes any that is free."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name == "posix":  # elsewhere it would let two servers share the port
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((_HOST, port))
        except OSError as error:
            self._socket.close()
            is_used = error.errno == errno.EADDRINUSE
            reason = "another program uses it" if is_used else error.strerror or str(error)
            raise InputError(
                f"--port {port} of {_HOST} cannot be taken: {reason}; name another one, or 0 for "
                "any that is free"
            ) from error
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self._socket.getsockname()[1]}/"

    def close(self) -> None:
        """Give the port back where nothing was served."""
        self._socket.close()

    def listen(self) -> None:
        """From now on who connects waits for `run`."""
        self._socket.listen(128)

    def run(self, application: ASGIApp) -> None:
        """Serve until `stop` is called or Ctrl-C pressed, which is how it ends."""
        config = uvicorn.Config(
            application,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_PATIENCE,
        )
        self._server = uvicorn.Server(config)
        log = logging.getLogger("uvicorn.error")
        log.addFilter(self._is_to_be_told)
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:
            return
        finally:
            log.removeFilter(self._is_to_be_told)

    def stop(self) -> None:
        """From another thread."""
        if self._server is not None:
            self._server.should_exit = True

    def _is_to_be_told(self, record: logging.LogRecord) -> bool:
        """Not the end of requests that were under way when it was stopped, with its traceback."""
        return self._server is None or not self._server.should_exit
