"""Texts made comparable: their words without case, marks and layout, and short digests of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from hashlib import blake2b

_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|(?:\r?\n[ \t]*){2,}|\s*[\t|]\s*")


def words_of(text: str) -> list[str]:
    """The words and numbers of a text, in one case."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _WORD.findall(plain.casefold())


def normal(text: str) -> str:
    return " ".join(words_of(text))


def hash64(text: str) -> int:
    """The first 64 bits of a digest: the same on every machine."""
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def runs(words: list[str], length: int) -> Iterator[int]:
    """A hash of each run of so many words; none where there are fewer."""
    for at in range(len(words) - length + 1):
        yield hash64(" ".join(words[at : at + length]))


def sentences(text: str, least: int) -> Iterator[tuple[int, int]]:
    """Hash and number of words of each sentence with at least so many words."""
    for part in _SENTENCE_END.split(text):
        words = words_of(part)
        if len(words) >= least:
            yield hash64(" ".join(words)), len(words)


def digest_of_texts(texts: Iterable[str]) -> str:
    """16 hex digits: the same for texts of the same words, in whatever order the texts come."""
    digest = blake2b(digest_size=8)
    for one in sorted(blake2b(normal(text).encode()).digest() for text in texts):
        digest.update(one)
    return digest.hexdigest()
