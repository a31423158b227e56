"""What a server answered, told from the exceptions of libraries that need not be installed."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import pytest

from cachedet.store.files.answers import classify


class ClientError(Exception):
    """Named and shaped as botocore's."""

    def __init__(self, code: str, status: int, **headers: str) -> None:
        super().__init__(f"An error occurred ({code})")
        metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
        self.response = {"Error": {"Code": code}, "ResponseMetadata": metadata}


class ClientResponseError(Exception):
    """Named and shaped as aiohttp's."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status}, url='http://alice:S3CRET@host'")
        self.status, self.headers = status, headers or {}


class NoCredentialsError(Exception):
    """Named as botocore's."""


class ServerDisconnectedError(Exception):
    """Named as aiohttp's."""


class EndpointConnectionError(Exception):
    """Named as botocore's."""


class HttpError(Exception):
    """Shaped as gcsfs's."""

    code = 503


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


PASSING = (
    (ClientResponseError(503), "503 Service Unavailable"),
    (ClientResponseError(429), "429 Too Many Requests"),
    (ClientError("SlowDown", 503), "SlowDown"),
    (ClientError("RequestTimeout", 400), "RequestTimeout"),
    (HttpError(), "503"),
    (TimeoutError(), "no answer came in time"),
    (ConnectionResetError(), "connection was cut"),
    (ServerDisconnectedError(), "connection was cut"),
    (ConnectionRefusedError(), "refused the connection"),
    (OSError(errno.ECONNREFUSED, "Connect call failed"), "refused the connection"),
    (EndpointConnectionError(), "could not be reached"),
    (socket.gaierror(-2, "Name or service not known"), "DNS"),
    (OSError(errno.ENETUNREACH, "Network is unreachable"), "Network is unreachable"),
    (caused(FileNotFoundError("x"), ClientResponseError(500)), "500 Internal Server Error"),
    (caused(FileNotFoundError("x"), TimeoutError()), "no answer came in time"),
)
LASTING = (
    (ClientResponseError(401), "401 Unauthorized: it wants credentials"),
    (ClientResponseError(403), "403 Forbidden"),
    (ClientResponseError(302), "302 Found"),
    (ClientResponseError(501), "501 Not Implemented"),
    (ClientError("AccessDenied", 403), "refuses the credentials (AccessDenied)"),
    (ClientError("ExpiredToken", 400), "refuses the credentials (ExpiredToken)"),
    (ClientError("SignatureDoesNotMatch", 403), "SignatureDoesNotMatch"),
    (caused(PermissionError("Forbidden"), ClientError("AccessDenied", 403)), "AccessDenied"),
    (NoCredentialsError(), "no credentials were found"),
    (PermissionError("no"), "refuses the credentials"),
    (ssl.SSLCertVerificationError(), "certificate is not trusted"),
    (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "TLS"),
    (ValueError("Invalid IPv6 URL"), "ValueError: Invalid IPv6 URL"),
)


@pytest.mark.parametrize(("error", "words"), PASSING, ids=repr)
def test_what_may_pass_is_asked_again(error: BaseException, words: str) -> None:
    answer = classify(error, str)
    assert words in answer.what
    assert answer.passes
    assert not answer.missing


@pytest.mark.parametrize(("error", "words"), LASTING, ids=repr)
def test_what_stays_says_what_to_do(error: BaseException, words: str) -> None:
    answer = classify(error, str)
    assert words in answer.what
    assert answer.remedy
    assert not answer.passes
    assert not answer.missing


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("x"),
        ClientResponseError(404),
        ClientError("NoSuchBucket", 404),
        caused(FileNotFoundError("x"), ClientError("NoSuchKey", 404)),
    ],
    ids=repr,
)
def test_what_is_missing(error: BaseException) -> None:
    assert classify(error, str).missing


def test_a_server_may_ask_to_wait() -> None:
    assert classify(ClientResponseError(429, {"Retry-After": "7"}), str).wait == 7
    wait: dict[str, Any] = {"retry-after": "3"}
    assert classify(ClientError("Other", 503, **wait), str).wait == 3
    assert classify(ClientResponseError(503, {"Retry-After": "Fri, 1 Jan"}), str).wait == 0


def test_foreign_texts_are_hidden() -> None:
    answer = classify(RuntimeError("S3CRET"), lambda text: text.replace("S3CRET", "***"))
    assert answer.what == "the request failed (RuntimeError: ***)"


def test_a_proxy_is_called_a_proxy() -> None:
    error = Exception("S3CRET")
    error.status = 407  # type: ignore[attr-defined]
    answer = classify(error, str)
    assert answer.what.startswith("a proxy on the way answered 407")
    assert "HTTPS_PROXY" in answer.remedy
    assert answer.refused
