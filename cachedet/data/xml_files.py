"""XML files of users: read whole or refused; nothing in them can grow when it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from cachedet.data.regular_files import read_regular
from cachedet.errors import DatasetError

_MOST_NBYTES = 1 << 30  # of a file; a million boxes of CVAT take a quarter of it
_HEAD_NBYTES = 1 << 16
_ROOT = re.compile(rb"<([A-Za-z_][\w.-]*)")
_ENTITY = b"<!ENTITY"
_COMMENT = re.compile(rb"<!--.*?(-->|$)|<\?.*?(\?>|$)", re.DOTALL)


def read_xml(path: Path) -> Element:
    """The root of an XML file. Raises DatasetError: unreadable, no XML, or with entities."""
    try:
        content = read_regular(path, most=_MOST_NBYTES)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(*_: Any) -> None:
        raise DatasetError(
            f"{path} declares entities, which can grow without end when they are read (an XML "
            "bomb); no annotation tool writes them: remove the DOCTYPE, or export again"
        )

    def refuse_outer(name: str, _: bool) -> None:
        raise DatasetError(
            f"{path} has &{name};, which another file declares; nothing outside of it is read: "
            "write the text itself"
        )

    parser.EntityDeclHandler = refuse
    parser.SkippedEntityHandler = refuse_outer
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except DatasetError:  # of the handlers; it is a ValueError
        raise
    except expat.ExpatError as error:
        raise DatasetError(
            f"{path} is not XML: {error}; was a copy or download cut off?"
        ) from error
    except (ValueError, LookupError) as error:  # of its encoding
        raise DatasetError(f"{path} is not XML: {error}; save it as UTF-8") from error
    return builder.close()


def root_name(path: Path) -> str | None:
    """The name of the outermost element; None where the file does not look like XML."""
    try:
        head = read_regular(path, first=_HEAD_NBYTES)
    except OSError:
        return None
    if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return None
    if _ENTITY in head:
        read_xml(path)  # says why it is not read
    found = _ROOT.search(_COMMENT.sub(b"", head))
    return found[1].decode() if found else None


def text_of(element: Element, path: str) -> str | None:
    """The text of a child; None where there is none."""
    text = (element.findtext(path) or "").strip()
    return text or None
