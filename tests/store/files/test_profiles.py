"""Credentials of AWS's own files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import StoreError
from cachedet.store.files.depot import open_depot
from cachedet.store.files.profiles import profile_credentials

pytest.importorskip("boto3", reason="pip install 'cachedet[remote]'")


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text(
        "[work]\naws_access_key_id = alice\naws_secret_access_key = S3CRET\n"
    )
    (tmp_path / "config").write_text("[profile work]\nregion = eu-west-3\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


@pytest.mark.usefixtures("_files")
def test_a_profile_gives_keys_and_region(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profile_credentials() is None  # no default profile
    monkeypatch.setenv("AWS_PROFILE", "work")
    found = profile_credentials()
    assert found is not None
    assert found.config == {"region": "eu-west-3"}
    assert pickle.loads(pickle.dumps(found))()["access_key_id"] == "alice"
    monkeypatch.setenv("AWS_PROFILE", "home")
    with pytest.raises(StoreError, match="the credentials of AWS cannot be read: .*home"):
        profile_credentials()


@pytest.mark.usefixtures("_files")
def test_a_store_is_written_with_a_profile(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    depot = open_depot(s3.new_url())
    depot.put({"a": b"1"})
    assert depot.sizes() == {"a": 1}


def test_keys_of_the_environment_come_first() -> None:
    assert profile_credentials({"AWS_ACCESS_KEY_ID": "k", "AWS_PROFILE": "work"}) is None
