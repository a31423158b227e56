"""The processes that train at the same time, and what they tell."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from cachedet.series.own_process import LOOK_EVERY, describe_end, start_process
from cachedet.sweeping.job import Failed, Job, Message, Validated, work
from cachedet.training.stopping import STOPPED_STATUS, StopSignals


class Crew:
    """At most so many processes, each with a training that has a name."""

    def __init__(self, most: int, signals: StopSignals) -> None:
        self._most = most
        self._signals = signals
        self._at_work: dict[str, tuple[BaseProcess, Connection]] = {}

    @property
    def has_room(self) -> bool:
        return len(self._at_work) < self._most and self._signals.received is None

    @property
    def is_busy(self) -> bool:
        return bool(self._at_work)

    def start(self, name: str, job: Job) -> None:
        ours, theirs = multiprocessing.Pipe()
        process = start_process(work, job, theirs)
        theirs.close()  # so that the end of the process is the end of what can be read
        self._at_work[name] = process, ours

    def messages(self) -> Iterator[tuple[str, Message]]:
        """What has come meanwhile; of a training that ended, the last message.

        After a signal the processes are asked to save and end, and what they tell goes unheard.
        """
        if self._signals.received is not None:
            self.stop()
            return
        names = {pipe: name for name, (_, pipe) in self._at_work.items()}
        for pipe in wait(list(names), timeout=LOOK_EVERY):
            assert isinstance(pipe, Connection)
            name = names[pipe]
            try:
                message: Message = pipe.recv()
            except (EOFError, OSError):
                process, _ = self._at_work[name]
                process.join()
                message = Failed(error=describe_end(process))
                if process.exitcode == STOPPED_STATUS:  # asked to by somebody else
                    self._signals.received = self._signals.received or "a signal"
            if not isinstance(message, Validated):
                self._leave(name)
            if self._signals.received is None:  # else it may be the end that the signal asked for
                yield name, message

    def answer(self, name: str, give_up: bool) -> None:
        """To a validation."""
        with suppress(OSError):  # it has died meanwhile
            self._at_work[name][1].send(give_up)

    def stop(self) -> None:
        """Let all save their state and end."""
        for process, pipe in self._at_work.values():
            process.terminate()
            pipe.close()  # who waits for an answer waits no more
        for process, _ in self._at_work.values():
            process.join()
        self._at_work.clear()

    def _leave(self, name: str) -> None:
        process, pipe = self._at_work.pop(name)
        pipe.close()
        process.join()
