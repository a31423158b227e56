"""Asking a server again for a bounded time, and then saying what it answered and how to go on."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from cachedet.errors import CachedetError, ConfigError, RemoteStoreError
from cachedet.store.files import farewell
from cachedet.store.files.answers import Answer, classify

T = TypeVar("T")
Deed = Literal["read", "written", "fetched"]  # of a store, or of what becomes one

PATIENCE_NAME, TIMEOUT_NAME = "CACHEDET_REMOTE_PATIENCE", "CACHEDET_REMOTE_TIMEOUT"
_PATIENCE_SECONDS, _TIMEOUT_SECONDS = 60.0, 30.0
_LONGEST_SECONDS = 86_400.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0  # seconds
_UNMET_SHARE = 6  # of a server that never answered, patience is this part: its name may be wrong
_GIVEN_UP_SECONDS = 10.0  # in which other reads that wait do not begin to hope anew
_SAFE = "What was committed is safe, and what is missing is written then."
_random = random.Random()  # of its own: the user's random numbers stay theirs


class Patience:
    """How long one storage is asked for one thing, and what is known of it."""

    def __init__(self, *, total: float, request: float, hide: Callable[[str], str] = str) -> None:
        self.total = total  # seconds, with all tries and pauses
        self.request = request  # seconds one answer may take
        self._hide = hide  # takes credentials out of other libraries' texts
        self._has_answered = False
        self._given_up: tuple[float, str] | None = None  # when, and with what message

    @classmethod
    def of_environment(
        cls, environment: Mapping[str, str] = os.environ, *, hide: Callable[[str], str] = str
    ) -> Patience:
        """What the user set, or the defaults. Raises ConfigError on anything but seconds."""
        return cls(
            total=_seconds(environment, PATIENCE_NAME, _PATIENCE_SECONDS, least=0.0),
            request=_seconds(environment, TIMEOUT_NAME, _TIMEOUT_SECONDS, least=0.01),
            hide=hide,
        )

    def ask(
        self,
        request: Callable[[float], T],
        *,
        where: str,
        deed: Deed = "read",
        more: float = 0.0,
    ) -> T:
        """What `request` returns, which gets the seconds it may take; `more` for much to send.

        It is asked again while what it raises may pass. Nothing of those exceptions is kept: they
        name URLs with their credentials.

        Raises FileNotFoundError where the server says so, RemoteStoreError on every other answer,
        and soon where the process was asked to end.
        """
        begun, tries = time.monotonic(), 0
        before: Answer | None = None
        while True:
            self._require_hope(begun)
            spent = time.monotonic() - begun
            tries += 1
            seconds = self.request if tries == 1 else self._left(spent)
            try:
                content = request(more + seconds)
                self._has_answered, self._given_up = True, None
                return content
            except CachedetError:
                raise
            except Exception as error:
                answer = classify(error, self._hide)
            if answer.missing:
                raise FileNotFoundError(errno.ENOENT, "there is no such object", where)
            if answer.late and before is not None and seconds < self.request:
                answer = before  # the end of patience cut this try short; the last one tells why
            before = answer
            spent = time.monotonic() - begun
            pause = max(answer.wait, self._pause(tries))
            if not answer.passes or spent + pause >= self._limit(answer):
                raise self._give_up(answer, f"{where} cannot be {deed}", tries, spent, deed)
            farewell.pause(pause, where=where)

    def _left(self, spent: float) -> float:
        return max(0.01, min(self.request, self.total - spent))

    def _limit(self, answer: Answer) -> float:
        return self.total / (_UNMET_SHARE if answer.unmet and not self._has_answered else 1)

    def _pause(self, tries: int) -> float:
        """Doubles from try to try; the half that is random keeps many readers from marching."""
        first = min(_FIRST_PAUSE, self.total / 50)
        return min(_LONGEST_PAUSE, first * 2.0 ** min(tries - 1, 10)) * _random.uniform(0.5, 1)

    def _require_hope(self, begun: float) -> None:
        """Raises what another read has given up with a moment ago."""
        given_up = self._given_up
        if given_up is not None and begun - _GIVEN_UP_SECONDS < given_up[0]:
            raise RemoteStoreError(given_up[1])

    def _give_up(
        self, answer: Answer, verdict: str, tries: int, spent: float, deed: Deed
    ) -> RemoteStoreError:
        if not answer.passes:
            safe = f". {_SAFE}" if deed != "read" else ""
            error = RemoteStoreError(f"{verdict}: {answer.what}. {answer.remedy}{safe}")
            error.is_refusal = answer.refused
            return error
        often = "once" if tries == 1 else f"{tries} times in {spent:.0f} s"
        asked = f", and asked to wait for {answer.wait:g} s" if answer.wait else ""
        rest = self.how_to_go_on(deed)
        message = f"{verdict}: {answer.what}{asked} (tried {often}). {rest}"
        self._given_up = time.monotonic(), message
        return RemoteStoreError(message)

    def how_to_go_on(self, deed: Deed = "read") -> str:
        if deed != "read":
            kind = "write" if deed == "written" else "read"
            return (
                "Look after the network and the server, then give the same command again. "
                f"{_SAFE} A {kind} is tried for {self.total:g} s ({PATIENCE_NAME})"
            )
        return (
            "That says nothing about the store itself: look after the URL, the network and the "
            "server, then give the same command again (`train-heads` with --resume: it goes on "
            f"from its last checkpoint). A read is tried for {self.total:g} s ({PATIENCE_NAME}), "
            f"an answer may take {self.request:g} s ({TIMEOUT_NAME})"
        )


def _seconds(environment: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    text = environment.get(name, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= _LONGEST_SECONDS:
        raise ConfigError(
            f"{name} must be seconds, {least:g} to {_LONGEST_SECONDS:g}, such as {default:g}, "
            f"got {text!r}"
        )
    return seconds
