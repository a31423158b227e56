"""What the codec learnt is decided once, whatever the number of threads of those who go on.

With another number of threads, torch may round otherwise: of the features (a share of 1e-5), and of
the sums that a codec is fitted on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import StoreError
from cachedet.extract import extract
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.manifest import Manifest, load_manifest
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store

# Ends the process when a function of this name is called for the first time.
KILL = """
import os, signal, sys, threading
def kill(frame, event, argument):
    if event == "call" and frame.f_code.co_name == {function!r}:
        os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(kill)
threading.setprofile(kill)
"""


def script_of(tiny: Any, store: Path, *, before: str = "", **changes: object) -> str:
    config = tiny.extract_config(store, codec="snr12", **changes).model_dump(mode="json")
    return (
        f"{before}\nfrom cachedet.config.run import make_extract_config\n"
        f"from cachedet.extract import extract\nextract(make_extract_config({config!r}))"
    )


def state_of(store: Path) -> tuple[bytes, str]:
    manifest: Manifest = load_manifest(LocalFiles(store))
    return (store / "codec.npz").read_bytes(), manifest.codec_digest


def require_whole(store: Path) -> None:
    FeatureStore.open(store).require_complete(["base", "hflip"])
    report = verify_store(store, deep=True)
    assert (report.bad, report.missing) == ((), ())


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("function", ["write_here", "commit"])
def test_killed_after_the_fit(tiny: Any, nursery: Any, tmp_path: Path, function: str) -> None:
    """Before the first commit, and in it: the store has its codec, and others go on with that."""
    store = tmp_path / "s.zarr"
    before = KILL.format(function=function)
    with nursery.start(script_of(tiny, store, before=before, views="base")) as process:
        assert process.wait() == -9
    state = state_of(store)
    extract(tiny.extract_config(store, codec="snr12", views="base"))
    assert state_of(store) == state
    extract(tiny.extract_config(store, codec="snr12", views="base,hflip"))  # added views
    assert state_of(store) == state
    require_whole(store)


@pytest.mark.usefixtures("two_threads")
def test_killed_in_the_fit_and_two_at_once(tiny: Any, nursery: Any, tmp_path: Path) -> None:
    """Nothing of a fit that was cut off is there; of two that fit at once, one decides."""
    store = tmp_path / "s.zarr"
    before = KILL.format(function="_make_files")
    with nursery.start(script_of(tiny, store, before=before)) as process:
        assert process.wait() == -9
    assert not store.exists()
    with nursery.start(script_of(tiny, store)) as process:
        extract(tiny.extract_config(store, codec="snr12"))
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    require_whole(store)


@pytest.mark.usefixtures("two_threads")
def test_a_lost_codec_is_learnt_to_the_same_value_or_not_at_all(
    tiny: Any, nursery: Any, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    with nursery.start(script_of(tiny, store)) as process:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    content, digest = state_of(store)
    (store / "codec.npz").unlink()
    try:
        extract(tiny.extract_config(store, codec="snr12"))
    except StoreError as error:
        assert "with as many threads, OMP_NUM_THREADS" in str(error)  # noqa: PT017
        assert not (store / "codec.npz").exists()
        with nursery.start(script_of(tiny, store)) as process:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
    assert state_of(store) == (content, digest)
    require_whole(store)
