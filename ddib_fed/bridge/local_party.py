"""A party whose model is in this process, driven inline or by the node's batcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ddib_fed.bridge.batcher import merge_conditions
from ddib_fed.bridge.control import Control
from ddib_fed.bridge.domain_model import DTYPES, DomainModel
from ddib_fed.bridge.gate import pass_latent
from ddib_fed.bridge.party import (
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
from ddib_fed.bridge.sharding import parse_devices
from ddib_fed.bridge.threads import torch_threads
from ddib_fed.diffusion.bridge import OnStep, integrate
from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.solvers import Draw, Solver
from ddib_fed.errors import InputError, LatentNotGaussian, SettingsInvalid
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import Bundle

# What is wrong with one item and no other.
ITEM_ERRORS = (InputError, LatentNotGaussian)
PICTURES_TOGETHER = 16
POINTS_TOGETHER = 5_000
"""Enough to keep a core busy, few enough to report progress often."""

_Item = TypeVar("_Item", ToEncode, ToDecode)
_Outcome = TypeVar("_Outcome", Encoded, Decoded)


class Driver(Protocol):
    """Advances solvers to their ends."""

    together: int
    """How many samples of a stream are integrated as one; 0 for one item at a time, however large."""

    def drive(
        self,
        solver: Solver,
        denoiser: Denoiser,
        *,
        steps: int,
        control: Control | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """What the solver returns, its queries answered by the denoiser; `steps` is how many there will be.

        Raises:
            Cancelled, DeadlineExceeded: As `control` says.
        """

    def close(self) -> None:
        """Take no more work."""


class Inline:
    """Integrates on the calling thread.

    Args:
        together: Samples that are integrated together.
        threads: CPU threads of torch; None leaves them as they are.
    """

    def __init__(self, together: int, threads: int | None = None) -> None:
        self.together = together
        self.threads = threads

    def drive(
        self,
        solver: Solver,
        denoiser: Denoiser,
        *,
        steps: int,
        control: Control | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """See `Driver`."""

        def tell(done: int, of: int) -> None:
            if on_step is not None:
                on_step(done, of)
            if control is not None and done < of:
                control.check()

        if control is not None:
            control.check()
        with torch_threads(self.threads or torch.get_num_threads()):
            return integrate(solver, denoiser, on_step=tell, evaluations=steps)

    def close(self) -> None:
        """See `Driver`; there is nothing to stop."""


class LocalParty:
    """A model and what drives it.

    Args:
        model: The model.
        driver: Advances its solvers.
    """

    def __init__(self, model: DomainModel, driver: Driver) -> None:
        self.model = model
        self.driver = driver

    def describe(self) -> Description:
        """See `Party`."""
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
        """Stop the driver; unfinished work fails with `Draining`."""
        self.driver.close()

    def encode(self, item: ToEncode, leg: Leg) -> Encoded:
        """The latent of one item.

        Raises:
            ShapeMismatch, NotFinite, PictureMisfit: The samples cannot be used.
            SettingsInvalid: The leg or the class cannot, or there is no noise where some is needed.
            LatentNotGaussian: What came out is no noise.
            Cancelled, DeadlineExceeded: As the leg's control says.
        """
        return only(self._encode_together([item], leg)[0])

    def decode(self, item: ToDecode, leg: Leg) -> Decoded:
        """The samples of one latent; errors as in `encode`, and of the latent before anything is computed."""
        return only(self._decode_together([item], leg)[0])

    def encode_each(self, items: Iterable[ToEncode], leg: Leg) -> Iterator[Encoded | Failed]:
        """See `Party`."""
        for group in self._groups(items):
            yield from self._encode_together(group, leg)

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        """See `Party`."""
        for group in self._groups(latents):
            yield from self._decode_together(group, leg)

    def _encode_together(self, items: Sequence[ToEncode], leg: Leg) -> list[Encoded | Failed]:
        model, sigma = self.model, self.model.sigma(leg.soften)
        model.check_calibration(leg.calibration)
        failed: dict[int, Failed] = {}
        ready: list[_Part] = []
        for item in items:
            with _refusing(item.number, failed):
                model.check_given(item.samples)
                normalised = model.normalise(item.samples)
                model.check_samples(normalised)  # what is finite may overflow in the model's units
                model.check_encoding(leg.settings, item.label, leg.guidance, leg.soften)
                noise = item.noise(normalised) if sigma and item.noise is not None else None
                # Softened before it is rotated: a picture's calibrated latent is its plain one, rotated.
                x = model.softened(model.tensor(normalised), sigma, noise)
                ready.append(_Part(item.number, model.into_basis(x, leg.calibration), item.label))
        found = self._to_noise(ready, leg, sigma, failed, encoder=leg.settings.encoder)
        return [found[item.number] if item.number in found else failed[item.number] for item in items]

    def _to_noise(
        self,
        parts: Sequence[_Part],
        leg: Leg,
        sigma: float,
        failed: dict[int, Failed],
        *,
        encoder: str = "ode",
    ) -> dict[int, Encoded]:
        """Encode what is in the model's units and the leg's basis, softened; what the gate refuses goes to `failed`."""
        laid = self.model.plan(leg.settings.of_the_ode(), sigma)
        guidance = leg.guidance if leg.guidance.encoding else UNGUIDED

        def solver(x: Tensor, cond: Condition, draw: Draw) -> Solver:
            del draw
            return laid.encoder(x, cond)

        latents, seconds = self._integrate(
            parts, solver, guidance, laid.evaluations, leg, "encode", encoder=encoder
        )
        found = {}
        for part, latent in zip(parts, latents, strict=True):
            with _refusing(part.number, failed):
                statistics = pass_latent(latent, leg)
                array = latent.cpu().numpy()
                self.model.check_samples(array)
                found[part.number] = Encoded(part.number, Latent.from_array(array), statistics, seconds)
        return found

    def _decode_together(self, items: Sequence[ToDecode], leg: Leg) -> list[Decoded | Failed]:
        model, laid = self.model, self.model.plan(leg.settings)
        model.check_calibration(leg.calibration)
        failed: dict[int, Failed] = {}
        ready: list[_Part] = []
        for item in items:
            with _refusing(item.number, failed):
                model.check_samples(item.latent.data)
                model.check_decoding(leg.settings, item.label, leg.guidance)
                z = model.tensor(item.latent.data)
                pass_latent(z, leg)
                if leg.settings.stochastic and item.draw is None:
                    laid.decoder(z)  # says that there is no noise
                ready.append(_Part(item.number, z, item.label, item.draw))
        encoder = leg.settings.encoder if leg.returning else "ode"
        samples, seconds = self._integrate(
            ready, laid.decoder, leg.guidance, laid.evaluations, leg, "decode", encoder=encoder
        )
        decoded: dict[int, Decoded] = {}
        kept: list[_Part] = []
        for part, x in zip(ready, samples, strict=True):
            with _refusing(part.number, failed):
                normalised = model.out_of_basis(x, leg.calibration).cpu().numpy()
                model.check_samples(normalised)
                decoded[part.number] = Decoded(
                    part.number, model.denormalise(normalised), normalised, seconds
                )
                kept.append(replace(part, x=x))
        if leg.round_trip:
            again = self._to_noise(kept, leg, 0.0, failed)
            decoded = {number: replace(decoded[number], again=latent) for number, latent in again.items()}
        return [decoded[item.number] if item.number in decoded else failed[item.number] for item in items]

    def _integrate(
        self,
        parts: Sequence[_Part],
        solver: Callable[[Tensor, Condition, Draw], Solver],
        guidance: Guidance,
        evaluations: int,
        leg: Leg,
        stage: Stage,
        *,
        encoder: str,
    ) -> tuple[list[Tensor], float]:
        """What becomes of each part, and the seconds that one took; `driver.together` rows at a time."""
        if not parts:
            return [], 0.0
        started = time.perf_counter()
        counts = [len(part.x) for part in parts]
        x = torch.cat([part.x for part in parts])
        cond = merge_conditions([self.model.condition(part.label, len(part.x), guidance) for part in parts])
        denoiser = self.model.denoiser(guidance, leg.calibration, encoder)
        together = self.driver.together or len(x)
        starts = range(0, len(x), together)
        done = []
        for turn, start in enumerate(starts):
            rows = slice(start, min(start + together, len(x)))
            query = solver(x[rows], _rows_of(cond, rows), self._draw(parts, rows))
            tell = _tell(leg, parts[0].number, stage, turn * evaluations, len(starts) * evaluations)
            done.append(
                self.driver.drive(query, denoiser, steps=evaluations, control=leg.control, on_step=tell)
            )
        whole = done[0] if len(done) == 1 else torch.cat(done)
        return list(torch.split(whole, counts)), (time.perf_counter() - started) / len(parts)

    def _draw(self, parts: Sequence[_Part], rows: slice) -> Draw:
        """The noise of a step for `rows` of all parts, one under the other."""

        def draw(step: int) -> Tensor:
            drawn, start = [], 0
            for part in parts:
                stop = start + len(part.x)
                within = slice(max(rows.start, start) - start, min(rows.stop, stop) - start)
                if within.start < within.stop and part.draw is not None:
                    drawn.append(self.model.tensor(part.draw(step, within)))
                start = stop
            return torch.cat(drawn)

        return draw

    def _groups(self, items: Iterable[_Item]) -> Iterator[list[_Item]]:
        """Items that are integrated together, taken from the stream no earlier than they are needed."""
        group: list[_Item] = []
        rows = 0
        for item in items:
            group.append(item)
            rows += len(item.samples if isinstance(item, ToEncode) else item.latent.data)
            if rows >= self.driver.together:
                yield group
                group, rows = [], 0
        if group:
            yield group


def open_party(
    bundle: Bundle,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    classifier: Bundle | None = None,
    together: int = 0,
    threads: int | None = None,
) -> LocalParty:
    """A party that integrates on the calling thread.

    Args:
        bundle: The model.
        device: One, as `sharding.parse_devices` takes it.
        dtype: Of the networks, a name in `DTYPES`.
        classifier: As in `DomainModel`.
        together: Samples that are integrated together; 0 for 16 pictures or 5,000 points.
        threads: CPU threads of torch; None leaves them as they are.

    Raises:
        BundleInvalid, SettingsInvalid: As `DomainModel`, and for a device or dtype that is not there.
    """
    if dtype not in DTYPES:
        raise SettingsInvalid(f"there is no dtype {dtype!r}", hint=", ".join(DTYPES))
    found = parse_devices(device)
    if len(found) != 1:
        raise SettingsInvalid(f"{device!r} is more than one device", hint="name one: cpu or cuda:0")
    model = DomainModel(bundle, device=found[0], dtype=DTYPES[dtype], classifier=classifier)
    usual = PICTURES_TOGETHER if model.is_picture else POINTS_TOGETHER
    return LocalParty(model, Inline(together or usual, threads))


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One item's rows, in the model's units and the leg's basis, on its device."""

    number: int
    x: Tensor
    label: Labels
    draw: RowDraw | None = None


@contextmanager
def _refusing(number: int, failed: dict[int, Failed]) -> Iterator[None]:
    """What is wrong with one item does not end the others."""
    try:
        yield
    except ITEM_ERRORS as error:
        failed[number] = Failed(number, error)


def only(outcome: _Outcome | Failed) -> _Outcome:
    """The outcome of an item that must not fail.

    Raises:
        DdibError: What was wrong with it.
    """
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome


def _rows_of(cond: Condition, rows: slice) -> Condition:
    return {key: value[rows] for key, value in cond.items()} if cond else None


def _tell(leg: Leg, number: int, stage: Stage, before: int, total: int) -> OnStep | None:
    told = leg.on_step
    if told is None:
        return None
    return lambda done, of: told(number, stage, before + done, total)  # noqa: ARG005 - of all turns
