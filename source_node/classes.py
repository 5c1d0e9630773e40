"""Turns the name or index of a class that a client asks for into the index that a model is told."""

from __future__ import annotations

from ddib_fed.errors import SettingsInvalid
from ddib_fed.wire.contract import MAX_CLASS_NAME, ContractSide

MAX_LISTED = 200


def class_index(side: ContractSide, asked: str) -> int | None:
    """The index of a class of one side; None when none was asked for.

    Args:
        side: Whose model has the classes.
        asked: A name, a decimal index, or nothing.

    Raises:
        SettingsInvalid: The side has no such class.
    """
    if not asked:
        return None
    index = side.class_index(asked)
    if index is None:
        names = ", ".join(side.class_names)
        facts: dict[str, str | int] = {
            "class": asked[:MAX_CLASS_NAME],
            "of": f"{side.institution}/{side.domain}",
            "classes": names[:MAX_LISTED] if names else side.classes,
        }
        raise SettingsInvalid(f"{side.institution}/{side.domain} has no class {asked!r}", facts=facts)
    return index
