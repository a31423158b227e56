"""Images of the folder that no annotation names."""

from __future__ import annotations

from typing import Any

import pytest

from cachedet.inspection import unnamed_images

NAMES = [f"{number}.png" for number in range(6)]


def test_they_are_counted_and_the_first_five_named(data: Any, of_kind: Any) -> None:
    """Hidden files and others than images are none; names may lead through folders."""
    for number in range(7):
        data.draw(f"more/{number}.jpg", number)
    data.draw(".hidden.png", 3)
    data.draw(".folder/a.png", 3)
    (data.images / "notes.txt").write_text("")
    train = data.write("a.json", ["./0.png", "more/../1.png", *NAMES[2:]], [])
    finding = of_kind(data.check(train), "unnamed")
    assert (finding.rank, finding.count) == ("fine", 7)
    assert finding.text == (
        f"in {data.images} 7 images are not named by train (more/0.jpg; more/1.jpg; more/2.jpg; "
        "more/3.jpg; more/4.jpg; and 2 more)"
    )
    val = data.write("v.json", [f"more/{number}.jpg" for number in range(6)], [])
    both = of_kind(data.check(train, val=val), "unnamed")
    assert both.text.endswith("1 image is named by neither train nor val (more/6.jpg)")
    val = data.write("v.json", [f"{number}.jpg" for number in range(7)], [])
    apart = data.check(train, val=val, val_images=data.images / "more")
    assert "unnamed" not in {one.kind for one in apart.findings}


def test_nothing_is_said_where_all_are_named_or_nobody_knows(
    data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds(names: list[str], **options: Any) -> set[str]:
        path = data.write("a.json", names, [(0, 1, (9, 9, 20, 20))])
        return {one.kind for one in data.check(path, **options).findings}

    assert "unnamed" not in kinds(NAMES)
    assert "unnamed" not in kinds(NAMES, choose={"background": False})  # named, and left out
    assert "unnamed" not in kinds(["../0.png", *NAMES[:3]])  # the names are refused
    assert "unnamed" in kinds(NAMES[:4])
    monkeypatch.setattr(unnamed_images, "_MOST_FILES", 5)
    assert "unnamed" not in kinds(NAMES[:4])
