"""A party whose model is in this process or in workers of it: it checks and prepares items, and judges what comes out.

The way of an item: checked and prepared, a `Trajectory`, submitted, a future, the latent gate, an outcome. With an
executor that works beside its caller enough items are in flight to fill it; on the calling thread as many items as one
call takes are integrated together.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import on_device
from ddib_fed.diffusion.solvers import OnStep, integrate
from ddib_fed.engine.batcher import Batcher, Executor
from ddib_fed.engine.budget import Recipe
from ddib_fed.engine.executors import Pool
from ddib_fed.engine.gate import Made, pass_latent
from ddib_fed.engine.model import (
    DTYPES,
    DomainModel,
    check_calibration,
    check_decoding,
    check_encoding,
    check_given,
    check_samples,
)
from ddib_fed.engine.party import Control, Decoded, Encoded, Failed, Leg, ToDecode, ToEncode
from ddib_fed.engine.stack import End, Trajectory
from ddib_fed.errors import InputError, LatentNotGaussian, SettingsInvalid
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import Bundle, device_problem
from ddib_fed.models.sidecars import Allowances

PICTURES_TOGETHER = 16
POINTS_TOGETHER = 5_000
"""Enough to keep a core busy, few enough to report progress often."""
ITEM_ERRORS = (InputError, LatentNotGaussian)
"""What is wrong with one item and no other."""

_Item = TypeVar("_Item", ToEncode, ToDecode)
_Outcome = TypeVar("_Outcome")
_Given = TypeVar("_Given")
_First = TypeVar("_First")
_Second = TypeVar("_Second")
_Found = TypeVar("_Found", Encoded, Decoded)


@dataclass(frozen=True, slots=True, eq=False)
class Begun(Generic[_Outcome]):
    """An item under way; `finish` gives its outcome once the future has its result."""

    future: Future[Any]
    finish: Callable[[], _Outcome]


class Integrated(NamedTuple):
    x: Tensor
    seconds: float
    evaluations: int


class LocalParty:
    def __init__(self, model: DomainModel, executor: Executor) -> None:
        self.model = model
        self.executor = executor
        self._lock = threading.Lock()
        self._ended = 0.0
        """When an integration last came to its end."""

    def close(self) -> None:
        self.executor.close()

    @property
    def window(self) -> int:
        return 2 * self.executor.rows * self.executor.width

    def encode(self, item: ToEncode, leg: Leg) -> Encoded:
        with self.executor.together():
            begun = self._begin_encoding(item, leg)
        return only(begun.finish())

    def decode(self, item: ToDecode, leg: Leg) -> Decoded:
        with self.executor.together():
            begun = self._begin_decoding(item, leg)
        return only(begun.finish())

    def encode_each(
        self,
        items: Iterable[ToEncode],
        leg: Leg,
        *,
        known: Callable[[ToEncode], Encoded | None] | None = None,
    ) -> Iterator[Encoded | Failed]:
        """As of a `Party`; what `known` gives for an item is its outcome."""

        def begin(item: ToEncode, leg: Leg) -> Begun[Encoded | Failed]:
            before = None if known is None else known(item)
            return self._begin_encoding(item, leg) if before is None else _over(before)

        return self._each(items, leg, begin)

    def decode_each(
        self, latents: Iterable[ToDecode], leg: Leg, *, end: Callable[[], object] = lambda: None
    ) -> Generator[Decoded | Failed, None, None]:
        return self._each(latents, leg, self._begin_decoding, end)

    def _each(
        self,
        items: Iterable[_Item],
        leg: Leg,
        begin: Callable[[_Item, Leg], Begun[_Outcome]],
        end: Callable[[], object] = lambda: None,
    ) -> Generator[_Outcome, None, None]:
        if self.executor.beside:
            yield from flowing(
                items,
                lambda item, control: begin(item, replace(leg, control=control)),
                rows=_rows_of,
                most=self.window,
                control=leg.control,
                end=end,
            )
            return
        rest = iter(items)
        while True:
            group: list[Begun[_Outcome]] = []
            rows = 0
            with self.executor.together():
                for item in rest:  # taken from the stream no earlier than needed
                    group.append(begin(item, leg))
                    rows += _rows_of(item)
                    if rows >= self.executor.rows:
                        break
            if not group:
                return
            for begun in group:
                yield begun.finish()

    def _begin_encoding(self, item: ToEncode, leg: Leg) -> Begun[Encoded | Failed]:
        model, sigma = self.model, self.model.sigma(leg.soften)
        check_calibration(model, leg.calibration)
        try:
            check_given(model, item.samples)
            normalised = model.normalise(item.samples)
            check_samples(model, normalised)  # what is finite may overflow in the model's units
            check_encoding(model, leg.settings, item.label, leg.soften)
            noise = item.noise(normalised) if sigma and item.noise is not None else None
            # Softened before it is rotated: a picture's calibrated latent is its plain one, rotated.
            x = model.into_basis(model.softened(model.tensor(normalised), sigma, noise), leg.calibration)
        except ITEM_ERRORS as error:
            return _over(Failed(item.number, error))
        trajectory = Trajectory("encode", x, leg, model.class_rows(item.label, len(x)))
        future = self._integrate(trajectory, item.number, leg)

        def again(rows: list[int]) -> Tensor:
            """Some rows of the latent, made again on the calling thread."""
            labels = trajectory.label
            part = replace(trajectory, x=x[rows], label=None if labels is None else labels[rows])
            work, control = part.on(model), leg.control or Control()
            return integrate(work.solver, work.denoiser, on_step=lambda *_: control.check()).cpu()

        def finish() -> Encoded | Failed:
            found = future.result()
            try:
                allowances = self._allowances(leg, sigma)
                made = Made(found.evaluations, x.cpu(), again, allowances, item.samples)
                return self._encoded(item.number, found, leg, made)
            except ITEM_ERRORS as error:
                return Failed(item.number, error)

        return Begun(future, finish)

    def _allowances(self, leg: Leg, sigma: float) -> Allowances | None:
        own = self.model.bundle.allowances
        if own is None or leg.settings.encoder != "ode" or self.model.bundle.tile is not None:
            return None
        return own if math.isclose(own.soften_sigma, sigma) else None

    def _encoded(self, number: int, found: Integrated, leg: Leg, made: Made) -> Encoded:
        latent = found.x.cpu()  # on the device a judgement would wait for what is computed there for others
        statistics = pass_latent(latent, leg, made)
        check_samples(self.model, latent.numpy())
        return Encoded(number, Latent.from_array(latent.numpy()), statistics, found.seconds)

    def _begin_decoding(self, item: ToDecode, leg: Leg) -> Begun[Decoded | Failed]:
        model, number = self.model, item.number
        check_calibration(model, leg.calibration)
        try:
            check_samples(model, item.latent.data)
            check_decoding(model, leg.settings, item.label, leg.guidance)
            host = torch.from_numpy(item.latent.data.copy())
            pass_latent(
                host, leg
            )  # before it is on the device, where a judgement would wait for others' work
            z = on_device(host, model.device)
            if leg.settings.stochastic and item.draw is None:
                model.plan(leg.settings).decoder(z)  # says that there is no noise
        except ITEM_ERRORS as error:
            return _over(Failed(number, error))
        draw = item.draw if leg.settings.stochastic else None
        classes = model.class_rows(item.label, len(z), leg.guidance)
        first = self._integrate(Trajectory("decode", z, leg, classes, draw), number, leg)
        returned = first

        if leg.round_trip:
            own = replace(leg, soften=0.0, settings=replace(leg.settings, encoder="ode"))
            classes = model.class_rows(item.label, len(z))

            def encode_again(found: Integrated) -> Future[Integrated]:
                if not bool(torch.isfinite(found.x).all()):  # it is refused when the samples are looked at
                    return _done(found)
                return self._integrate(Trajectory("encode", found.x, own, classes), number, leg)

            returned = then(first, encode_again)

        def finish() -> Decoded | Failed:
            found, again = first.result(), returned.result()
            try:
                normalised = model.out_of_basis(found.x, leg.calibration).cpu().numpy()
                check_samples(model, normalised)
                latent = (
                    self._encoded(number, again, leg, Made(again.evaluations)) if leg.round_trip else None
                )
                samples = model.denormalise(normalised)
                return Decoded(number, samples, normalised, found.seconds, latent)
            except ITEM_ERRORS as error:
                return Failed(number, error)

        return Begun(returned, finish)

    def _integrate(self, trajectory: Trajectory, number: int, leg: Leg) -> Future[Integrated]:
        on_step, stage = leg.on_step, trajectory.stage
        tell = None if on_step is None else lambda done, of: on_step(number, stage, done, of)
        started = time.perf_counter()

        def ended(end: End) -> Future[Integrated]:
            with self._lock:  # none of the seconds that another was given, so that they add up
                now, last = time.perf_counter(), self._ended
                self._ended = now
            return _done(Integrated(end.x, now - max(started, last), end.evaluations))

        return then(submit_ranges(self.executor, trajectory, control=leg.control, on_step=tell), ended)


def open_party(
    bundle: Bundle,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    classifier: Bundle | None = None,
    together: int = 0,
    threads: int | None = None,
) -> LocalParty:
    """A party that integrates on the calling thread."""
    if dtype not in DTYPES:
        raise SettingsInvalid(f"there is no dtype {dtype!r}", hint=", ".join(DTYPES))
    if problem := device_problem(device):
        raise SettingsInvalid(
            f"there is no device {device[:40]!r} here: {problem}",
            hint="--device cpu works everywhere",
            facts={"device": device},
        )
    model = DomainModel(bundle, device=device, dtype=DTYPES[dtype], classifier=classifier)
    usual = PICTURES_TOGETHER if model.is_picture else POINTS_TOGETHER
    return LocalParty(model, Batcher(model, rows=together or usual, threads=threads, beside=False))


class ServingParty(LocalParty):
    def __init__(
        self, bundle: Bundle, *, classifier: Bundle | None = None, pool: Pool | None = None, **recipe: Any
    ) -> None:
        """Warm it up here, with the other fields of a `Recipe`; or leave that to a pool's workers."""
        self.pool = pool
        if pool is not None:  # here is only what checks, and turns units into the model's
            self.threads = recipe.get("threads") or 1
            super().__init__(DomainModel(bundle, classifier=classifier), pool)
            return
        batcher = Recipe(bundle, classifier, **recipe).warm()
        self.threads = batcher.threads or 1
        super().__init__(batcher.model, batcher)

    @property
    def place(self) -> str:
        return str(self.model.device) if self.pool is None else self.pool.describe()

    @property
    def problem(self) -> str | None:
        return None if self.pool is None else self.pool.problem

    @property
    def counters(self) -> Mapping[str, int]:
        return self.executor.counters


def only(outcome: _Found | Failed) -> _Found:
    """The outcome of an item that must not fail."""
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome


def _rows_of(item: ToEncode | ToDecode) -> int:
    return len(item.samples if isinstance(item, ToEncode) else item.latent.data)


def _done(result: _First) -> Future[_First]:
    future: Future[_First] = Future()
    future.set_result(result)
    return future


def _over(outcome: _First) -> Begun[_First]:
    return Begun(_done(None), lambda: outcome)


def then(first: Future[_First], following: Callable[[_First], Future[_Second]]) -> Future[_Second]:
    """What `following` makes of the first's result; no thread waits for it. An error of either is the future's."""
    whole: Future[_Second] = Future()

    def hand_over(second: Future[_Second]) -> None:
        if (error := second.exception()) is None:
            whole.set_result(second.result())
        else:
            whole.set_exception(error)

    def go_on(ended: Future[_First]) -> None:
        try:
            following(ended.result()).add_done_callback(hand_over)
        except BaseException as error:  # noqa: BLE001 - only the future can carry it to its caller
            whole.set_exception(error)

    first.add_done_callback(go_on)
    return whole


def submit_ranges(
    executor: Executor, trajectory: Trajectory, *, control: Control | None, on_step: OnStep | None
) -> Future[End]:
    """Submit a trajectory as ranges of rows that a call takes; its evaluations are the fewest of any range."""
    predictions = trajectory.guidance.predictions if executor.beside else 1
    most = max(1, executor.rows // predictions)
    starts = range(0, trajectory.rows, most)
    if len(starts) == 1:
        return executor.submit(trajectory, control=control, on_step=on_step)
    lock, steps, left = threading.Lock(), 0, len(starts)
    whole: Future[End] = Future()

    def count(_: int, of: int) -> None:
        nonlocal steps
        with lock:
            steps += 1
            if on_step is not None:
                on_step(steps, len(starts) * of)

    def one_done(future: Future[End]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        with suppress(InvalidStateError):  # another range's error came first
            try:
                end = future.result()
                if last:
                    ends = [each.result() for each in futures]
                    end = End(torch.cat([each.x for each in ends]), min(each.evaluations for each in ends))
                    whole.set_result(end)
            except Exception as error:  # noqa: BLE001 - of a range, or no memory for the whole: the only answer
                whole.set_exception(error)

    parts = [trajectory.part(start, min(start + most, trajectory.rows)) for start in starts]
    futures = [executor.submit(part, control=control, on_step=count) for part in parts]
    for future in futures:
        future.add_done_callback(one_done)
    return whole


def flowing(
    items: Iterable[_Given],
    begin: Callable[[_Given, Control], Begun[_Outcome]],
    *,
    rows: Callable[[_Given], int],
    most: int,
    control: Control | None,
    end: Callable[[], object] = lambda: None,
) -> Generator[_Outcome, None, None]:
    """The outcomes of items, in their order. A thread takes items and begins them while few enough rows are in flight.

    Args:
        items: Taken, and closed, on the feeding thread.
        begin: Given an item and a control that ends with the reading.
        rows: Of an item.
        most: A further item is begun while fewer rows are in flight.
        control: Ends the reading, also while it waits.
        end: Called when the reading ends: it must end a wait of `items`.
    """
    outer = control or Control()
    outer.check()
    own = Control(outer.deadline)
    feeder = _Feeder(items, lambda item: begin(item, own), rows, most, own)

    def interrupt() -> None:
        own.cancel(outer.error)
        feeder.notify()

    with outer.interrupting(interrupt):
        feeder.thread.start()
        try:
            while (begun := feeder.first()) is not None:
                yield begun.finish()
        finally:
            interrupt()
            end()
            feeder.thread.join()


class _Feeder(Generic[_Given, _Outcome]):
    """Takes items and begins them, on its thread, while few enough rows are in flight."""

    def __init__(
        self,
        items: Iterable[_Given],
        begin: Callable[[_Given], Begun[_Outcome]],
        rows: Callable[[_Given], int],
        most: int,
        control: Control,
    ) -> None:
        self._items, self._begin, self._rows_of = items, begin, rows
        self._most, self._control = most, control
        self._changed = threading.Condition()
        self._begun: deque[tuple[Begun[_Outcome], int]] = deque()
        self._rows = 0
        self._ended = False
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def first(self) -> Begun[_Outcome] | None:
        """The oldest item under way, once it is done; None after the last."""
        with self._changed:
            while not (self._begun or self._ended):
                self._control.check()
                self._changed.wait(self._control.remaining_s())
            if not self._begun:
                self._control.check()
                if self._error is not None:
                    raise self._error
                return None
            begun, rows = self._begun[0]
        begun.future.exception()  # an executor fails what is cancelled or late at its next step: it is always answered
        with self._changed:
            self._begun.popleft()
            self._rows -= rows
            self._changed.notify_all()
        return begun

    def _run(self) -> None:
        items = iter(self._items)
        try:
            while self._has_room():
                item = next(items)
                begun = self._begin(item), self._rows_of(item)
                with self._changed:
                    self._begun.append(begun)
                    self._rows += begun[1]
                    self._changed.notify_all()
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again for the reader
            self._error = error
        try:
            if isinstance(items, Generator):
                items.close()
        except BaseException as error:  # noqa: BLE001 - as above
            self._error = self._error or error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._rows < self._most or self._control.cancelled)
            return not self._control.cancelled
