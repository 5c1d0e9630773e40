"""Every refused item is named within the facts of one error, however many they are."""

from __future__ import annotations

import pytest

from ddib_fed.errors import ImageUnreadable
from ddib_fed.protocol.details import MAX_TEXT, from_detail, to_detail
from ddib_fed.protocol.job_messages import MOST_ITEMS, refused_count, refused_facts, refused_items


def crossed(refused: dict[int, str]) -> dict[str, str]:
    """The facts as they come out at the client, with those of an error beside them."""
    error = ImageUnreadable(facts={"item": min(refused), "model": "north.example/relief"})
    error.facts |= refused_facts(refused)
    found = from_detail(to_detail(error, "north.example", "").SerializeToString(), "source north.example")
    assert found is not None
    return found.facts


@pytest.mark.parametrize(
    "refused",
    [
        {3: "NOT_FINITE"},
        {3: "NOT_FINITE", 17: "PICTURE_MISFIT"},
        dict.fromkeys(range(1_000), "IMAGE_UNREADABLE"),
        {n: "IMAGE_UNREADABLE" if n % 3 else "PICTURE_MISFIT" for n in range(300)},
        {n: f"REASON_{n % 7}" for n in range(0, 900, 5)},
    ],
    ids=["one", "two", "all of a thousand", "in turns", "seven reasons"],
)
def test_all_are_named_in_one_answer(refused: dict[int, str]) -> None:
    """With their reasons, however many they are."""
    facts = crossed(refused)
    assert refused_items(facts) == refused
    assert refused_count(facts) == len(refused)
    assert all(len(text) <= MAX_TEXT for text in facts.values())


def test_what_has_no_room_is_counted() -> None:
    """Every second of ten thousand: the first ones are named."""
    refused = dict.fromkeys(range(0, 10_000, 2), "IMAGE_UNREADABLE")
    facts = crossed(refused)
    found = refused_items(facts)
    assert 300 < len(found) < len(refused)
    assert found == dict.fromkeys(sorted(refused)[: len(found)], "IMAGE_UNREADABLE")
    assert refused_count(facts) == len(refused)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("Z:x,-1,5-,-5,9-5,1-2-3,99999999999,,:,²", {}),
        ("4", {}),
        ("B:6-7,9", {6: "B", 7: "B", 9: "B"}),
    ],
)
def test_words_that_are_none_are_passed_over(text: str, expected: dict[int, str]) -> None:
    """Of a node that is not ours."""
    assert refused_items({"refused_0": text}) == expected


def test_a_range_without_end_takes_no_memory() -> None:
    """No job has so many items."""
    assert len(refused_items({"refused_0": "A:0-999999999", "refused_1": "B:5-999999999"})) <= MOST_ITEMS
    assert refused_count({"refused_count": "-4"}) == 0
