"""What may be shown of a location: no credential, and every character of a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedet.store.files.locations import redacted, redacted_foreign, secrets_in, shown

PUBLIC = {
    "http://alice:S3CRET@host:8080/s.zarr": "http://host:8080/s.zarr",
    "https://S3CRET@host/s.zarr": "https://host/s.zarr",
    "http://alice:S3CR@ET@host/s.zarr": "http://host/s.zarr",
    "http://alice:pa/S3CRET@host/s.zarr": "http://host/s.zarr",
    "http://alice:p#S3CRET@host/s.zarr": "http://host/s.zarr",
    "http://host/s.zarr?X-Amz-Signature=S3CRET&X-Amz-Credential=S3CRET": "http://host/s.zarr",
    "https://a.blob.core.windows.net/c/s.zarr?sv=1&sig=S3CRET%3D": (
        "https://a.blob.core.windows.net/c/s.zarr"
    ),
    "https://host/s.zarr#access_token=S3CRET": "https://host/s.zarr",
    "https://host/s.zarr?S3CRET": "https://host/s.zarr",
    "s3://key:S3CRET@bucket/s.zarr": "s3://bucket/s.zarr",
    "s3://S3CRET@bucket/s.zarr": "s3://bucket/s.zarr",
    "s3://bucket/s.zarr?AWSAccessKeyId=S3CRET&Signature=S3CRET": "s3://bucket/s.zarr",
    "gs://bucket/s.zarr?GoogleAccessId=S3CRET": "gs://bucket/s.zarr",
    "gs://bucket/s.zarr#token=S3CRET": "gs://bucket/s.zarr",
    "sftp://alice:S3CRET@host/s.zarr": "sftp://host/s.zarr",
    "simplecache::https://alice:S3CRET@host/s.zarr?sig=S3CRET": "simplecache::https://host/s.zarr",
    "HTTP://alice:S3CRET@HOST/s.zarr": "HTTP://HOST/s.zarr",
}
AS_THEY_ARE = (
    "runs/a@b/c?d=e#f.zarr",
    "/data/user:pw@host/s.zarr",
    "C:\\data\\a@b?c#d.zarr",
    "s3://bucket/what?#1@2.zarr",
    "s3://bucket/s.zarr?versionId=abc",
    "abfs://container@account.dfs.core.windows.net/s.zarr",
    "sftp://alice@host/s.zarr",
    "file:///data/a:b@c?sig=1#d.zarr",
    "http://[::1]:8080/a@b/s.zarr",
    "http://host:8080/a@b/s.zarr",
)


@pytest.mark.parametrize("location", PUBLIC)
def test_no_credential_is_shown(location: str) -> None:
    assert shown(location) == PUBLIC[location]
    text = f"cannot open {location}: it is gone"
    assert "S3CRET" not in redacted(text)
    assert redacted(text).startswith("cannot open ")


@pytest.mark.parametrize("location", AS_THEY_ARE)
def test_everything_else_stays_as_it_is(location: str) -> None:
    assert shown(location) == location
    assert redacted(f"cannot open {location}") == f"cannot open {location}"
    assert shown(shown(location)) == shown(location)


def test_paths_are_never_altered(tmp_path: Path) -> None:
    path = tmp_path / "user:pw@host?sig=1#x.zarr"
    assert shown(path) == str(path)
    assert redacted(f"no {path}/manifest.json") == f"no {path}/manifest.json"


def test_a_path_made_of_a_url_keeps_no_credential() -> None:
    """As for an option that takes folders only."""
    text = str(Path("http://alice:S3CRET@host/images"))
    assert redacted(f"there is no folder {text}") == "there is no folder http:/host/images"


FOREIGN = (
    "403, message='Forbidden', url='http://alice:S3CRET@host/x?sig=S3CRET'",
    "Authorization: Basic S3CRET==",
    "<Error><AWSAccessKeyId>S3CRET</AWSAccessKeyId></Error> AWSAccessKeyId=S3CRET",
    "request to /s.zarr?token=S3CRET&x=1 failed",
    "access_token: 'S3CRET'",
    "the key S3CRET was refused",
)


@pytest.mark.parametrize("text", FOREIGN)
def test_texts_of_other_libraries_lose_credentials(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of URLs, those that are named, and those that the environment or the URL holds."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "S3CRET")
    assert "S3CRET" not in redacted_foreign(text)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    held = secrets_in("http://alice:S3CRET@host/s.zarr")
    assert "S3CRET" not in redacted_foreign(text, secrets=held)


def test_secrets_are_known_as_written_and_decoded() -> None:
    held = secrets_in("http://alice:p%40ss%2Fw@host/s.zarr?sig=a%2Bb%3D&x=longer#t=frag")
    assert {"alice", "p%40ss%2Fw", "p@ss/w", "a%2Bb%3D", "a+b=", "longer", "frag"} <= held
