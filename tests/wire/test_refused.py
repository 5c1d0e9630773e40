"""Every refused item is named within the facts of one error, in a form that earlier releases can read in part."""

from __future__ import annotations

import pytest

from ddib_fed.errors import ImageUnreadable
from ddib_fed.rpc.details import from_detail, to_detail
from ddib_fed.wire.refused import MAX_FACT, MOST_ITEMS, refused_count, refused_facts, refused_items


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
    assert all(len(text) <= MAX_FACT for text in facts.values())


def test_what_has_no_room_is_counted() -> None:
    """Every second of ten thousand: the first ones are named."""
    refused = dict.fromkeys(range(0, 10_000, 2), "IMAGE_UNREADABLE")
    facts = crossed(refused)
    found = refused_items(facts)
    assert 300 < len(found) < len(refused)
    assert found == dict.fromkeys(sorted(refused)[: len(found)], "IMAGE_UNREADABLE")
    assert refused_count(facts) == len(refused)


def test_an_earlier_release_reads_the_first_ones() -> None:
    """Its form is one number a word, in one fact."""
    refused = dict.fromkeys(range(100), "IMAGE_UNREADABLE")
    words = crossed(refused)["refused"].split()
    assert words == [f"{n}:IMAGE_UNREADABLE" for n in range(len(words))]
    assert len(words) >= 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("x:Y -1:Z 5-:Z -5:Z 9-5:Z 1-2-3:Z 99999999999:Z , : ²:Z", {}),
        ("4:A 6-7,9:B", {4: "A", 6: "B", 7: "B", 9: "B"}),
    ],
)
def test_words_that_are_none_are_passed_over(text: str, expected: dict[int, str]) -> None:
    """Of a node that is not ours."""
    assert refused_items({"refused": text}) == expected


def test_a_range_without_end_takes_no_memory() -> None:
    """No job has so many items."""
    assert len(refused_items({"refused": "0-999999999:A", "refused_1": "5-999999999:B"})) <= MOST_ITEMS
    assert refused_count({"refused_count": "-4"}) == 0
