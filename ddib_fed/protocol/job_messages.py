"""Which items of a job a node refuses, and why: as facts of the one error that it answers with, and back.

Facts `refused_0` to `refused_9` are each one reason and items, as numbers and ranges: `IMAGE_UNREADABLE:3,20-299`.
`refused_count` is how many items there are, whether or not there was room for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Final

from ddib_fed.engine.record import PictureFigures, Translation
from ddib_fed.protocol.details import MAX_TEXT
from ddib_fed.protocol.messages import from_message, to_message
from ddib_fed.v1 import common_pb2, translation_pb2

_LOCAL = ("format", "input", "files", "doubtful", "doubts", "asked_sha256")
"""What the client adds to the record."""
_TERMS = ("low", "high", "bits")


def provenance_message(record: Translation) -> translation_pb2.Provenance:
    """The record of a finished translation, for the client."""
    return to_message(
        record,
        translation_pb2.Provenance,
        local=_LOCAL,
        picture=_picture_message(record),
        classifier_sha256=bytes.fromhex(record.classifier_sha256) or None,
        calibration_sha256=bytes.fromhex(record.calibration_sha256) or None,
        policy_sha256=bytes.fromhex(record.policy_sha256) or None,
    )


def _picture_message(record: Translation) -> translation_pb2.PictureFigures | None:
    picture = record.picture
    if picture is None:
        return None
    terms = common_pb2.PictureTerms(low=picture.low, high=picture.high, bits=picture.bits)
    return to_message(picture, translation_pb2.PictureFigures, local=_TERMS, terms=terms)


def provenance_record(pb: translation_pb2.Provenance) -> Translation:
    """The record that a source node sent; its fields were checked when the message arrived."""
    return from_message(
        pb,
        Translation,
        local=_LOCAL,
        picture=_picture(pb.picture) if pb.HasField("picture") else None,
        # A map has another order in each process; a record that is written again must be the same bytes.
        seconds=dict(sorted(pb.seconds.items())),
    )


def _picture(pb: translation_pb2.PictureFigures) -> PictureFigures:
    terms = {name: getattr(pb.terms, name) for name in _TERMS}
    return from_message(pb, PictureFigures, **terms)


FACT: Final = "refused"
COUNT: Final = "refused_count"
MOST_FACTS: Final = 10
"""An error has at most `error_details.MAX_FACTS`, and others of its own."""
MOST_ITEMS: Final = 100_000
"""Of a job, whatever its node allows; no more are read."""


def refused_facts(refused: Mapping[int, str]) -> dict[str, str]:
    """Facts that name the items; `refused` has the reason of each, by its number."""
    texts: list[str] = []
    for reason in sorted(set(refused.values())):
        text = ""
        for part in _ranges(number for number in sorted(refused) if refused[number] == reason):
            if text and len(text) + len(part) < MAX_TEXT:
                text += f",{part}"
            else:
                texts += [text] if text else []
                text = f"{reason}:{part}"
        texts.append(text)
    facts = {f"{FACT}_{place}": text for place, text in enumerate(texts[:MOST_FACTS])}
    return facts | {COUNT: str(len(refused))}


def refused_items(facts: Mapping[str, str]) -> dict[int, str]:
    """Number and reason of each item that the facts of a node's error name; what is no number is passed over."""
    found: dict[int, str] = {}
    for place in range(MOST_FACTS):
        reason, _, numbers = facts.get(f"{FACT}_{place}", "").partition(":")
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


def _ranges(numbers: Iterable[int]) -> Iterator[str]:
    """Ascending numbers as `3` and `5-9`."""
    for _, run in groupby(enumerate(numbers), lambda each: each[1] - each[0]):
        first, *rest = (number for _, number in run)
        yield f"{first}-{rest[-1]}" if rest else str(first)


def _numbers(part: str, most: int) -> range:
    first, dash, last = part.partition("-")
    if not is_number(first) or (dash and not is_number(last)):
        return range(0)
    start = int(first)
    return range(start, min(int(last) + 1 if dash else start + 1, start + most))
