"""The grammars of all names that institutions exchange.

A name that this side accepts and the other refuses is found by the other side's operator, so nothing has a grammar of
its own: configuration, bundles, the wire, certificates and the command line all ask here.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import Final

__version__ = "0.1.0"
CONFIG_VARIABLE: Final = "DDIB_CONFIG"
"""Of the environment: the node.toml of operators' commands that get no --config."""
NODE_FILE: Final = "node.toml"  # what they read in the current folder if that is not set either
MAX_DOMAIN: Final = 64
DOMAIN_RULE: Final = f"1 to {MAX_DOMAIN} of A-Z a-z 0-9 . _ -, a letter or digit first"
# RFC 1035: 253 characters for a whole name, 63 for a label.
MAX_DNS_NAME: Final = 253
LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_LABEL: Final = re.compile(LABEL)
_INSTITUTION: Final = re.compile(rf"(?:{LABEL}\.)+{LABEL}")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ALPHABETS: Final = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "CHEROKEE", "LISU")
_SIZE: Final = re.compile(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){1,2}")


def size_from(text: str) -> tuple[int, ...]:
    """Return height and width in pixels of a text such as ``700x150``; of volumes depth first."""
    if _SIZE.fullmatch(text) is None:
        raise ValueError(
            f"{text!a} is no size: write HEIGHTxWIDTH in pixels, e.g. 700x150, or DEPTHxHEIGHTxWIDTH of volumes"
        )
    return tuple(map(int, text.split("x")))


def names_apart(
    files: Sequence[str],
    made: Callable[[str], Iterable[str]] = lambda name: (name,),
    taken: Iterable[str] = (),
) -> list[str]:
    """Name the results of files: the file's name without its suffix, or ``scan-png`` where that would clash."""
    whole: set[int] = set()
    others = Counter({each.casefold() for each in taken})
    while True:
        names = [
            stem + PurePath(file).suffix.replace(".", "-") if number in whole else stem
            for number, file in enumerate(files)
            for stem in [file.removesuffix(PurePath(file).suffix)]
        ]
        results = [{each.casefold() for each in made(name)} for name in names]
        times = others + Counter(each for group in results for each in group)
        clashing = {number for number, group in enumerate(results) if any(times[each] > 1 for each in group)}
        if clashing <= whole:  # what is left has one file name in two folders
            return names
        whole |= clashing


def is_label(text: str) -> bool:
    return _LABEL.fullmatch(text) is not None


def label_from(text: str, otherwise: str) -> str:
    """Return a text as one DNS label, or `otherwise` if nothing of it can be one."""
    label = re.sub(r"[^a-z0-9-]", "-", text.lower())[:63].strip("-")
    return label if is_label(label) else otherwise


def is_institution(text: str) -> bool:
    """Return whether it is a lower-case DNS name of two labels or more, whose last is no number."""
    last = text.rpartition(".")[2]
    named = _INSTITUTION.fullmatch(text) is not None and not last.isdigit()
    return named and len(last) >= 2 and len(text) <= MAX_DNS_NAME


def check_institution(text: str) -> str:
    """Return the name; raise ValueError unless it is one of an institution."""
    if not is_institution(text):
        raise ValueError(f"{text!a} is no institution: a DNS name in lower case, e.g. north.example")
    return text


def readable(name: str) -> str:
    """Return a DNS name with the letters beyond ASCII that its labels stand for."""

    def read(label: str) -> str:
        try:
            return label[4:].encode("ascii").decode("punycode") if label.startswith("xn--") else label
        except UnicodeError:
            return label

    return ".".join(map(read, name.split(".")))


def resembles(name: str, other: str) -> bool:
    """Return whether a person may confuse two names whose letters of different alphabets look alike."""

    def plain(text: str) -> str:
        letters = unicodedata.normalize("NFKD", readable(text)).lower()
        return "".join(c for c in letters if not unicodedata.combining(c))

    def alike(a: str, b: str) -> bool:
        foreign = unicodedata.name(max(a, b), "").startswith(_ALPHABETS)
        return a == b or (a.isascii() != b.isascii() and foreign)

    one, two = plain(name), plain(other)
    return len(one) == len(two) and all(map(alike, one, two))


def is_domain(text: str) -> bool:
    return _DOMAIN.fullmatch(text) is not None and len(text) <= MAX_DOMAIN


def check_domain(text: str) -> str:
    """Return the name; raise ValueError unless it is one of a domain."""
    if not is_domain(text):
        raise ValueError(
            f"{text!a} is no name of a domain: {DOMAIN_RULE}, e.g. {domain_from(text) or 'brain-t1'}"
        )
    return text


def domain_from(text: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)
    return kept.lstrip("._-")[:MAX_DOMAIN]


def nearest(text: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(text, tuple(known), n=1, cutoff=cutoff)
    return close[0] if close else ""
