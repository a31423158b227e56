"""XML from strangers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachedet.data.annotation_formats import read_sections
from cachedet.data.xml_files import read_xml, root_name, text_of
from cachedet.errors import DatasetError

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "lol">'
    + "".join(f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(1, 30)).replace("&x0;", "&x;")
    + "]><{root}>&x29;</{root}>"
)


@pytest.mark.parametrize("root", ["annotations", "annotation", "kml"])
def test_bombs_are_refused_before_they_grow(tmp_path: Path, root: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(BOMB.replace("{root}", root))
    for read in (read_xml, root_name, read_sections):
        with pytest.raises(
            DatasetError, match=r"a.xml declares entities, .* .an XML bomb.; no anno"
        ):
            read(path)


def test_files_outside_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = tmp_path / "a.xml"
    path.write_text(
        f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]><annotation>&x;</annotation>'
    )
    with pytest.raises(DatasetError, match="declares entities") as caught:
        read_xml(path)
    assert "is not XML" not in str(caught.value)
    path.write_text(f'<!DOCTYPE annotation SYSTEM "file://{secret}"><annotation>a</annotation>')
    assert read_xml(path).text == "a"
    path.write_text(f'<!DOCTYPE annotation SYSTEM "file://{secret}"><annotation>&x;</annotation>')
    with pytest.raises(DatasetError, match=r"has &x;, which another file declares; nothing") as hit:
        read_xml(path)
    assert "is not XML" not in str(hit.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<a><b></a>", "is not XML: mismatched tag"),
        (b"<a>", "is not XML: no element found: line 1, column 3; was a copy or download cut off?"),
        (b"", "is not XML: no element found"),
        (b"<a>\xff</a>", "is not XML: not well-formed"),
        (b"<?xml version='1.0' encoding='none'?><a/>", "is not XML: unknown encoding"),
        (b"<a/><b/>", "is not XML: junk after document element"),
    ],
)
def test_what_is_no_xml(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read_xml(tmp_path / "a.xml")
    assert message in str(caught.value)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, reason in {
        "fifo": "not a file",
        "none": "No such file",
        "a\0b": "no file can",
    }.items():
        with pytest.raises(DatasetError, match=reason):
            read_xml(tmp_path / name)
        assert root_name(tmp_path / name) is None
    with (tmp_path / "giant").open("wb") as file:
        file.write(b"<annotations>")
        file.truncate(1 << 40)
    with pytest.raises(DatasetError, match=r"1,099,511,627,776 bytes, expected at most"):
        read_xml(tmp_path / "giant")
    assert root_name(tmp_path / "giant") == "annotations"


def test_the_root_is_found_behind_what_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(b"\xef\xbb\xbf \n<?xml version='1.0'?><!-- x > y --><annotation a='1'/>")
    assert root_name(path) == "annotation"
    path.write_text("<?xml version='1.0'?><!-- <kml> --><!-- -->\n<annotations/>")
    assert root_name(path) == "annotations"
    path.write_text("<!-- <kml> never ended")
    assert root_name(path) is None
    path.write_text('{"a": "<annotation>"}')
    assert root_name(path) is None


def test_deep_nesting_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>")
    assert read_xml(path).tag == "annotation"


def test_text_of_children(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text("<a><b> x </b><c> </c></a>")
    root = read_xml(path)
    assert [text_of(root, name) for name in "bcd"] == ["x", None, None]
