"""The `Party` protocol: one domain's model, here or at another institution, encodes samples and decodes latents.

An *item* is one set of points or one picture. Streams take items as they need them and give outcomes in their order: an
error of one item is a `Failed`; any other (settings, a cancelled job, a peer that is gone) is raised, and ends them.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.diffusion.plans import DEFAULT_SETTINGS, SolverSettings
from ddib_fed.errors import Cancelled, DdibError, DeadlineExceeded, SettingsInvalid
from ddib_fed.latent import Latent
from ddib_fed.models.units import ChannelMap
from ddib_fed.record import UNGUIDED, Guidance


class Control:
    """Says to whoever works on something whether to go on; shared between threads."""

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._error: DdibError | None = None
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def cancel(self, error: DdibError | None = None) -> None:
        """Stop at the next step; the first reason given stays."""
        with self._lock:
            if self.cancelled:
                return
            self._error = error or Cancelled()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @contextmanager
    def interrupting(self, callback: Callable[[], object]) -> Iterator[None]:
        """Inside, cancelling calls `callback`, on the thread that cancels: for threads that wait and cannot `check`."""
        with self._lock:
            late = self.cancelled
            if not late:
                self._callbacks.append(callback)
        if late:
            callback()
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

    @property
    def cancelled(self) -> bool:
        return self._error is not None

    @property
    def error(self) -> DdibError | None:
        """Why the work is over; None while it may go on."""
        if self._error is None and self.deadline is not None and time.monotonic() > self.deadline:
            return DeadlineExceeded()
        return self._error

    @property
    def over(self) -> bool:
        return self.error is not None

    def remaining_s(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise Cancelled or DeadlineExceeded when the work is over."""
        if (error := self.error) is not None:
            raise error


Array = NDArray[np.float32]
Labels = int | Sequence[int] | None  # one class for all samples of an item, one for each, or none
Noise = Callable[[Array, tuple[int, ...]], Array]
"""From an item's samples (N, *sample_shape), and the shape (N, *latent_shape), to the noise that softens them."""
RowDraw = Callable[[int, slice], Array]
"""From a step's number and some rows of an item to their standard normal noise, for decoding that draws some."""
Stage = Literal["encode", "decode"]
OnStep = Callable[[int, Stage, int, int], None]
"""Called after each network evaluation with (item, stage, evaluations done, evaluations); must be quick."""


@dataclass(frozen=True, slots=True)
class Leg:
    """What is asked of a party for all items of a stream; raises SettingsInvalid for a map that is no rotation."""

    # The same both ways; the share is of samples that are encoded, and of latents that come back.
    settings: SolverSettings = DEFAULT_SETTINGS
    guidance: Guidance = UNGUIDED  # of decoding
    soften: float | None = None  # noise level to which items are diffused before; None for the model's own
    round_trip: bool = False  # whether what was decoded is encoded again, and never softened
    control: Control | None = None
    on_step: OnStep | None = None
    calibration: ChannelMap | None = None  # a rotation, in whose basis latents leave and come
    returning: bool = False  # whether latents are of samples that the other party encoded again
    flow: str = ""  # the job or request, for fairness; empty: each item is a flow of its own
    weight: float = 1.0  # of the owner: one of weight 2 gets twice the time of one of weight 1
    # About, where the other party decodes first latents while later ones are encoded: then in smaller calls.
    stream_rows: int = 0
    least_evaluations: int = 0  # of a latent that may be given out, but for flow maps
    owner: str = ""  # the peer or client, with one share, however many flows; empty: the flow has its own

    def __post_init__(self) -> None:
        if self.calibration is not None and self.calibration.rotation is None:
            raise SettingsInvalid(
                "only a rotation of the channels is applied while encoding and decoding",
                hint="ddib model train --init OWN --calibration FILE makes a model that works with any other map",
                facts={"field": "calibration"},
            )


@dataclass(frozen=True, slots=True, eq=False)
class ToEncode:
    """Samples (N, *sample_shape) float32 in the units of the data, pictures and volumes in [-1, 1], with their classes.

    `number` is the caller's, unique in a stream; `noise` is needed where the samples are softened.
    """

    number: int
    samples: Array
    label: Labels = None
    noise: Noise | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ToDecode:
    """A latent (N, *latent_shape), and the classes to decode it to.

    `draw` is needed where the settings draw noise. `statistics` are those of the gate of whoever encoded; a latent
    without them leaves for no other institution.
    """

    number: int
    latent: Latent
    label: Labels = None
    draw: RowDraw | None = None
    statistics: LatentStatistics | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A latent (N, *latent_shape) that passed the gate, with what the gate measured.

    `seconds` are of the integration; what is integrated at the same time shares the time, so that items add up.
    """

    number: int
    latent: Latent
    statistics: LatentStatistics
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What a latent was decoded to."""

    number: int
    samples: Array  # in the units of the data; pictures of a local party may lie beyond [-1, 1]
    normalised: Array | None  # the same in the units of the ODE; None from a remote party
    seconds: float
    again: Encoded | None = None  # of a round trip
    wire_bytes: int = 0  # of latents and files that crossed for the item, both ways


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """An item that was refused, and why."""

    number: int
    error: DdibError

    def __post_init__(self) -> None:
        self.error.kept()


class Party(Protocol):
    """One domain's model, wherever it is: of this process (`Model.party`) or of another institution."""

    def encode_each(self, items: Iterable[ToEncode], leg: Leg) -> Iterator[Encoded | Failed]:
        """Encode items, taken as they are needed, in their order.

        SettingsInvalid is raised if the leg cannot be computed; Cancelled, DeadlineExceeded as its control says.
        """

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        """Decode latents (N, *latent shape) to samples, in their order; arguments and errors as in `encode_each`."""


@dataclass(frozen=True, slots=True, eq=False)
class ToTranslate:
    """One picture or one set of points, with its classes on both sides, its softening and the noise of each leg."""

    number: int
    samples: Array
    source_class: Labels = None
    target_class: Labels = None
    noise: Noise | None = None
    forward: RowDraw | None = None
    backward: RowDraw | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TranslatedItem:
    """What each leg made of an item; `back` of a cycle."""

    item: ToTranslate
    encoded: Encoded | None  # of the map alone nothing is encoded
    decoded: Decoded
    back: Decoded | None = None


_Outcome = TypeVar("_Outcome", Encoded, Decoded)


def mapped(
    items: Iterable[ToTranslate], alone: Callable[[Array], Array]
) -> Generator[TranslatedItem | Failed, None, None]:
    """Yield what the map of a calibration alone makes of each item: there is no latent, and nothing crosses."""
    for item in items:
        yield TranslatedItem(item, None, Decoded(item.number, alone(item.samples), None, 0.0))


def translate(
    source: Party, target: Party, items: Iterable[ToTranslate], leg: Leg
) -> Generator[TranslatedItem | Failed, None, None]:
    """Yield the translation of each item (and its way back), or why it failed; close the generator to end it early."""
    known: dict[int, ToTranslate] = {}
    encoded: dict[int, Encoded] = {}
    decoded: dict[int, Decoded] = {}
    failed: list[Failed] = []

    def passed(
        outcomes: Iterable[_Outcome | Failed], kept: dict[int, _Outcome]
    ) -> Generator[_Outcome, None, None]:
        try:
            for outcome in outcomes:
                if isinstance(outcome, Failed):
                    failed.append(outcome)
                    for each in (known, encoded, decoded):
                        each.pop(outcome.number, None)
                else:
                    kept[outcome.number] = outcome
                    yield outcome
        finally:  # now, and not when it is collected: what a call exchanged is recorded at its end
            if isinstance(outcomes, Generator):
                outcomes.close()

    def samples() -> Iterator[ToEncode]:
        for item in items:
            known[item.number] = item
            yield ToEncode(item.number, item.samples, item.source_class, item.noise)

    def latents() -> Iterator[ToDecode]:
        for outcome in passed(source.encode_each(samples(), leg), encoded):
            item = known[outcome.number]
            yield ToDecode(item.number, outcome.latent, item.target_class, item.forward, outcome.statistics)

    def returning() -> Iterator[ToDecode]:
        with closing(forward):
            for outcome in forward:
                assert outcome.again is not None  # the leg asks for it
                item = known[outcome.number]
                yield ToDecode(item.number, outcome.again.latent, item.source_class, item.backward)

    forward = passed(target.decode_each(latents(), replace(leg, calibration=None)), decoded)
    ends = forward
    if leg.round_trip:
        back = replace(leg, round_trip=False, returning=True)
        ends = passed(source.decode_each(returning(), back), {})
    with closing(ends):
        for end in ends:
            number = end.number
            whole = encoded.pop(number), decoded.pop(number), end if leg.round_trip else None
            yield TranslatedItem(known.pop(number), *whole)
            while failed:
                yield failed.pop(0)
    yield from failed
