"""Text from outside, such as names and paths, as it is shown: on terminals, on pages, in drawings.

A name can hold anything: line breaks, escape sequences that repaint a terminal, characters that
turn the direction of what follows, bytes that are no UTF-8. They are shown as escapes, `\\x1b`.
Markup such as `[bold]` is text like any other.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Sequence

# Control characters, what cannot be seen, line separators, changes of direction, and halves of
# pairs. Joiners (200c, 200d) stay: Persian names and many emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!])")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_GAP = "\N{HORIZONTAL ELLIPSIS}"


def printable(text: object, *, keep: str = "") -> str:
    """The text on one line, with what a terminal would obey or not show as escapes.

    A byte that is no UTF-8 is shown as that byte. Characters of `keep` stay as they are.

    Examples:
        >>> printable("a\\nb\\x1b[31m")
        'a\\\\nb\\\\x1b[31m'
    """
    return _HIDDEN.sub(lambda match: _escape(match[0], keep), str(text))


def escape_markdown(text: str) -> str:
    """Plain text that Markdown and the HTML in it show as it is, on one line."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))


def as_ascii(character: str) -> str:
    """``\\x1b``, ``\\u732b`` or ``\\U0001f408``."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a path that is no UTF-8
        code -= 0xDC00
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def shorten(text: str, most: int) -> str:
    """Cut the middle out of a text of more than `most` characters (at least 8).

    A digest stands for what is cut where that is more than half: names of equal ends stay distinct.
    """
    if len(text) <= most:
        return text
    middle = _GAP
    if len(text) > 2 * most:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        middle = f"{_GAP}{digest[:4]}{_GAP}"
    left = max(most - len(middle), 2)
    return f"{text[: left - left // 2]}{middle}{text[len(text) - left // 2 :]}"


def shell_line(words: Sequence[str]) -> str:
    """Words as one line that a shell (bash, zsh) takes, also where they hold odd bytes."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if not _HIDDEN.search(word):
        return shlex.quote(word)
    escaped = re.sub(r"(['\\])", r"\\\1", word)
    return f"$'{_HIDDEN.sub(lambda match: _bytes_of(match[0]), escaped)}'"


def _bytes_of(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _escape(character: str, keep: str) -> str:
    if character in keep:
        return character
    return _SHORT.get(character) or as_ascii(character)
