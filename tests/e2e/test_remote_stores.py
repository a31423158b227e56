"""Stores behind a web server on this machine, through training, scoring and reports."""

from __future__ import annotations

import http.server
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cachedet import cli
from cachedet.config.run import TrainConfig, dump_config
from cachedet.errors import RemoteStoreError, StoreError
from cachedet.evaluate import Questions, evaluate
from cachedet.report import report
from cachedet.store.files.depot import open_depot
from cachedet.store.reader import FeatureStore
from cachedet.train import train

pytest.importorskip("aiohttp", reason="pip install 'cachedet[remote]'")

CONFIG = TrainConfig.model_validate(
    {
        "early_stopping": {"metric": "loss", "patience": 50},
        "detector": {"kind": "retinanet", "neck": {"kind": "fpn", "channels": 8}, "num_convs": 1},
        "schedule": {"epochs": 2, "batch_size": 4, "optimizer": "adamw", "lr": 1e-3},
        "device": "cpu",
        "residency": "stream",
    }
)
Status = int
Fault = Callable[["Handler"], Status | None]
SECRETS = (b"S3CRET", b"alice")


class Handler(http.server.BaseHTTPRequestHandler):
    """Files of a folder, with ranges and listings, unless `server.fault` names another status."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 20  # one packet: else each answer waits for an acknowledgement
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests.append((self.path, self.headers.get("Authorization", "")))
        path = self.server.folder / urlsplit(self.path).path.lstrip("/")
        status, body, more = 200, b"", {}
        if path.is_dir():
            body = "".join(f'<a href="{one.name}">' for one in path.iterdir()).encode()
            more["Content-Type"] = "text/html"
        elif path.is_file():
            body = path.read_bytes()
            wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted is not None and with_body and not self.server.ignores_ranges:
                first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
                more["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                status, body = 206, body[first : last + 1]
        else:
            status = 404
        fault = self.server.fault(self)
        if fault is not None:
            status, body, more = fault, b"sorry", {}
        self.send_response(status)
        for name, value in {**more, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fault: Fault = lambda handler: None
        self.ignores_ranges = False
        self.requests: list[tuple[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""

    def url(self, name: str, *, user: str = "", query: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_port}/{name}{query}"


@pytest.fixture
def server(tiny: Any) -> Iterator[Server]:
    with Server(tiny.train.parent) as started:
        thread = threading.Thread(target=started.serve_forever, daemon=True)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "1")
    monkeypatch.setenv("CACHEDET_REMOTE_TIMEOUT", "5")


def is_shard(handler: Handler) -> bool:
    return "/c/" in handler.path and handler.command == "GET"


def after(count: int, status: Status, *, times: int = 10**9) -> Fault:
    """Answer so instead of the shards, after so many of them."""
    seen = iter(range(10**9))

    def fault(handler: Handler) -> Status | None:
        return status if is_shard(handler) and 0 <= next(seen) - count < times else None

    return fault


def wait_for_step(run: Path) -> None:
    """Until the training has taken one; at most half a minute."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with suppress(OSError):
            if len((run / "metrics.csv").read_text().splitlines()) > 1:
                return
        time.sleep(0.01)


def leaks(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(secret in path.read_bytes() for secret in SECRETS)
    ]


def test_no_credential_reaches_a_file(server: Server, tmp_path: Path) -> None:
    """A user name, a password and a signed query, through everything that a run leaves behind."""
    said = {"user": "alice:S3CRETPW@", "query": "?sig=S3CRETSIG&token=S3CRET%2BT#S3CRETF"}
    stored, val = server.url("train.zarr", **said), server.url("val.zarr", **said)
    run = tmp_path / "run"
    train(CONFIG, train_store=stored, val_store=val, run=run)
    evaluate(run, store=val, questions=Questions(training=stored))
    report([run], store=val)
    assert not leaks(tmp_path)
    assert server.url("val.zarr") in (run / "results.json").read_text()
    assert server.url("train.zarr") in (run / "training.json").read_text()
    report([run])  # this server wants no credentials: the public form is enough
    assert all(authorization.startswith("Basic ") for _, authorization in server.requests[:9])
    assert all("sig=S3CRETSIG&token=S3CRET%2BT" in path for path, _ in server.requests[:9])


def test_a_passing_fault_is_not_noticed(server: Server, tmp_path: Path) -> None:
    server.fault = after(5, 503, times=2)
    done = train(CONFIG, train_store=server.url("train.zarr"), run=tmp_path / "run")
    assert done.reason == "finished"


@pytest.mark.parametrize(
    "fault", [401, "validation", pytest.param("cut", marks=pytest.mark.thorough)]
)
def test_a_lasting_fault_ends_a_training_that_goes_on_as_if_there_had_been_none(
    server: Server, tiny: Any, tmp_path: Path, fault: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, exit status 1, the steps that were taken are kept."""
    whole, run, heads = tmp_path / "whole", tmp_path / "run", tmp_path / "heads.yaml"
    expected = train(CONFIG, train_store=tiny.train, val_store=tiny.val, run=whole)
    heads.write_text(dump_config(CONFIG))
    lasting = after(60, fault if fault == 401 else 503)  # an epoch has 48
    if fault == "validation":
        of_shards = after(0, 503)
        lasting = lambda one: of_shards(one) if "/val.zarr/" in one.path else None  # noqa: E731

    def act(handler: Handler) -> Status | None:
        status = lasting(handler)
        if status is not None:  # what is read ahead may come to it before the first step
            wait_for_step(run)
        if status is not None and fault == "cut":
            handler.connection.shutdown(socket.SHUT_RDWR)
        return status

    server.fault = act
    url, val = (server.url(name, user="alice:S3CRET@") for name in ("train.zarr", "val.zarr"))
    words = ["train-heads", str(heads), "--train", url, "--val", val, "--run", str(run)]
    with pytest.raises(SystemExit) as ended:
        cli.app(words, standalone_mode=False)
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert "S3CRET" not in shown.err + shown.out
    assert len([line for line in shown.err.splitlines() if line.startswith("error: ")]) == 1
    assert ("--resume" in shown.err) or ("Give credentials" in shown.err)
    assert (run / "weights" / "last.pt").exists()
    server.fault = lambda handler: None
    went_on = train(CONFIG, train_store=url, val_store=val, run=run, resume=True)
    assert went_on.best_ap == expected.best_ap
    assert 0 < len(went_on.losses) < len(expected.losses)
    assert went_on.losses == expected.losses[-len(went_on.losses) :]


@pytest.mark.parametrize(
    "fault", ["stalls", "validation", pytest.param("503", marks=pytest.mark.thorough)]
)
def test_a_signal_ends_the_wait_for_a_server(
    server: Server, tiny: Any, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole steps are saved, the step under way is given up, no thread is left to wait for."""
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "3000")
    monkeypatch.setenv("CACHEDET_REMOTE_TIMEOUT", "3000")
    expected = train(CONFIG, train_store=tiny.train, val_store=tiny.val, run=tmp_path / "whole")
    lasting, over, signals = after(0 if fault == "validation" else 40, 503), threading.Event(), []

    def act(handler: Handler) -> Status | None:
        if fault == "validation" and "/val.zarr/" not in handler.path:
            return None
        status = lasting(handler)
        if status is not None and not signals:
            signals.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        if status is not None and fault != "503":
            over.wait(1000)
        return status

    server.fault = act
    stores = {"train_store": server.url("train.zarr"), "val_store": server.url("val.zarr")}
    done = train(CONFIG, **stores, run=tmp_path / "run")
    assert done.reason == "SIGTERM"
    assert not [one for one in threading.enumerate() if one.name.startswith("feature-reader")]
    over.set()
    server.fault = lambda handler: None
    went_on = train(CONFIG, **stores, run=tmp_path / "run", resume=True)
    assert done.losses + went_on.losses == expected.losses
    assert went_on.best_ap == expected.best_ap


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "it wants credentials"), (403, "403 Forbidden"), (404, "has no manifest.json")],
)
def test_refusals_are_called_what_they_are(server: Server, status: Status, words: str) -> None:
    server.fault = lambda handler: status
    with pytest.raises(StoreError, match=words) as raised:
        FeatureStore.open(server.url("train.zarr", user="alice:S3CRET@"))
    assert "S3CRET" not in str(raised.value)


def test_a_server_without_ranges(server: Server) -> None:
    """As Python's own: what is small is read, a shard is refused."""
    server.ignores_ranges = True
    store = FeatureStore.open(server.url("train.zarr"))
    with pytest.raises(RemoteStoreError, match="the server knows no range requests"):
        store.read(0, "base")


def test_a_server_that_does_not_list(server: Server) -> None:
    server.fault = lambda handler: 403 if handler.path.rstrip("/").endswith("commits") else None
    store = FeatureStore.open(server.url("train.zarr"))
    store.require_complete()
    assert set(store.read(0, "base")) == set(store.spec.names)


def test_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(RemoteStoreError, match="the server refused the connection .tried"):
        FeatureStore.open(f"http://alice:S3CRET@127.0.0.1:{port}/s.zarr")


def test_a_command_to_continue_with_names_no_credential(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    once = after(40, 503, times=1)

    def stop(handler: Handler) -> None:
        if once(handler) is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "heads.yaml").write_text(dump_config(CONFIG))
    url = server.url("train.zarr", user="alice:S3CRET@", query="?sig=S3CRET")
    words = ["train-heads", str(tmp_path / "heads.yaml"), f"--train={url}"]
    words += ["--run", str(tmp_path / "run"), "--set", "schedule.epochs=4"]
    monkeypatch.setattr(sys, "argv", ["cachedet", *words])
    server.fault = stop
    assert cli.app(words, standalone_mode=False) == 75
    shown = capsys.readouterr().err
    assert f"--train={server.url('train.zarr')}" in shown
    assert "and the credentials, which are not shown here" in shown
    assert "S3CRET" not in shown


def test_commands_that_take_no_url_do_not_show_its_credentials(
    server: Server, tmp_path: Path, nursery: Any
) -> None:
    url = server.url("train.zarr", user="alice:S3CRET@", query="?sig=S3CRET")
    for words in (["verify", url], ["extract", "--images", url, "--annotations", url]):
        words += ["--store", str(tmp_path / "s.zarr")] if words[0] == "extract" else []
        with nursery.start_command(words) as process:
            out, err = process.communicate()
        assert process.returncode == 1
        assert err.startswith("error: ")
        assert "S3CRET" not in out + err


def test_training_and_scoring_from_an_object_storage(tiny: Any, s3: Any, tmp_path: Path) -> None:
    """With faults that pass; the losses and figures are those of folders."""
    expected = train(CONFIG, train_store=tiny.train, val_store=tiny.val, run=tmp_path / "whole")
    urls = []
    for root in (tiny.train, tiny.val):
        urls.append(s3.new_url(root.name))
        files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
        open_depot(urls[-1]).put({key: path.read_bytes() for key, path in files.items()})
    count = iter(range(10**9))
    s3.before = lambda method, key: (503, "SlowDown") if next(count) % 30 == 29 else None
    done = train(CONFIG, train_store=urls[0], val_store=urls[1], run=tmp_path / "run")
    assert done.losses == expected.losses
    assert done.best_ap == expected.best_ap
    evaluate(tmp_path / "run", store=urls[1])
    assert urls[1] in (tmp_path / "run" / "results.json").read_text()
    assert not leaks(tmp_path)
