from __future__ import annotations

import os
import signal
import threading

import pytest

from cachedet.training.stopping import StopRequested, StopSignals

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_leaves_a_note(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        signals.raise_if_received()
        os.kill(os.getpid(), number)
        assert signals.received == name
        with pytest.raises(StopRequested, match=name):
            signals.raise_if_received()
    assert signal.getsignal(number) is before
    assert f"{name}: finishing the step and saving" in capfd.readouterr().err


def test_a_second_interrupt_stops_at_once_a_second_sigterm_does_not() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.received == "SIGTERM"


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail_inside() -> None:
        with StopSignals():
            assert signal.getsignal(signal.SIGTERM) is not before
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_install_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def work() -> None:
        with StopSignals() as signals:
            found.extend([signal.getsignal(signal.SIGTERM), signals.received])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, None]
