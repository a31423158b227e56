"""Asking again: how often, how long, and what is said in the end. No clock is looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from cachedet.errors import ConfigError, RemoteStoreError, StoreError
from cachedet.store.files.answers import Answer, BadAnswerError
from cachedet.store.files.patience import Patience

WHERE = "http://host/s.zarr/manifest.json"


def failing(errors: list[Exception]) -> Callable[[float], str]:
    """Raises these one after the other, then answers."""
    left: Iterator[Exception] = iter(errors)

    def request(seconds: float) -> str:
        assert 0 < seconds <= 30
        for error in left:
            raise error
        return "bytes"

    return request


def test_what_passes_is_asked_again() -> None:
    patience = Patience(total=20, request=30)
    errors = [ConnectionResetError(), TimeoutError(), ConnectionRefusedError(), OSError(5, "I/O")]
    assert patience.ask(failing(list(errors)), where=WHERE) == "bytes"


def test_in_the_end_it_says_what_came_how_often_and_how_to_go_on() -> None:
    patience = Patience(total=0.2, request=30)
    with pytest.raises(RemoteStoreError) as raised:
        patience.ask(failing([ConnectionResetError("S3CRET")] * 100), where=WHERE)
    text = str(raised.value)
    assert text.startswith(f"{WHERE} cannot be read: the connection was cut (tried ")
    assert "`train-heads` with --resume" in text
    assert "CACHEDET_REMOTE_PATIENCE" in text
    assert "CACHEDET_REMOTE_TIMEOUT" in text
    assert "damage" not in text
    assert raised.value.__cause__ is None  # the exceptions of libraries name URLs
    assert raised.value.__context__ is None


def test_tries_are_bounded_and_their_pauses_grow() -> None:
    tries = 0

    def request(_: float) -> str:
        nonlocal tries
        tries += 1
        raise ConnectionResetError

    with pytest.raises(RemoteStoreError, match=r"tried \d+ times"):
        Patience(total=0.5, request=30).ask(request, where=WHERE)
    assert 2 <= tries <= 12


def test_a_try_that_the_end_of_patience_cut_short_hides_no_answer() -> None:
    """What the server said before is why it failed, not that its last answer was not waited for."""
    errors: list[Exception] = [ConnectionResetError()] + [TimeoutError()] * 100
    with pytest.raises(RemoteStoreError, match=r"the connection was cut \(tried [2-9]"):
        Patience(total=0.2, request=30).ask(failing(errors), where=WHERE)
    with pytest.raises(RemoteStoreError, match=r"no answer came in time \(tried [2-9]"):
        Patience(total=0.2, request=0.01).ask(failing(errors), where=WHERE)


def test_no_patience_is_one_try() -> None:
    with pytest.raises(RemoteStoreError, match="tried once"):
        Patience(total=0, request=30).ask(failing([TimeoutError()]), where=WHERE)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(), "refuses the credentials. Give credentials that hold"),
        (BadAnswerError(Answer(what="a page", remedy="Do this")), "a page. Do this"),
        (RuntimeError("odd"), "RuntimeError: odd"),
    ],
)
def test_what_stays_is_not_asked_again(error: Exception, words: str) -> None:
    request = failing([error])
    with pytest.raises(RemoteStoreError) as raised:
        Patience(total=10, request=30).ask(request, where=WHERE)
    assert words in str(raised.value)
    assert request(1) == "bytes"  # the second call, which was left


def test_missing_and_our_own_errors_pass_through() -> None:
    patience = Patience(total=10, request=30)
    with pytest.raises(FileNotFoundError):
        patience.ask(failing([FileNotFoundError()]), where=WHERE)
    with pytest.raises(StoreError, match="forked"):
        patience.ask(failing([StoreError("forked")]), where=WHERE)


def test_a_server_that_wants_too_long_a_wait_is_given_up_at_once() -> None:
    answer = BadAnswerError(Answer(what="429 Too Many Requests", passes=True, wait=1000))
    with pytest.raises(RemoteStoreError, match=r"asked to wait for 1000 s \(tried once\)"):
        Patience(total=10, request=30).ask(failing([answer]), where=WHERE)


def test_a_server_that_was_never_met_is_given_up_sooner() -> None:
    def tries_of(patience: Patience) -> int:
        count = 0

        def request(_: float) -> str:
            nonlocal count
            count += 1
            raise ConnectionRefusedError

        with pytest.raises(RemoteStoreError):
            patience.ask(request, where=WHERE)
        return count

    met = Patience(total=1.2, request=30)
    assert met.ask(failing([]), where=WHERE) == "bytes"
    assert tries_of(Patience(total=1.2, request=30)) < tries_of(met)


def test_other_reads_give_up_together() -> None:
    """Else the queue of a prefetch would take its patience one read after the other."""
    patience = Patience(total=0.1, request=30)
    with pytest.raises(RemoteStoreError):
        patience.ask(failing([TimeoutError()] * 100), where=WHERE)
    asked = threading.Event()
    with pytest.raises(RemoteStoreError, match="no answer came in time"):
        patience.ask(lambda _: asked.set(), where="another")
    assert not asked.is_set()


def test_seconds_come_from_the_environment() -> None:
    patience = Patience.of_environment({"CACHEDET_REMOTE_PATIENCE": "5"})
    assert (patience.total, patience.request) == (5, 30)
    for name, text in (
        ("CACHEDET_REMOTE_PATIENCE", "soon"),
        ("CACHEDET_REMOTE_PATIENCE", "-1"),
        ("CACHEDET_REMOTE_PATIENCE", "nan"),
        ("CACHEDET_REMOTE_TIMEOUT", "0"),
        ("CACHEDET_REMOTE_TIMEOUT", "inf"),
    ):
        with pytest.raises(ConfigError, match=f"{name} must be seconds, .* got '{text}'"):
            Patience.of_environment({name: text})
