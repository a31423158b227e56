"""Frames of videos: all of them, upright, and no file but the one that was named."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cachedet.errors import BadImageError
from cachedet.prediction.videos import read_frames

av = pytest.importorskip("av")
Write = Callable[..., None]


def greys(count: int) -> list[NDArray[np.uint8]]:
    return [np.full((64, 96, 3), 10 * number, dtype=np.uint8) for number in range(count)]


def test_every_so_many_frames_with_number_time_and_pixels(
    tmp_path: Path, write_video: Write
) -> None:
    write_video(tmp_path / "a.mkv", greys(20), rate=5)
    frames = list(read_frames(tmp_path / "a.mkv", every=6))
    assert [frame.number for frame in frames] == [0, 6, 12, 18]
    np.testing.assert_allclose([frame.time for frame in frames], [0, 1.2, 2.4, 3.6], atol=0.01)
    for frame in frames:
        pixels = frame.pixels()
        assert pixels.shape == (64, 96, 3)
        assert abs(float(pixels.mean()) - 10 * frame.number) < 4


def test_a_phone_that_was_held_upright(tmp_path: Path, write_video: Write) -> None:
    """Its matrix says to turn the frames a quarter clockwise."""
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    pixels[:32, :48] = 255
    write_video(tmp_path / "a.mp4", [pixels] * 3)
    content = (tmp_path / "a.mp4").read_bytes()
    numbers = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = (0, 0x10000, 0, -0x10000, 0, 0, 64 << 16, 0, 0x40000000)
    old, new = (
        b"".join(number.to_bytes(4, "big", signed=True) for number in each)
        for each in (numbers, turned)
    )
    at = content.index(old, content.index(b"tkhd"))
    (tmp_path / "a.mp4").write_bytes(content[:at] + new + content[at + len(new) :])
    shown = next(iter(read_frames(tmp_path / "a.mp4"))).pixels()
    assert shown.shape == (96, 64, 3)
    assert shown[:40, 40:].mean() > 240
    assert shown[:40, :24].mean() < 15


def test_what_is_no_video_or_holds_no_frames(tmp_path: Path, write_video: Write) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
        )
        sound.sample_rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "none.mp4").write_bytes(b"none" * 99)
    (tmp_path / "folder.mp4").mkdir()
    for name, message in {
        "sound.mp4": "a video without frames", "empty.mp4": "the file is empty",
        "none.mp4": "Invalid data found", "folder.mp4": ".*", "gone.mp4": "No such file",
    }.items():  # fmt: skip
        with pytest.raises(BadImageError, match=f"{name}: {message}"):
            list(read_frames(tmp_path / name))


def test_frames_in_front_of_the_damage_come(tmp_path: Path, write_video: Write) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 96, 3)).astype(np.uint8)
    write_video(tmp_path / "a.avi", list(noise))
    content = bytearray((tmp_path / "a.avi").read_bytes())
    content[len(content) // 2 : -2000] = bytes(len(content) - 2000 - len(content) // 2)
    (tmp_path / "a.avi").write_bytes(content)
    seen = []
    try:
        seen += [frame.number for frame in read_frames(tmp_path / "a.avi")]
    except BadImageError as error:
        assert "damaged behind frame" in str(error)  # noqa: PT017 (players differ in what they say)
    assert seen[:8] == list(range(8))


def test_a_playlist_opens_no_other_file(tmp_path: Path, write_video: Write) -> None:
    write_video(tmp_path / "secret.mp4", greys(3))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "hls.ts").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsecret.mp4\n")
    for name in ("list.mp4", "hls.ts"):
        with pytest.raises(BadImageError, match=name):
            list(read_frames(tmp_path / name))


def test_who_stops_leaves_no_thread_behind(tmp_path: Path, write_video: Write) -> None:
    write_video(tmp_path / "a.mp4", greys(25))
    with closing(read_frames(tmp_path / "a.mp4")) as frames:
        next(frames)
    assert not [t for t in threading.enumerate() if t.name.startswith("video")]
