"""What a server answered instead of bytes, told from the exceptions of any storage's library.

Nothing of those libraries is imported: aiohttp's, botocore's and others' exceptions are known by
their status, their code or their name, wherever in a chain of causes they stand.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

CREDENTIALS = (
    "Give credentials that hold: user:password@ in an http(s) URL, or what the storage's package "
    "reads from the environment (s3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY). "
    "cachedet keeps none, so they are needed again wherever the store is opened"
)
_URL = "Look at the URL: its scheme, host, port and path"
_PROXY = "Look at HTTP_PROXY, HTTPS_PROXY and NO_PROXY: user:password@ there is for the proxy"
_CERTIFICATE = (
    "Look at the host name, at the machine's clock, and, where a proxy or a server signs its own "
    "certificates, at SSL_CERT_FILE"
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Why a request gave no bytes."""

    what: str  # as the end of "X: "
    remedy: str = ""  # empty where it passes: asking again is all there is
    passes: bool = False  # may be over in a moment
    unmet: bool = False  # nobody was reached at all: a name or port that may be wrong
    missing: bool = False  # the server says that there is no such object
    refused: bool = False  # it does not give this object, to us or in this way
    past_end: bool = False  # the object ends before the range
    late: bool = False  # none came in the time that was given
    wait: float = 0.0  # seconds the server asks for


class BadAnswerError(Exception):
    """What came is not what a storage gives: too little, too much, or a page for people."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.what)
        self.answer = answer


def classify(error: BaseException, hide: Callable[[str], str]) -> Answer:
    """The answer that an exception stands for; `hide` takes credentials out of foreign texts."""
    chain = list(_chain(error))
    for find in (_own, _by_wire, _by_code, _by_status, _by_kind):
        for one in chain:
            answer = find(one)
            if answer is not None:
                return answer
    first = chain[0]  # FileNotFoundError may stand for anything, see `_by_kind`
    text = hide(str(first).partition("\n")[0]).strip() or "no reason given"
    what = f"the request failed ({type(first).__name__}: {text[:300]})"
    return Answer(what=what, remedy=_URL, passes=isinstance(first, OSError))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Causes first: the library nearest to the wire knows best."""
    causes: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and len(causes) < 10:
        causes.append(one)
        one = one.__cause__ or one.__context__
    yield from reversed(causes)


def _own(error: BaseException) -> Answer | None:
    return error.answer if isinstance(error, BadAnswerError) else None


def _by_wire(error: BaseException) -> Answer | None:
    """Of aiohttp's parser, which gives what is cut off or no HTTP the status 400 of its own."""
    if any(kind.__name__ == "HttpProcessingError" for kind in type(error).__mro__):
        return Answer(what="the answer was cut off, or is no HTTP", passes=True)
    return None


_MISSING_CODES = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion"})
_CREDENTIAL_CODES = frozenset(
    {
        "AccessDenied", "AllAccessDisabled", "ExpiredToken", "ExpiredTokenException",
        "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "RequestExpired",
        "SignatureDoesNotMatch", "TokenRefreshRequired", "AuthorizationHeaderMalformed",
    }
)  # fmt: skip
_PASSING_CODES = frozenset(
    {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}
)


def _by_code(error: BaseException) -> Answer | None:
    """By the code of an S3 error."""
    code = str(_look(error, "response", "Error", "Code") or _said_by_obstore(error, _CODE_TEXT))
    if code in _MISSING_CODES:
        return Answer(what=f"there is no such object ({code})", remedy=_URL, missing=True)
    if code in _CREDENTIAL_CODES:
        what = f"the server refuses the credentials ({code})"
        return Answer(what=what, remedy=CREDENTIALS, refused=True)
    if code in _PASSING_CODES:
        return Answer(what=f"the server answered {code}", passes=True)
    return None


_CODE_TEXT = re.compile(r"<Code>(\w+)</Code>")
_STATUS_TEXT = re.compile(r"(?:status code: |HTTP status \w+ error \()(\d{3})")


def _said_by_obstore(error: BaseException, pattern: re.Pattern[str]) -> str:
    """Part of a message of obstore, whose exceptions have only their text."""
    if type(error).__module__.partition(".")[0] != "obstore":
        return ""
    found = pattern.search(str(error))
    return "" if found is None else found[1]


def _by_status(error: BaseException) -> Answer | None:
    """By the status of an HTTP response."""
    status = _status_of(error)
    if status is None:
        return None
    known = {one.value: one.phrase for one in HTTPStatus}
    what = f"the server answered {status} {known.get(status, '')}".rstrip()
    if status == 401:
        return Answer(what=f"{what}: it wants credentials", remedy=CREDENTIALS, refused=True)
    if status == 407:
        what = f"a proxy on the way answered {status} {known[status]}: it wants credentials"
        return Answer(what=what, remedy=_PROXY, refused=True)
    if status == 403:
        what += ": it refuses these credentials, or anybody without; some refuse so what is missing"
        return Answer(what=what, remedy=CREDENTIALS, refused=True)
    if status in (404, 410):
        return Answer(what=what, remedy=_URL, missing=True, refused=True)
    if status == 416:
        return Answer(what=what, past_end=True, remedy=_URL)
    if status in (408, 425, 429) or (status >= 500 and status not in (501, 505, 511)):
        return Answer(what=what, passes=True, wait=_wait_of(error))
    if status < 400:
        return Answer(what=f"{what}, and no file", remedy=CREDENTIALS, refused=True)
    return Answer(what=what, remedy=_URL, refused=True)


_LATE = "no answer came in time"
_KINDS = {  # by the names of classes, of any library
    "no credentials were found": (
        "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
        "TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "ProfileNotFound",
        "DefaultCredentialsError", "RefreshError", "NoAuthTokenError", "AnonymousCredentialsError",
    ),
    "the server refuses the credentials": (
        "ClientAuthenticationError", "UnauthenticatedError", "PermissionDeniedError",
        "AuthenticationException", "PermissionError",
    ),
    "the server's certificate is not trusted": (
        "SSLCertVerificationError", "ClientConnectorCertificateError", "ServerFingerprintMismatch",
    ),
    "no secure connection could be made (TLS)": (
        "ClientSSLError", "ClientConnectorSSLError", "SSLError",
    ),
    "the host's name could not be looked up (DNS)": ("gaierror", "ClientConnectorDNSError"),
    _LATE: (
        "TimeoutError", "ServerTimeoutError", "ReadTimeoutError", "ConnectTimeoutError",
        "FSTimeoutError", "ReadTimeout",
    ),
    "the server refused the connection": ("ConnectionRefusedError",),
    "the connection was cut": (
        "ConnectionError", "ServerDisconnectedError", "ClientPayloadError", "IncompleteReadError",
        "ConnectionClosedError", "ResponseStreamingError", "HTTPClientError", "ProtocolError",
    ),
    "the server could not be reached": (
        "EndpointConnectionError", "ClientConnectorError", "ClientConnectionError",
    ),
    "it leads from page to page without an end (to one that wants credentials?)": (
        "TooManyRedirects",
    ),
    "the URL cannot be used": ("InvalidURL", "NonHttpUrlClientError", "ParamValidationError"),
}  # fmt: skip
_WORDS_OF = {name: words for words, names in _KINDS.items() for name in names}
_PASSING = (_LATE, "the connection", "the server could", "the host", "the server refused the")
_UNMET = ("the host", "the server refused the connection", "the server could")


def _by_kind(error: BaseException) -> Answer | None:
    """By the class of the exception, or the number of a system error."""
    words = _words_of(error) or _words_of_obstore(error)
    if words is None:
        if not isinstance(error, FileNotFoundError) or error.__cause__ is not None:
            return None  # fsspec makes one of whatever keeps it from asking for a size
        return Answer(what="there is no such object", remedy=_URL, missing=True)
    remedy = CREDENTIALS if "credentials" in words else _URL
    if "certificate" in words:
        remedy = _CERTIFICATE
    return Answer(
        what=words,
        remedy=remedy,
        passes=words.startswith(_PASSING),
        unmet=words.startswith(_UNMET),
        late=words == _LATE,
        refused="credentials" in words,
    )


def _words_of(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
        return _WORDS_OF["SSLError"]
    if isinstance(error, socket.gaierror):
        return _WORDS_OF["gaierror"]
    for kind in type(error).__mro__:
        if kind.__name__ in _WORDS_OF and not _is_refused(error):
            return _WORDS_OF[kind.__name__]
    return _WORDS_OF["ConnectionRefusedError"] if _is_refused(error) else None


_OBSTORE_TEXTS = {  # what its exceptions say, the first that fits
    "169.254.169.254": "no credentials were found",  # it asked the cloud's machine for them
    "incorrectly configured region": "the bucket is in another region than AWS_REGION says",
    "certificate": "the server's certificate is not trusted",
    "dns error": "the host's name could not be looked up (DNS)",
    "ConnectionRefused": "the server refused the connection",
    "timed out": _LATE,
    "kind: Connect,": "the server could not be reached",
    "HTTP error": "the connection was cut",
}


def _words_of_obstore(error: BaseException) -> str | None:
    for text, words in _OBSTORE_TEXTS.items():
        if _said_by_obstore(error, re.compile(f"({re.escape(text)})")):
            return words
    return None


def _is_refused(error: BaseException) -> bool:
    """Whether nobody listens at the port; aiohttp only keeps the number."""
    return isinstance(error, OSError) and error.errno == errno.ECONNREFUSED


_STATUSES = (
    ("response", "ResponseMetadata", "HTTPStatusCode"),  # botocore
    ("status",),  # aiohttp
    ("status_code",),  # azure
    ("code",),  # gcsfs, urllib
    ("response", "status_code"),  # requests, httpx
)


def _status_of(error: BaseException) -> int | None:
    for names in _STATUSES:  # in turn: aiohttp warns of who looks at its `code`
        status = _look(error, *names)
        if isinstance(status, int) and 300 <= status <= 599:
            return status
    status = int(_said_by_obstore(error, _STATUS_TEXT) or 0)
    return status if 300 <= status <= 599 else None


def _wait_of(error: BaseException) -> float:
    """Seconds of a Retry-After header; 0 where there is none."""
    metadata = _look(error, "response", "ResponseMetadata", "HTTPHeaders")
    headers = metadata or getattr(error, "headers", None) or {}
    try:
        wait = headers.get("Retry-After") or headers.get("retry-after") or 0
        return max(0.0, float(wait))
    except (AttributeError, TypeError, ValueError):
        return 0.0


def _look(value: Any, *names: str) -> Any:
    """An attribute or entry in an attribute or entry ...; None where one is not there."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return value
