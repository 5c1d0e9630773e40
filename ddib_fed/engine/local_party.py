"""A party whose model is in this process or in workers of it: it checks and prepares items, and judges what comes out.

The way of an item: checked and prepared, a `Trajectory`, submitted, a future, the latent gate, an outcome. With an
executor that works beside its caller each item is a trajectory, and enough of them are in flight to fill it; on the
calling thread items are integrated together.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.denoiser import on_device, to_host
from ddib_fed.engine.budget import Recipe
from ddib_fed.engine.executors import CallingThread, Executor, Pool
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
from ddib_fed.engine.party import (
    Array,
    Control,
    Decoded,
    Description,
    Encoded,
    Failed,
    Labels,
    Leg,
    RowDraw,
    Stage,
    ToDecode,
    ToEncode,
)
from ddib_fed.engine.stack import Trajectory
from ddib_fed.engine.streams import Begun, done, flowing, submit_ranges, then
from ddib_fed.errors import InputError, LatentNotGaussian, SettingsInvalid
from ddib_fed.guidance import UNGUIDED
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
_Found = TypeVar("_Found", Encoded, Decoded)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One item's rows, in the model's units and the leg's basis, on its device; as given too, to be encoded."""

    number: int
    x: Tensor
    label: Labels
    draw: RowDraw | None = None
    given: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Integrated:
    """What became of the rows of some parts, one under the other."""

    x: Tensor
    seconds: float
    evaluations: int = 0

    def split(self, parts: Sequence[Part]) -> tuple[Tensor, ...]:
        return torch.split(self.x, [len(part.x) for part in parts]) if parts else ()


@dataclass(slots=True, eq=False)
class Work:
    """Items that are integrated together: those that are fit for it, and what is wrong with the others."""

    numbers: Sequence[int]
    parts: list[Part] = field(default_factory=list)
    failed: dict[int, Failed] = field(default_factory=dict)

    @contextmanager
    def refusing(self, number: int) -> Iterator[None]:
        try:
            yield
        except ITEM_ERRORS as error:
            self.failed[number] = Failed(number, error)

    def outcomes(self, found: dict[int, _Found]) -> list[_Found | Failed]:
        return [found[number] if number in found else self.failed[number] for number in self.numbers]


def draw_of(parts: Sequence[Part]) -> RowDraw:
    """The noise of a step for rows of all parts, one under the other."""

    def draw(step: int, rows: slice) -> Array:
        drawn, start = [], 0
        for part in parts:
            stop = start + len(part.x)
            within = slice(max(rows.start, start) - start, min(rows.stop, stop) - start)
            if within.start < within.stop and part.draw is not None:
                drawn.append(part.draw(step, within))
            start = stop
        return np.concatenate(drawn)

    return draw


class LocalParty:
    def __init__(self, model: DomainModel, executor: Executor) -> None:
        self.model = model
        self.executor = executor
        self._lock = threading.Lock()
        self._ended = 0.0
        """When an integration last came to its end."""

    def describe(self) -> Description:
        manifest = self.model.manifest
        return Description(
            "",
            manifest.name,
            manifest.domain,
            manifest.sample_kind,
            self.model.sample_shape,
            self.model.bundle.digest,
            manifest.soften_sigma,
            manifest.num_classes or 0,
        )

    def close(self) -> None:
        self.executor.close()

    @property
    def window(self) -> int:
        return 2 * self.executor.rows * self.executor.width

    def encode(self, item: ToEncode, leg: Leg) -> Encoded:
        return only(_finished(self._begin_encoding([item], leg))[0])

    def decode(self, item: ToDecode, leg: Leg) -> Decoded:
        return only(_finished(self._begin_decoding([item], leg))[0])

    def encode_each(
        self,
        items: Iterable[ToEncode],
        leg: Leg,
        *,
        known: Callable[[ToEncode], Encoded | None] | None = None,
    ) -> Iterator[Encoded | Failed]:
        def begin(group: Sequence[ToEncode], leg: Leg) -> Begun[Encoded | Failed]:
            before = None if known is None else known(group[0])
            if before is None:
                return self._begin_encoding(group, leg)
            found = [before]
            return Begun(done(None), lambda: [*found])

        return self._each(items, leg, begin)

    def decode_each(
        self, latents: Iterable[ToDecode], leg: Leg, *, end: Callable[[], object] = lambda: None
    ) -> Generator[Decoded | Failed, None, None]:
        return self._each(latents, leg, self._begin_decoding, end)

    def _each(
        self,
        items: Iterable[_Item],
        leg: Leg,
        begin: Callable[[Sequence[_Item], Leg], Begun[_Outcome]],
        end: Callable[[], object] = lambda: None,
    ) -> Generator[_Outcome, None, None]:
        if self.executor.beside:
            yield from flowing(
                items,
                lambda item, control: begin([item], replace(leg, control=control)),
                rows=_rows_of,
                most=self.window,
                control=leg.control,
                end=end,
            )
            return
        for group in self._groups(items):
            yield from _finished(begin(group, leg))

    def _groups(self, items: Iterable[_Item]) -> Iterator[list[_Item]]:
        """Items that are integrated together, taken from the stream no earlier than they are needed."""
        group: list[_Item] = []
        rows = 0
        for item in items:
            group.append(item)
            rows += _rows_of(item)
            if rows >= self.executor.rows:
                yield group
                group, rows = [], 0
        if group:
            yield group

    # From data to noise

    def _begin_encoding(self, items: Sequence[ToEncode], leg: Leg) -> Begun[Encoded | Failed]:
        model, sigma = self.model, self.model.sigma(leg.soften)
        check_calibration(model, leg.calibration)
        work = Work([item.number for item in items])
        for item in items:
            with work.refusing(item.number):
                work.parts.append(self._to_encode(item, leg, sigma))
        future = self._integrate(work.parts, "encode", leg, leg.settings.encoder, sigma)
        return Begun(future, lambda: work.outcomes(self._encoded(work, future.result(), leg, sigma)))

    def _to_encode(self, item: ToEncode, leg: Leg, sigma: float) -> Part:
        """The checked samples, in the model's units and the leg's basis, softened."""
        model = self.model
        check_given(model, item.samples)
        normalised = model.normalise(item.samples)
        check_samples(model, normalised)  # what is finite may overflow in the model's units
        check_encoding(model, leg.settings, item.label, leg.guidance, leg.soften)
        noise = item.noise(normalised) if sigma and item.noise is not None else None
        # Softened before it is rotated: a picture's calibrated latent is its plain one, rotated.
        x = model.softened(model.tensor(normalised), sigma, noise)
        return Part(item.number, model.into_basis(x, leg.calibration), item.label, given=item.samples)

    def _made(self, part: Part, leg: Leg, sigma: float, evaluations: int) -> Made:
        """What is known of a latent that was made of a part; it can be encoded again on the calling thread."""

        def again(rows: list[int]) -> Tensor:
            labels = self.model.class_rows(part.label, len(part.x))
            chosen = None if labels is None else labels[rows]
            settings, encoder = leg.settings.of_the_ode(), leg.settings.encoder
            work = Trajectory(
                "encode", part.x[rows], settings, sigma, UNGUIDED, leg.calibration, encoder, chosen
            ).on(self.model)
            control = leg.control or Control()
            return to_host(integrate(work.solver, work.denoiser, on_step=lambda *_: control.check()))()

        return Made(evaluations, to_host(part.x)(), again, self._allowances(leg, sigma), part.given)

    def _allowances(self, leg: Leg, sigma: float) -> Allowances | None:
        own = self.model.bundle.allowances
        if own is None or leg.settings.encoder != "ode" or self.model.bundle.tile is not None:
            return None
        return own if math.isclose(own.soften_sigma, sigma) else None

    def _encoded(
        self, work: Work, found: Integrated, leg: Leg, sigma: float | None = None
    ) -> dict[int, Encoded]:
        """The latents that pass the gate; the others' errors are the work's. None for sigma: of what was decoded."""
        encoded = {}
        for part, exact in zip(work.parts, found.split(work.parts), strict=True):
            with work.refusing(part.number):
                # Judged on the host: on the device a judgement would wait for what is computed there for others.
                latent = to_host(exact)()
                count = found.evaluations
                how = Made(count) if sigma is None else self._made(part, leg, sigma, count)
                statistics = pass_latent(latent, leg, how)
                array = latent.numpy()
                check_samples(self.model, array)
                made = Latent.from_array(array)
                encoded[part.number] = Encoded(part.number, made, statistics, found.seconds)
        return encoded

    # From noise to data

    def _begin_decoding(self, items: Sequence[ToDecode], leg: Leg) -> Begun[Decoded | Failed]:
        check_calibration(self.model, leg.calibration)
        work = Work([item.number for item in items])
        for item in items:
            with work.refusing(item.number):
                work.parts.append(self._to_decode(item, leg))
        encoder = leg.settings.encoder if leg.returning else "ode"
        first = self._integrate(work.parts, "decode", leg, encoder)
        if not leg.round_trip:
            return Begun(first, lambda: work.outcomes(self._decoded(work, first.result(), leg)))
        returned = Work(work.numbers, failed=work.failed)

        def encode_again(found: Integrated) -> Future[Integrated]:
            for part, x in zip(work.parts, found.split(work.parts), strict=True):
                if bool(torch.isfinite(x).all()):  # what is not is refused when the samples are looked at
                    returned.parts.append(replace(part, x=x, draw=None))
            return self._integrate(returned.parts, "encode", leg, "ode")

        second = then(first, encode_again)

        def finish() -> list[Decoded | Failed]:
            """What was decoded with its latent, where that passes the gate."""
            again = second.result()
            decoded = self._decoded(work, first.result(), leg)
            found = {
                number: replace(decoded[number], again=latent)
                for number, latent in self._encoded(returned, again, leg).items()
                if number in decoded
            }
            return work.outcomes(found)

        return Begun(second, finish)

    def _to_decode(self, item: ToDecode, leg: Leg) -> Part:
        model = self.model
        check_samples(model, item.latent.data)
        check_decoding(model, leg.settings, item.label, leg.guidance)
        host = torch.from_numpy(item.latent.data.copy())
        pass_latent(host, leg)  # before it is on the device, where a judgement would wait for others' work
        z = on_device(host, model.device)
        if leg.settings.stochastic and item.draw is None:
            model.plan(leg.settings).decoder(z)  # says that there is no noise
        return Part(item.number, z, item.label, item.draw)

    def _decoded(self, work: Work, found: Integrated, leg: Leg) -> dict[int, Decoded]:
        """The samples that are finite; the others' errors are the work's."""
        decoded = {}
        for part, x in zip(work.parts, found.split(work.parts), strict=True):
            with work.refusing(part.number):
                normalised = to_host(self.model.out_of_basis(x, leg.calibration))().numpy()
                check_samples(self.model, normalised)
                samples = self.model.denormalise(normalised)
                decoded[part.number] = Decoded(part.number, samples, normalised, found.seconds)
        return decoded

    # Either way

    def _integrate(
        self,
        parts: Sequence[Part],
        stage: Stage,
        leg: Leg,
        encoder: str,
        sigma: float = 0.0,
    ) -> Future[Integrated]:
        """Submit all parts as one trajectory; the future gives what becomes of their rows."""
        if not parts:
            return done(Integrated(torch.empty(0), 0.0))
        encoding = stage == "encode"
        guidance = leg.guidance if leg.guidance.encoding or not encoding else UNGUIDED
        settings = leg.settings.of_the_ode() if encoding else leg.settings
        classes = [self.model.class_rows(part.label, len(part.x), guidance) for part in parts]
        labels = [each for each in classes if each is not None]
        trajectory = Trajectory(
            stage,
            parts[0].x if len(parts) == 1 else torch.cat([part.x for part in parts]),
            settings,
            sigma,
            guidance,
            leg.calibration,
            encoder,
            np.concatenate(labels) if labels else None,
            draw_of(parts) if settings.stochastic else None,
            leg.flow,
            leg.weight,
            leg.stream_rows if encoding else 0,
            leg.owner,
        )
        on_step, number = leg.on_step, parts[0].number
        tell = None if on_step is None else lambda done, of: on_step(number, stage, done, of)
        started = time.perf_counter()
        future = submit_ranges(self.executor, trajectory, control=leg.control, on_step=tell)

        def ended(x: Tensor) -> Future[Integrated]:
            with self._lock:  # none of the seconds that another was given, so that they add up
                now, last = time.perf_counter(), self._ended
                self._ended = now
            return done(Integrated(x, (now - max(started, last)) / len(parts), future.evaluations))

        return then(future, ended)


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
    return LocalParty(model, CallingThread(model, together or usual, threads))


def _finished(begun: Begun[_Outcome]) -> list[_Outcome]:
    begun.future.exception()  # waits; `finish` raises it
    return begun.finish()


def only(outcome: _Found | Failed) -> _Found:
    """The outcome of an item that must not fail."""
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome


def _rows_of(item: ToEncode | ToDecode) -> int:
    return len(item.samples if isinstance(item, ToEncode) else item.latent.data)


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
        made = Recipe(bundle, classifier, **recipe).warm()
        self.threads = made.threads
        super().__init__(made.model, made.batcher)

    @property
    def place(self) -> str:
        return str(self.model.device) if self.pool is None else self.pool.describe()

    @property
    def problem(self) -> str | None:
        return None if self.pool is None else self.pool.problem

    def resize(self, workers: int) -> None:
        if self.pool is None:
            raise SettingsInvalid(
                "the engine of this node runs in the node itself, and has no workers",
                hint='executor = "processes" or "ray" in [engine] of node.toml, and a restart',
            )
        self.pool.resize(workers)

    @property
    def counters(self) -> Mapping[str, int]:
        return self.executor.counters
