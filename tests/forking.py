"""Processes for tests, forked by one that has imported torch and cachedet: that takes seconds.

As a program this is that one process; `Nursery` is its client. See the fixture `nursery`.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TextIO

_LONGEST_MESSAGE = 1 << 17  # bytes
_LOOK_EVERY = 0.003  # seconds
_CLI = Path(__file__).parents[1] / "cli.py"


class Nursery:
    """Starts scripts in processes of their own, as `python -c` does, without the imports."""

    def __init__(self) -> None:
        self._channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, script: str, *, environment: Mapping[str, str] | None = None) -> ForkedProcess:
        """A process that runs `script` with one thread of torch."""
        if self._process is None:
            self._process = self._start_forking()
        pipes = [os.pipe() for _ in range(3)]
        (stdin, _), (_, stdout), (_, stderr) = pipes
        request = json.dumps({"script": script, "environment": dict(environment or {})}).encode()
        assert len(request) < _LONGEST_MESSAGE
        socket.send_fds(self._channel, [request], [stdin, stdout, stderr])
        pid = json.loads(self._channel.recv(_LONGEST_MESSAGE))
        for theirs in (stdin, stdout, stderr):
            os.close(theirs)
        (_, to_stdin), (from_stdout, _), (from_stderr, _) = pipes
        return ForkedProcess(
            self,
            pid=pid,
            stdin=os.fdopen(to_stdin, "w"),
            stdout=os.fdopen(from_stdout),
            stderr=os.fdopen(from_stderr),
        )

    def start_command(
        self,
        words: Sequence[object],
        *,
        environment: Mapping[str, str] | None = None,
        before: str = "",
    ) -> ForkedProcess:
        """A process as `cachedet ...` would be, which first runs the script `before`."""
        arguments = [str(_CLI), *map(str, words)]
        script = (
            f"{before}\nimport runpy, sys; sys.argv = {arguments!r}\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        return self.start(script, environment=environment)

    @staticmethod
    def limit_files(nbytes: int) -> str:
        """A script after which no file may grow beyond that, which fails like a full disk."""
        return (
            "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({nbytes}, {nbytes}))\n"
        )

    def status_of(self, pid: int) -> int | None:
        """Exit status of a process, negative where a signal ended it; None while it lives."""
        self._channel.sendall(json.dumps({"status of": pid}).encode())
        status: int | None = json.loads(self._channel.recv(_LONGEST_MESSAGE))
        return status

    def close(self) -> None:
        """End the process that forks; those it has forked stay."""
        self._channel.close()
        self._theirs.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start_forking(self) -> subprocess.Popen[bytes]:
        with self._theirs as theirs:
            words = [sys.executable, __file__, str(theirs.fileno())]
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])


class ForkedProcess:
    """The part of `subprocess.Popen` that tests use."""

    def __init__(
        self, nursery: Nursery, *, pid: int, stdin: TextIO, stdout: TextIO, stderr: TextIO
    ) -> None:
        self._nursery = nursery
        self.pid = pid
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.returncode: int | None = None

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.kill()
        self.stdin.close()
        self.wait()
        self.stdout.close()
        self.stderr.close()

    def poll(self) -> int | None:
        """The status, None while it lives."""
        if self.returncode is None:
            self.returncode = self._nursery.status_of(self.pid)
        return self.returncode

    def wait(self, timeout: float = 300.0) -> int:
        """The status. Raises subprocess.TimeoutExpired."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_LOOK_EVERY)
        return status

    def communicate(self, timeout: float = 300.0) -> tuple[str, str]:
        """All it prints, when it has ended. Raises subprocess.TimeoutExpired."""
        self.stdin.close()
        texts = ["", ""]

        def read(number: int, stream: TextIO) -> None:
            with stream:
                texts[number] = stream.read()

        streams = enumerate((self.stdout, self.stderr))
        readers = [Thread(target=read, args=each, daemon=True) for each in streams]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Nothing where it has ended."""
        self.send_signal(signal.SIGKILL)


def _serve(channel: socket.socket) -> None:
    """Until the tests end; returns in each child, with what that shall run."""
    while True:
        message, streams, _, _ = socket.recv_fds(channel, _LONGEST_MESSAGE, 3)
        if not message:
            sys.exit(0)
        request = json.loads(message)
        if "status of" in request:
            done, status = os.waitpid(request["status of"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        else:
            answer = os.fork()
            if answer == 0:
                channel.close()
                _run(request, streams)
                return
            for stream in streams:
                os.close(stream)
        channel.sendall(json.dumps(answer).encode())


def _run(request: dict[str, object], streams: Sequence[int]) -> None:
    """In the child, which then ends as Python does."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    environment = request["environment"]
    assert isinstance(environment, dict)
    os.environ.update(environment)
    exec(compile(str(request["script"]), "<script of a test>", "exec"), {"__name__": "__main__"})


def _import_all() -> None:
    """What scripts of tests import; nothing of it may start a thread."""
    import torch

    import cachedet.cli
    import cachedet.compare
    import cachedet.extract
    import cachedet.live.modes
    import cachedet.predict
    import cachedet.report
    import cachedet.train  # noqa: F401

    torch.set_num_threads(1)
    torch.distributed.is_available()
    gc.collect()
    gc.freeze()  # else each child copies all pages once its garbage is collected


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _import_all()
    with suppress(ConnectionError):
        _serve(socket.socket(fileno=int(sys.argv[1])))
