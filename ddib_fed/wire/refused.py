"""Which items of a job a node refuses, and why: as facts of the one error that it answers with, and back.

A word is `NUMBERS:REASON`. The fact `refused` has one number in each word, as in releases that knew no more. What it
has no room for goes on in `refused_1` to `refused_9`, where numbers are ranges: `20-299,305:IMAGE_UNREADABLE`.
`refused_count` is how many items there are, whether or not there was room for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

FACT: Final = "refused"
COUNT: Final = "refused_count"
MAX_FACT: Final = 200
"""Characters of a fact, see `limits.common`."""
MOST_FURTHER: Final = 9
"""Facts beside the first: an error has at most 16, see `limits.common`, and others of its own."""
MOST_ITEMS: Final = 100_000
"""Of a job, whatever its node allows; no more are read."""


def refused_facts(refused: Mapping[int, str]) -> dict[str, str]:
    """Facts that name the items.

    Args:
        refused: The reason of each, by its number; at least one.
    """
    numbers = sorted(refused)
    said, named = "", 0
    for number in numbers:
        longer = f"{said} {number}:{refused[number]}".lstrip()
        if len(longer) > MAX_FACT:
            break
        said, named = longer, named + 1
    by_reason: dict[str, list[int]] = {}
    for number in numbers[named:]:
        by_reason.setdefault(refused[number], []).append(number)
    further = _packed({reason: _ranges(each) for reason, each in by_reason.items()})[:MOST_FURTHER]
    facts = {FACT: said} | {f"{FACT}_{place}": text for place, text in enumerate(further, 1)}
    return facts | {COUNT: str(len(refused))}


def refused_items(facts: Mapping[str, str]) -> dict[int, str]:
    """Number and reason of each item that the facts name, at most `MOST_ITEMS`.

    Args:
        facts: Of a node's error, untrusted; words that are none are passed over.
    """
    found: dict[int, str] = {}
    for fact in (FACT, *(f"{FACT}_{place}" for place in range(1, MOST_FURTHER + 1))):
        for word in facts.get(fact, "").split():
            numbers, _, reason = word.partition(":")
            for part in numbers.split(","):
                for number in _numbers(part, MOST_ITEMS - len(found)):
                    found[number] = reason
    return found


def refused_count(facts: Mapping[str, str]) -> int:
    """How many items the node refused, as it says; 0 if it does not say."""
    said = facts.get(COUNT, "")
    return int(said) if is_number(said) else 0


def is_number(text: str) -> bool:
    """Whether it is a number as an item has one."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def _ranges(numbers: Sequence[int]) -> list[str]:
    """Ascending numbers as `3` and `5-9`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ["-".join(map(str, each)) for each in found]


def _packed(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Texts of at most `MAX_FACT` characters with all ranges; a reason whose ranges do not fit into one goes on."""
    facts: list[str] = []
    said = ""
    for reason, ranges in groups.items():
        word = ""
        for each in ranges:
            longer = f"{word},{each}" if word else each
            if len(f"{said} {longer}:{reason}".lstrip()) > MAX_FACT:
                facts.append(f"{said} {word}:{reason}".lstrip() if word else said)
                said, longer = "", each
            word = longer
        said = f"{said} {word}:{reason}".lstrip()
    return [*facts, said] if said else facts


def _numbers(part: str, most: int) -> range:
    first, dash, last = part.partition("-")
    if not is_number(first) or (dash and not is_number(last)):
        return range(0)
    start = int(first)
    return range(start, min(int(last) + 1 if dash else start + 1, start + most))
