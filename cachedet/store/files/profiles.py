"""Credentials of the files that the AWS command line keeps, which obstore does not read itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cachedet.errors import StoreError

_LIFE = timedelta(minutes=15)  # after which they are asked for again
_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}


class ProfileCredentials:
    """What boto3 finds for the profile of AWS_PROFILE, or the default one, each time anew."""

    def __init__(self) -> None:
        self.config: dict[str, str] = {}
        region = _session().region_name
        if region and "AWS_REGION" not in os.environ:
            self.config["region"] = region

    def __call__(self) -> dict[str, Any]:
        found = _session().get_credentials()
        if found is None:
            raise PermissionError("no credentials were found in the profile")
        keys = found.get_frozen_credentials()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + _LIFE,
        }


def profile_credentials(
    environment: Mapping[str, str] = os.environ,
) -> ProfileCredentials | None:
    """None where the environment has the keys itself, or there is no profile.

    Raises StoreError where AWS_PROFILE names one that cannot be read.
    """
    if "AWS_ACCESS_KEY_ID" in environment:
        return None
    is_named = bool(environment.get("AWS_PROFILE"))
    if not is_named and not any(path.exists() for path in _files(environment)):
        return None
    try:
        made = ProfileCredentials()
        return made if is_named or _session().get_credentials() is not None else None
    except ImportError as error:
        if not is_named:
            return None
        raise StoreError(
            "AWS_PROFILE is set, and profiles are read by boto3, which is not installed: "
            "`pip install 'cachedet[remote]'`, or give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except Exception as error:  # boto3's own: a profile that is not there, a broken file
        raise StoreError(f"the credentials of AWS cannot be read: {error}") from error


def _files(environment: Mapping[str, str]) -> list[Path]:
    folder = Path.home() / ".aws"
    return [Path(environment.get(name, folder / file)) for name, file in _FILES.items()]


def _session() -> Any:
    import boto3

    return boto3.Session()
