"""What may be shown of a location: where a store lies, never what lets one in.

A local path is shown as it is, whatever characters it has. Of a URL the user name, the password,
the query and the fragment are left out, as far as they could be credentials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import parse_qsl, unquote

WEB = frozenset({"http", "https"})
_LOCAL = frozenset({"file", "local", "memory"})  # what follows is a path, whatever it contains
# A name before the @ is a container or an account there, and no credential without a password.
_NAMES_USER = frozenset({"abfs", "abfss", "wasb", "wasbs", "sftp", "ssh", "smb", "ftp", "hdfs"})
_HARMLESS_QUERY = re.compile(r"(versionid|version_id|generation)=[^&]*", re.IGNORECASE)
_CHAIN = re.compile(r"::(?=[A-Za-z][\w+.-]*://)")  # fsspec's, as simplecache::s3://bucket/x
_URL = re.compile(r"(?:[A-Za-z][\w+.-]+://|(?:https?|s3|gs|gcs|az|s?ftp):/)[^\s'\"<>]+")
_SECRET_NAME = re.compile(
    r"secret|token|passw|credential|signature|access.?key|account.?key|api.?key|^sig$|^sas|"
    r"connection.?string|authorization|accessid",
    re.IGNORECASE,
)
_SECRET_PAIR = re.compile(
    r"(?i)([\w-]*(?:secret|token|passw|credential|signature|accesskey|access_key|accesskeyid|"
    r"accessid|authorization)[\w-]*|\bsig|\bkey)(\s*[=:]\s*(?:(?:Basic|Bearer)\s+)?)[^\s&'\",;<>]+"
)
_SHORTEST_SECRET = 4  # shorter ones would hide ordinary words


def is_url(location: object) -> bool:
    """Whether it is no path of this machine: a string such as ``s3://bucket/train.zarr``."""
    return isinstance(location, str) and "://" in location


def shown(location: object) -> str:
    """The public form of a location, for every message, page and file.

    A store is opened by it again unless it needs credentials, which must then be given anew.
    """
    text = str(location)
    return "::".join(map(_shown_link, _CHAIN.split(text))) if is_url(location) else text


def redacted(text: str, *, secrets: Iterable[str] = ()) -> str:
    """A text of ours, with the URLs in it as `shown` shows them."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return _URL.sub(lambda match: _shown_link(match[0]), text)


def redacted_foreign(text: str, *, secrets: Iterable[str] = ()) -> str:
    """A text of another library, which may also name credentials outside of URLs."""
    known = (*secrets, *secrets_of(os.environ))
    return _SECRET_PAIR.sub(r"\1\2***", redacted(text, secrets=known))


def split_web(url: str) -> tuple[str, str, str]:
    """An http(s) URL as `shown` shows it, its ``user:password`` and its query."""
    user, _, after = _split_user(url.partition("://")[2])
    return shown(url), user, re.split("[?#]", after + "?")[1] if "?" in after else ""


def secrets_in(url: str) -> set[str]:
    """What `shown` leaves out of a URL, as it stands there and decoded."""
    found: set[str] = set()
    for link in _CHAIN.split(url):
        _, _, rest = link.partition("://")
        user, _, after = _split_user(rest)
        found.update(part for part in user.split(":", 1) if part)
        _, _, query = after.partition("?")
        found.update(value for _, value in parse_qsl(query.replace("#", "&")))
        found.update(piece.partition("=")[2] for piece in re.split("[&#]", query))
    return found | {unquote(value) for value in found}


def secrets_of(options: Mapping[str, object]) -> set[str]:
    """Values of an environment, or of storage options, whose names say that they are secret."""
    return {value for name, value in _leaves(options) if _SECRET_NAME.search(name)}


def _leaves(options: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        elif isinstance(value, str):
            yield name, value


def _shown_link(link: str) -> str:
    """One URL without what could be a credential."""
    scheme, colon, rest = link.partition(":/")
    kind = scheme.lower()
    if not colon or kind in _LOCAL:
        return link
    slashes = rest[: len(rest) - len(rest.lstrip("/"))]
    user, at, after = _split_user(rest[len(slashes) :])
    kept = f"{user}{at}" if kind in _NAMES_USER and ":" not in user else ""
    path, mark, tail = _split_tail(after, everything=kind in WEB)
    if mark == "?" and _HARMLESS_QUERY.fullmatch(tail) and kind not in WEB:
        path += mark + tail
    return f"{scheme}{colon}{slashes}{kept}{path}"


def _split_user(rest: str) -> tuple[str, str, str]:
    """What stands before the @ of a URL's host, the @, and the rest."""
    host = rest.partition("/")[0]
    if "@" in host:
        user, at, _ = host.rpartition("@")
    elif "@" in rest and _is_no_port(host.partition(":")[2]):  # a password with a slash in it
        user, at, _ = rest.rpartition("@")
    else:
        return "", "", rest
    return user, at, rest[len(user) + 1 :]


def _is_no_port(text: str) -> bool:
    return bool(text) and not text.isdecimal() and "]" not in text


def _split_tail(path: str, *, everything: bool) -> tuple[str, str, str]:
    """A path without its query and fragment; `everything`: they need not look like pairs.

    In an object storage ? and # may be part of a name.
    """
    found = re.search(r"[?#]", path) if everything else re.search(r"[?#](?=[^/]*=)", path)
    if found is None:
        return path, "", ""
    return path[: found.start()], found[0], path[found.end() :]
