"""A run that is given more steps than it began with, and goes on from where it is.

Its learning rate follows the longer half cosine from the next step on, so it rises again, as in warm restarts
(Loshchilov and Hutter, 2017). The weights then depend on the lengths that it had before and on when each ended: the
settings hold them (`lengthened`), and with them the run's identity.
"""

from __future__ import annotations

from collections.abc import Callable

from ddib_fed.training.loop.trainer import PROBE_MARGIN
from ddib_fed.training.settings.config import AnyConfig, PictureTrainConfig


def lengthened(
    stored: AnyConfig, asked: AnyConfig, done: int, seconds_of_step: Callable[[], float]
) -> PictureTrainConfig | None:
    """The settings of the run with more steps; None if it was not asked for more, or cannot have more.

    Runs on pictures can, but not with differential privacy, whose noise was chosen for their length.

    Args:
        stored: As the run is, settled.
        asked: As it was asked for now: with steps in all, or time in all.
        done: The step of its newest checkpoint.
        seconds_of_step: Measures what a step costs here; asked only if more time was given.
    """
    if not isinstance(stored, PictureTrainConfig) or not isinstance(asked, PictureTrainConfig):
        return None
    if stored.dp_epsilon is not None:
        return None
    total = asked.steps or 0
    if asked.time_s is not None and asked.time_s > (stored.timed_s or 0.0):
        more = int((asked.time_s - (stored.timed_s or 0.0)) * PROBE_MARGIN / seconds_of_step())
        total = more + (stored.total_steps if stored.timed_s is not None else 0)
    if total <= stored.total_steps:
        return None
    before = ((stored.total_steps, done),) if done else ()
    return stored.model_copy(
        update={"steps": total, "timed_s": asked.time_s, "lengthened": stored.lengthened + before}
    )


def identities(config: AnyConfig) -> list[str]:
    """The identity of a run's settings, and those that it had before it was lengthened."""
    found = [config.identity()]
    if isinstance(config, PictureTrainConfig):
        found += [
            config.model_copy(update={"steps": steps, "lengthened": config.lengthened[:number]}).identity()
            for number, (steps, _) in enumerate(config.lengthened)
        ]
    return found
