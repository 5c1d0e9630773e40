"""A party whose model is in this process or in workers of it: it checks and prepares items, and judges what comes out.

With an executor that works beside its caller enough items are in flight to fill it; on the calling thread as many items
as one call takes are integrated together.
"""

import math
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import on_device
from ddib_fed.diffusion.plans import soften
from ddib_fed.diffusion.solvers import OnStep, needed
from ddib_fed.engine.batcher import Batcher, Recipe
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
POINTS_TOGETHER = 5_000  # enough to keep a core busy, few enough to report progress often
ITEM_ERRORS = (InputError, LatentNotGaussian)  # these errors fail one item and no other

_Item = TypeVar("_Item", ToEncode, ToDecode)
_Outcome = TypeVar("_Outcome")
_Given = TypeVar("_Given")
_Found = TypeVar("_Found", Encoded, Decoded)


@dataclass(frozen=True, slots=True, eq=False)
class Begun(Generic[_Outcome]):
    """An item under way; `finish` gives its outcome once the future has its result."""

    future: Future[Any]
    finish: Callable[[], _Outcome]


class LocalParty:
    def __init__(self, model: DomainModel, executor: Batcher | Pool) -> None:
        self.model = model
        self.executor = executor

    def close(self) -> None:
        self.executor.close()

    @property
    def window(self) -> int:
        return 2 * self.executor.rows * self.executor.width

    def encode(self, item: ToEncode, leg: Leg) -> Encoded:
        return only(next(iter(self.encode_each([item], leg))))

    def decode(self, item: ToDecode, leg: Leg) -> Decoded:
        return only(next(self.decode_each([item], leg)))

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
            yield from self._flowing(items, leg, begin, end)
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

    def _flowing(
        self,
        items: Iterable[_Item],
        leg: Leg,
        begin: Callable[[_Item, Leg], Begun[_Outcome]],
        end: Callable[[], object],
    ) -> Generator[_Outcome, None, None]:
        """As `_each`. A thread takes items, begins them while few enough rows are in flight, and closes them.

        `end` is called when the reading ends, by the leg's control or its reader: it must end a wait of `items`.
        """
        outer = leg.control or Control()
        outer.check()
        own = Control(outer.deadline)
        window = _Window(self.window, own)
        # What is under way, with its rows; at last what ended the items, or None. None wakes the reader, too.
        under_way: queue.SimpleQueue[tuple[Begun[_Outcome], int] | BaseException | None] = queue.SimpleQueue()

        def feed() -> None:
            ended: BaseException | None = None
            try:
                each = iter(items)
                try:
                    while not own.cancelled and (item := next(each, None)) is not None:
                        under_way.put((begin(item, replace(leg, control=own)), _rows_of(item)))
                        window.add(_rows_of(item))
                finally:
                    if isinstance(each, Generator):
                        each.close()
            except BaseException as error:  # noqa: BLE001 - raised again for the reader
                ended = error
            under_way.put(ended)

        def interrupt() -> None:
            own.cancel(outer.error)
            under_way.put(None)
            window.add(0)

        feeder = threading.Thread(target=feed, name="feeder", daemon=True)
        with outer.interrupting(interrupt):
            feeder.start()
            try:
                while True:
                    try:
                        answer = under_way.get(timeout=own.remaining_s())
                    except queue.Empty:
                        own.check()
                        continue
                    if not isinstance(answer, tuple):
                        own.check()
                        if answer is not None:
                            raise answer
                        return
                    begun, count = answer
                    begun.future.exception()  # an executor fails what is cancelled or late at its next step
                    window.add(-count)
                    yield begun.finish()
            finally:
                interrupt()
                end()
                feeder.join()

    def _begin_encoding(self, item: ToEncode, leg: Leg) -> Begun[Encoded | Failed]:
        model, sigma = self.model, self.model.sigma(leg.soften)
        check_calibration(model, leg.calibration)
        try:
            check_given(model, item.samples)
            normalised = model.normalise(item.samples)
            check_samples(model, normalised)  # what is finite may overflow in the model's units
            check_encoding(model, leg.settings, item.label, leg.soften)
            shape = len(normalised), *model.latent_shape
            noise = item.noise(item.samples, shape) if sigma and item.noise is not None else None
        except ITEM_ERRORS as error:
            return _over(Failed(item.number, error))
        classes, x = model.class_rows(item.label, len(normalised)), model.tensor(normalised)
        soft = None if noise is None else model.tensor(noise)
        if model.bundle.autoencoder is not None:  # the executor calls it, where the network is
            trajectory = Trajectory("encode", x, leg, classes, pixels=True, noise=soft)
        else:
            # Softened before it is rotated: a picture's calibrated latent is its plain one, rotated.
            x = model.into_basis(soften(x, sigma, soft), leg.calibration)
            trajectory = Trajectory("encode", x, leg, classes)
        future = self._integrate(trajectory, item.number, leg)

        def again(rows: list[int]) -> Tensor:
            """Some rows of the latent, made again on the calling thread."""
            control = leg.control or Control()
            return trajectory.part(rows).on(model).run(control.check).cpu()

        def finish() -> Encoded | Failed:
            outcome = future.result()
            try:
                began = (x if outcome.beside is None else outcome.beside).cpu()
                made = Made(outcome.evaluations, began, again, self._allowances(leg, sigma), item.samples)
                return self._encoded(item.number, outcome, leg, made)
            except ITEM_ERRORS as error:
                return Failed(item.number, error)

        return Begun(future, finish)

    def _allowances(self, leg: Leg, sigma: float) -> Allowances | None:
        own = self.model.bundle.allowances
        if own is None or leg.settings.share < 1.0 or self.model.bundle.tile is not None:
            return None
        return own if math.isclose(own.soften_sigma, sigma) else None

    def _encoded(self, number: int, found: End, leg: Leg, made: Made) -> Encoded:
        latent = found.x.cpu()  # on the device a judgement would wait for what is computed there for others
        statistics = pass_latent(latent, leg, made)
        check_samples(self.model, latent.numpy(), latents=True)
        return Encoded(number, Latent.from_array(latent.numpy()), statistics, found.seconds)

    def _begin_decoding(self, item: ToDecode, leg: Leg) -> Begun[Decoded | Failed]:
        model, number = self.model, item.number
        check_calibration(model, leg.calibration)
        try:
            check_samples(model, item.latent.data, latents=True)
            check_decoding(model, leg.settings, item.label, leg.guidance)
            host = torch.from_numpy(item.latent.data.copy())
            # Judged before it is on the device, where a judgement would wait for others' work.
            pass_latent(host, leg)
            heat = 1.0 if leg.returning else leg.settings.temperature
            z = on_device(host if heat == 1.0 else heat * host, model.device)
            draw = needed(item.draw) if leg.settings.stochastic else None
        except ITEM_ERRORS as error:
            return _over(Failed(number, error))
        classes = model.class_rows(item.label, len(z), leg.guidance)
        first = self._integrate(Trajectory("decode", z, leg, classes, draw, pixels=True), number, leg)
        returned = first

        if leg.round_trip:
            own = replace(leg, soften=0.0, settings=replace(leg.settings, share=1.0))
            classes = model.class_rows(item.label, len(z))

            def encode_again(found: End) -> Future[End]:
                if not bool(torch.isfinite(found.x).all()):  # it is refused when the samples are looked at
                    return _done(found)
                return self._integrate(Trajectory("encode", found.x, own, classes), number, leg)

            returned = then(first, encode_again)

        def finish() -> Decoded | Failed:
            outcome, again = first.result(), returned.result()
            try:
                normalised = model.out_of_basis(outcome.x, leg.calibration).cpu().numpy()
                check_samples(model, normalised, latents=True)
                latent = (
                    self._encoded(number, again._replace(x=again.x / heat), leg, Made(again.evaluations))
                    if leg.round_trip
                    else None
                )
                units = normalised if outcome.beside is None else outcome.beside.cpu().numpy()
                check_samples(model, units)
                samples = model.denormalise(units)
                return Decoded(number, samples, normalised, outcome.seconds, latent)
            except ITEM_ERRORS as error:
                return Failed(number, error)

        return Begun(returned, finish)

    def _integrate(self, trajectory: Trajectory, number: int, leg: Leg) -> Future[End]:
        on_step, stage = leg.on_step, trajectory.stage
        tell = None if on_step is None else lambda done, of: on_step(number, stage, done, of)
        return submit_ranges(self.executor, trajectory, control=leg.control, on_step=tell)


def open_party(
    bundle: Bundle,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    classifier: Bundle | None = None,
    together: int = 0,
    threads: int | None = None,
) -> LocalParty:
    """Open a party that integrates on the calling thread."""
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


def only(outcome: _Found | Failed) -> _Found:
    """Return an outcome; raise its error if the item failed."""
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome


def _rows_of(item: ToEncode | ToDecode) -> int:
    return len(item.samples if isinstance(item, ToEncode) else item.latent.data)


def _done(result: _Given) -> Future[_Given]:
    future: Future[_Given] = Future()
    future.set_result(result)
    return future


def _over(outcome: _Outcome) -> Begun[_Outcome]:
    return Begun(_done(None), lambda: outcome)


def then(first: Future[End], following: Callable[[End], Future[End]]) -> Future[End]:
    """What `following` makes of the first's result; no thread waits for it. An error of either is the future's."""
    whole: Future[End] = Future()

    def go_on(ended: Future[End]) -> None:
        try:
            following(ended.result()).add_done_callback(hand_over)
        except BaseException as error:  # noqa: BLE001 - only the future can carry it to its caller
            whole.set_exception(error)

    def hand_over(second: Future[End]) -> None:
        if (error := second.exception()) is None:
            whole.set_result(second.result())
        else:
            whole.set_exception(error)

    first.add_done_callback(go_on)
    return whole


def submit_ranges(
    executor: Batcher | Pool, trajectory: Trajectory, *, control: Control | None, on_step: OnStep | None
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
                future.result()
                if last:
                    ends = [each.result() for each in futures]
                    evaluations, seconds = min(e.evaluations for e in ends), sum(e.seconds for e in ends)
                    beside = [each.beside for each in ends if each.beside is not None]
                    x, joined = torch.cat([each.x for each in ends]), torch.cat(beside) if beside else None
                    whole.set_result(End(x, evaluations, seconds, joined))
            except Exception as error:  # noqa: BLE001 - of a range, or no memory for the whole: the only answer
                whole.set_exception(error)

    parts = [trajectory.part(slice(start, min(start + most, trajectory.rows))) for start in starts]
    futures = [executor.submit(part, control=control, on_step=count) for part in parts]
    for future in futures:
        future.add_done_callback(one_done)
    return whole


class _Window:
    """The rows in flight. Adding some waits while there are `most` of them, then until a quarter of these is done: who
    prepares rows is woken for several of them. A control that is cancelled ends the wait."""

    def __init__(self, most: int, control: Control) -> None:
        self._most, self._few, self._control = most, most - most // 4 - 1, control
        self._changed = threading.Condition()
        self._rows = 0

    def add(self, rows: int) -> None:
        with self._changed:
            self._rows += rows
            if rows > 0 and self._rows >= self._most:
                self._changed.wait_for(self._has_room)
            elif self._has_room():
                self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._rows <= self._few or self._control.cancelled
