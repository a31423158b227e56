"""The server on its port, spoken to byte by byte."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import pytest

from cachedet.errors import InputError
from cachedet.serving.local_server import LocalServer


def answer_to(url: str, request: str) -> str:
    """What comes back before the server closes."""
    place = urlsplit(url)
    assert place.hostname is not None
    with socket.create_connection((place.hostname, place.port or 0), timeout=30) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


def test_a_large_body_is_refused_before_it_is_sent(kit: Any) -> None:
    with kit.running(kit.served()) as url:
        head = "POST /detect HTTP/1.1\nHost: localhost\nContent-Length: 99999999999\n\n"
        answer = answer_to(url, head)
        assert answer.startswith("HTTP/1.1 413 ")
        assert "images of up to 32 MB are taken" in answer


def test_what_is_no_request_is_refused(kit: Any) -> None:
    with kit.running(kit.served()) as url:
        assert answer_to(url, "GET / HTTP/1.1\n\n").startswith("HTTP/1.1 400 ")  # no Host
        two = "GET / HTTP/1.1\nHost: localhost\nHost: evil.example\nConnection: close\n\n"
        assert answer_to(url, two).split()[1] in ("400", "403")
        with urllib.request.urlopen(f"{url}facts", timeout=30) as response:
            assert json.loads(response.read())["title"] == "my-run"
            assert "server" not in response.headers


def test_the_port_is_taken_at_once_and_given_back() -> None:
    first = LocalServer(0)
    port = urlsplit(first.url).port or 0
    first.listen()
    with pytest.raises(InputError, match=f"--port {port} .* another program uses it; name another"):
        LocalServer(port)
    first.close()
    second = LocalServer(port)
    assert second.url == f"http://127.0.0.1:{port}/"
    second.close()


def test_half_an_upload_ends_without_a_word(
    kit: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while an image is being sent: no traceback."""
    monkeypatch.setattr("cachedet.serving.local_server._PATIENCE", 1)
    with kit.running(kit.served()) as url:
        place = urlsplit(url)
        sender = socket.create_connection((place.hostname, place.port or 0), timeout=30)
        sender.sendall(b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nabc")
        with urllib.request.urlopen(f"{url}facts", timeout=30):
            pass  # by now the first is being read
    sender.close()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
