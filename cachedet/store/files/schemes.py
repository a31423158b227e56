"""What stands behind the scheme of a URL, how it is opened, and the package that this needs."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

from zarr.abc.store import Store
from zarr.storage import FsspecStore

from cachedet.errors import CachedetError, StoreError, nearest_names
from cachedet.store.files.locations import WEB, redacted_foreign, secrets_in, shown, split_web
from cachedet.store.files.profiles import profile_credentials

T = TypeVar("T")

OBJECT_STORAGES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Schemes that obstore reads and writes; any other is fsspec's, and only read."""
NO_BUCKET = (
    "there is no such bucket (404 Not Found). Look at its name, its region and the endpoint "
    "(AWS_ENDPOINT_URL)"
)
_REMOTE = "'cachedet[remote]'"
_PACKAGES = {  # by the schemes that a message offers
    "s3": _REMOTE, "gs": _REMOTE, "az": _REMOTE, "http": _REMOTE, "https": _REMOTE,
    "sftp": "paramiko", "memory": "",
}  # fmt: skip
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "ssh": "sftp"}
_OBSTORE_NAMES = {"gcs": "gs"}
_CLIENT_TIMEOUT = "1h"  # of obstore, for each request; `patience` is stricter


def open_object_storage(url: str) -> tuple[Any, str, frozenset[str]]:
    """obstore's storage, its place as it may be shown, and what never may be.

    Credentials, region and endpoint are those of the environment. Raises StoreError.
    """
    clean = shown(url).rstrip("/")

    def open_it() -> Any:
        from obstore.store import from_url

        scheme, _, rest = clean.partition("://")
        _require_addresses(scheme_of(url), clean.partition("://")[2])
        given = profile_credentials() if scheme in ("s3", "s3a") else None
        return from_url(
            f"{_OBSTORE_NAMES.get(scheme, scheme)}://{rest}",
            credential_provider=given,
            client_options={"timeout": _CLIENT_TIMEOUT, "allow_http": _allows_http()},
            retry_config={"max_retries": 0},  # `patience` asks again, and says how often
        )

    return _opened(url, open_it), clean, frozenset(secrets_in(url))


def open_file_system(url: str) -> tuple[Store, str, frozenset[str]]:
    """fsspec's storage of any other scheme, its place and secrets alike. Raises StoreError."""

    def open_it() -> Store:
        clean, options = _connection(url)
        return FsspecStore.from_url(clean, storage_options=options, read_only=True)

    return _opened(url, open_it), shown(url).rstrip("/"), frozenset(secrets_in(url))


def _require_addresses(scheme: str, rest: str) -> None:
    """Raises StoreError where the URL has no bucket, or the environment's endpoint no scheme."""
    if not rest.partition("/")[0]:
        raise StoreError(f"expected {scheme}://BUCKET/NAME, got {scheme}://{rest}")
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    is_s3 = scheme in ("s3", "s3a")
    if is_s3 and endpoint and not endpoint.lower().startswith(("http://", "https://")):
        raise StoreError(
            f"AWS_ENDPOINT_URL must begin with http:// or https://, got {endpoint}; for a server "
            f"of your own take http://{endpoint}"
        )


def _allows_http() -> bool:
    """Whether the environment says so, or names an endpoint without TLS itself."""
    said = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
    return said or os.environ.get("AWS_ENDPOINT_URL", "").lower().startswith("http://")


def scheme_of(url: str) -> str:
    """``s3://bucket/x`` -> ``s3``; of fsspec's chains the last, with the chain in front."""
    return url.partition("://")[0].lower()


def _unknown_scheme(url: str) -> str:
    near = nearest_names(scheme_of(url), _PACKAGES)
    return f"unknown kind of place {scheme_of(url)}://{near}; such as {', '.join(_PACKAGES)}"


def _opened(url: str, open_it: Callable[[], T]) -> T:
    """Raises StoreError without any credential of the URL."""
    secrets = frozenset(secrets_in(url))
    try:
        return open_it()
    except CachedetError:
        raise
    except ImportError as error:
        problem = f"{redacted_foreign(str(error), secrets=secrets)}; {_package_of(url)}"
    except Exception as error:  # each library has its own
        problem = redacted_foreign(str(error), secrets=secrets) or type(error).__name__
        if problem.startswith("Protocol not known"):  # fsspec's words
            problem = _unknown_scheme(url)
    raise StoreError(f"cannot open {shown(url)}: {problem}")


def _connection(url: str) -> tuple[str, dict[str, Any]]:
    """A URL and the options of its file system; of a web server credentials go with the options.

    So the query of a signed URL stands behind the name of each object.
    """
    if url.partition("://")[0].lower() not in WEB:
        return url, {}
    clean, user, query = split_web(url)
    headers = {"Accept-Encoding": "identity"}  # ranges are of the bytes as they lie there
    if user:
        name, _, password = user.partition(":")
        pair = f"{unquote(name)}:{unquote(password)}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    options: dict[str, Any] = {"headers": headers}
    if query:
        options["params"] = dict(parse_qsl(query, keep_blank_values=True))
    return clean.rstrip("/"), options


def _package_of(url: str) -> str:
    """How to install what a URL needs."""
    scheme = url.partition("://")[0].rpartition("::")[2].lower()
    package = _PACKAGES.get(_ALIASES.get(scheme, scheme))
    if not package:
        return f"install the package that fsspec needs for {scheme}://"
    return f"install it with `pip install {package}`"
