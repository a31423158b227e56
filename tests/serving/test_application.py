"""What the page's server answers, and what it refuses, without a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from cachedet.data.images import decode_image
from cachedet.serving.turns import Turns


def pixels_of(answer: Any) -> Image.Image:
    kind, _, content = answer["pixels"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def refused(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert "content-security-policy" in response.headers
    error: str = response.json()["error"]
    assert "\n" not in error
    return error


def test_the_page_needs_nothing_from_outside(kit: Any) -> None:
    client = kit.client()
    for path, kind in (
        ("/", "text/html"), ("/page.js", "text/javascript"),
        ("/page.css", "text/css"), ("/look.css", "text/css"),
    ):  # fmt: skip
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        addresses = re.findall(r"https?://[^\s\"']+", response.text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert "access-control-allow-origin" not in response.headers
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["cache-control"] == "no-store"


def test_facts(kit: Any, tmp_path: Path) -> None:
    facts = kit.client().get("/facts").json()
    assert facts["title"] == "my-run"
    assert [one["name"] for one in facts["classes"]] == list(kit.names)
    assert len(facts["colours"]) == 8
    assert (facts["cut"], facts["cut_is_best"]) == (0.3, False)
    assert (facts["folder"], facts["images"]) == (None, 0)
    (tmp_path / "a.jpg").write_bytes(kit.image())
    facts = kit.client(cut=0.42, gallery=kit.gallery(tmp_path)).get("/facts").json()
    assert (facts["cut"], facts["cut_is_best"], facts["images"]) == (0.42, True, 1)


@pytest.mark.parametrize("turned", [False, True])
def test_it_finds_what_predict_finds_in_the_upright_image(
    kit: Any, tmp_path: Path, turned: bool
) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(kit.image((96, 64), turned=turned))
    answer = kit.client().post("/detect?name=a.jpg", content=file.read_bytes()).json()
    assert (answer["width"], answer["height"]) == ((64, 96) if turned else (96, 64))
    assert pixels_of(answer).size == (answer["width"], answer["height"])
    expected = kit.detector()(decode_image(file))
    assert [one["box"] for one in answer["detections"]] == expected.boxes.tolist()
    assert [one["score"] for one in answer["detections"]] == expected.scores.tolist()
    assert [one["name"] for one in answer["detections"]] == [
        "cat",
        "dog",
        "<b>bold</b>",
        "emu",
        "dog",
    ]
    assert [one["category_id"] for one in answer["detections"]] == [10, 11, 12, 18, 11]
    assert (answer["name"], answer["note"], answer["truth"]) == ("a.jpg", None, None)


def test_masks_are_run_lengths_of_the_whole_image(kit: Any) -> None:
    client = kit.client(detector=kit.detector(has_masks=True))
    answer = client.post("/detect", content=kit.image((96, 64))).json()
    assert all(one["segmentation"]["size"] == [64, 96] for one in answer["detections"])


def test_large_images_are_shown_smaller_with_boxes_of_all_pixels(kit: Any) -> None:
    answer = kit.client().post("/detect", content=kit.image((4096, 1024))).json()
    assert (answer["width"], answer["height"]) == (4096, 1024)
    assert pixels_of(answer).size == (2048, 512)
    assert answer["detections"][-1]["box"] == pytest.approx([0, 0, 4096, 1024])


def test_one_pixel_is_an_image(kit: Any) -> None:
    answer = kit.client().post("/detect", content=kit.image((1, 1))).json()
    assert (answer["width"], answer["height"]) == (1, 1)
    assert len(answer["detections"]) == 5


def test_what_was_odd_is_noted(kit: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    answer = kit.client().post("/detect", content=buffer.getvalue()).json()
    assert "orientation 77 is invalid" in answer["note"]


def png_of(width: int, height: int) -> bytes:
    """A file of which the head says so."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_what_is_no_image_is_one_sentence(kit: Any) -> None:
    client = kit.client()
    for content, message in (
        (b"", "the file is empty"),
        (b"no image", "not an image of a format that is read (AVIF"),
        (kit.image()[:300], ""),
        (png_of(20_000, 20_000), "Image size (400000000 pixels) exceeds limit of"),
    ):
        assert message in refused(client.post("/detect", content=content), 422)


def test_large_bodies_are_refused_before_they_are_read(kit: Any) -> None:
    client = kit.client(most_nbytes=1 << 20)
    declared = client.post("/detect", content=bytes((1 << 20) + 1))
    assert "up to 1 MB are taken; start with a larger --most-mb" in refused(declared, 413)
    for length in ("-1", "1_0", "x"):
        response = client.post("/detect", content=b"x", headers={"content-length": length})
        refused(response, 413)
    assert client.post("/detect", content=bytes(1 << 20)).status_code == 422  # no image, but read


def drive(application: Any, path: str, messages: Iterator[Any]) -> tuple[int, Any]:
    """Status and answer, by hand: the client of the tests sends all before it looks."""
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [(b"host", b"localhost:1")], "http_version": "1.1",
        "scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2), "root_path": "",
    }  # fmt: skip
    asyncio.run(application(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_body_of_unknown_length_is_read_up_to_the_limit(kit: Any) -> None:
    part = {"type": "http.request", "body": bytes(1 << 16), "more_body": True}
    messages = itertools.repeat(part, 17)  # one more than the limit, and none further
    status, _ = drive(kit.client(most_nbytes=1 << 20).app, "/detect", messages)
    assert status == 413


def test_who_goes_is_passed_over(kit: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(kit.image())
    gallery = kit.gallery(tmp_path)
    gone = {"type": "http.disconnect"}
    begun = {"type": "http.request", "body": b"x", "more_body": True}
    status, answer = drive(kit.client().app, "/detect", iter([begun, gone]))
    assert (status, answer["error"]) == (499, "the image was not sent to its end")
    whole = {"type": "http.request", "body": b"", "more_body": False}
    for path in ("/detect", "/images/0/detect"):
        status, answer = drive(kit.client(gallery=gallery).app, path, iter([whole, gone]))
        assert (status, answer["error"]) == (499, "nobody waits for this image any more")


def test_a_detector_that_fails_leaves_the_page(kit: Any) -> None:
    client = kit.client(detector=kit.detector(fault=RuntimeError("CUDA out of memory\nmore")))
    error = refused(client.post("/detect", content=kit.image()), 500)
    assert error == "the detector failed on this image: CUDA out of memory"
    client = kit.client(detector=kit.detector(rows=((0, float("nan"), (0, 0, 1, 1)),)))
    assert "the detector failed" in refused(client.post("/detect", content=kit.image()), 500)
    assert client.get("/").status_code == 200


def test_without_a_folder_there_are_no_images(kit: Any) -> None:
    client = kit.client()
    for response in (
        client.get("/images"), client.get("/images/0/thumbnail"), client.post("/images/0/detect")
    ):  # fmt: skip
        assert "no folder was given: start `cachedet serve` with --images" in refused(response, 404)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "LOCALHOST:1"])
def test_names_of_this_machine(kit: Any, host: str) -> None:
    assert kit.client().get("/facts", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost:80@evil.example", "", "10.0.0.1"]
)
def test_other_names_are_refused(kit: Any, host: str) -> None:
    """As those of pages that lead here by DNS rebinding."""
    error = refused(kit.client().get("/facts", headers={"host": host}), 403)
    assert error == "this server answers only under the names localhost and 127.0.0.1"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"origin": "http://evil.example"}, "requests of other origins are refused"),
        ({"origin": "null"}, "requests of other origins are refused"),
        ({"origin": "http://127.0.0.1:1"}, "requests of other origins are refused"),
        ({"origin": "https://127.0.0.1"}, "requests of other origins are refused"),
        ({"sec-fetch-site": "cross-site"}, "requests of other sites are refused"),
        ({"sec-fetch-site": "same-site"}, "requests of other sites are refused"),
    ],
)
def test_other_pages_cannot_send_images(kit: Any, headers: dict[str, str], message: str) -> None:
    client = kit.client()
    assert refused(client.post("/detect", content=kit.image(), headers=headers), 403) == message
    assert refused(client.get("/facts", headers=headers), 403) == message


def test_the_page_itself_and_links_to_it_are_answered(kit: Any) -> None:
    client = kit.client()
    ours = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert client.post("/detect", content=kit.image(), headers=ours).status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200
    assert client.get("/facts", headers={"sec-fetch-site": "none"}).status_code == 200
    assert refused(client.get("/detect"), 405) == "Method Not Allowed"
    assert refused(client.get("/etc/passwd"), 404) == "Not Found"


async def stays() -> bool:
    return False


async def went() -> bool:
    return True


def test_one_at_a_time_and_few_wait() -> None:
    going = threading.Event()
    inside, most = 0, 0

    def job() -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        going.wait(20)
        inside -= 1
        return 7

    async def ask() -> list[Any]:
        turns = Turns(most_waiting=2)
        asked = [asyncio.create_task(turns.take(job, is_gone=stays)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException, match="2 images are waiting for the detector") as busy:
            await turns.take(job, is_gone=stays)
        assert busy.value.status_code == 503
        going.set()
        found = await asyncio.gather(*asked)
        return [*found, await turns.take(job, is_gone=stays)]

    assert asyncio.run(ask()) == [7, 7, 7, 7]
    assert most == 1


def test_nothing_is_detected_for_who_went() -> None:
    async def ask() -> None:
        with pytest.raises(HTTPException, match="nobody waits") as gone:
            await Turns().take(lambda: pytest.fail("it was begun"), is_gone=went)
        assert gone.value.status_code == 499

    asyncio.run(ask())


def test_the_page_answers_while_something_is_detected(kit: Any) -> None:
    """And a job that fails lets the next one in."""

    async def ask() -> None:
        turns, going = Turns(), threading.Event()
        first = asyncio.create_task(turns.take(lambda: going.wait(20), is_gone=stays))
        for _ in range(3):
            await asyncio.sleep(0.01)
        assert not first.done()
        going.set()
        assert await first
        with pytest.raises(ZeroDivisionError):
            await turns.take(lambda: 1 // 0, is_gone=stays)
        assert await turns.take(lambda: 5, is_gone=stays) == 5

    asyncio.run(ask())
