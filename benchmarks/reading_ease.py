"""Words, length of sentences and Flesch reading ease of README and the docs, page by page.

python benchmarks/reading_ease.py [FILE ...] [--least 50] [--longest 25]

Code blocks, tables, headings, images and the targets of links are left out; `inline code` counts
as one short word. With --least or --longest the pages that miss them are named, with status 1.
The ease is 206.8 - 1.015 words a sentence - 84.6 syllables a word: 60 is plain English.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_FENCED = re.compile(r"^ *(```|~~~).*?^ *\1", re.MULTILINE | re.DOTALL)
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_INLINE_CODE = re.compile(r"`[^`]+`")
_URL = re.compile(r"https?://\S+")
_LIST_ITEM = re.compile(r"^\s*([-*+]|\d+\.)\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*_]*\s+")
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*|\d[\d.,]*")
_VOWELS = re.compile(r"[aeiouy]+")


@dataclass(frozen=True)
class Ease:
    """Figures of one text."""

    words: int
    sentences: int
    syllables: int
    longest: str  # the sentence of most words

    @property
    def words_per_sentence(self) -> float:
        return self.words / max(self.sentences, 1)

    @property
    def flesch(self) -> float:
        if not self.words:
            return 100.0
        return 206.835 - 1.015 * self.words_per_sentence - 84.6 * self.syllables / self.words


def measure(text: str) -> Ease:
    """Figures of a Markdown text."""
    sentences = [found for block in blocks(text) if (found := _split(block))]
    counted = [sentence for block in sentences for sentence in block]
    words = [_WORD.findall(sentence) for sentence in counted]
    longest = max(zip(words, counted, strict=True), key=lambda one: len(one[0]), default=([], ""))
    return Ease(
        words=sum(map(len, words)),
        sentences=len(counted),
        syllables=sum(count_syllables(word) for sentence in words for word in sentence),
        longest=longest[1],
    )


def blocks(text: str) -> list[str]:
    """Paragraphs and list items of prose."""
    text = _IMAGE.sub("", _FENCED.sub("\n\n", text))
    text = _URL.sub("", _INLINE_CODE.sub("code", _LINK.sub(r"\1", text)))
    found: list[str] = []
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        is_item = _LIST_ITEM.match(line) is not None
        is_code = line.startswith("    ") and not is_item and not lines
        ends = not line.strip() or line.startswith(("#", "|")) or is_code
        if (ends or is_item) and lines:
            found.append(" ".join(lines))
            lines = []
        if not ends:
            lines.append(_LIST_ITEM.sub("", line).strip())
    return found


def _split(block: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(block) if _WORD.search(part)]


def count_syllables(word: str) -> int:
    """Estimate of an English word's syllables; a number counts as one."""
    total = 0
    for part in re.split("[-']", word.lower()):
        groups = len(_VOWELS.findall(part))
        silent_e = part.endswith("e") and not part.endswith(("le", "ee", "oe", "ye"))
        silent_ed = part.endswith("ed") and not part.endswith(("ted", "ded", "eed"))
        silent_es = part.endswith("es") and not re.search("(s|x|z|ch|sh|c|g)es$", part)
        total += max(groups - (silent_e or silent_ed or silent_es), 1 if part else 0)
    return max(total, 1)


def pages() -> list[Path]:
    """README and all pages of docs/, by name."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--least", type=float, help="reading ease that every page must have")
    parser.add_argument("--longest", type=int, help="words that no sentence may exceed")
    options = parser.parse_args()
    failed = []
    print(
        f"{'page':44} {'all words':>9} {'prose':>7} {'a sentence':>10} {'longest':>7} {'ease':>5}"
    )
    for path in options.files or pages():
        text = path.read_text()
        ease = measure(text)
        most = len(_WORD.findall(ease.longest))
        name = path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path
        print(
            f"{name!s:44} {len(text.split()):9} {ease.words:7} "
            f"{ease.words_per_sentence:10.1f} {most:7} {ease.flesch:5.0f}"
        )
        if options.least is not None and ease.flesch < options.least:
            failed.append(f"{name}: reading ease {ease.flesch:.0f} is below {options.least:.0f}")
        if options.longest is not None and most > options.longest:
            failed.append(f"{name}: a sentence of {most} words: {ease.longest}")
    print("\n".join(failed), end="\n" if failed else "")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
