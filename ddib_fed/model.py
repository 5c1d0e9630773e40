"""`ddib_fed.Model` and `ddib_fed.train`: a model of this process draws, encodes, decodes, and is measured."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.client.in_process import InProcess
from ddib_fed.data.fitting import check_fit
from ddib_fed.data.folder import load, scan
from ddib_fed.data.pictures import ImageLimits
from ddib_fed.data.points import to_npy
from ddib_fed.datasets import DOMAINS
from ddib_fed.diffusion.denoiser import LevelTable, Places
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import Level
from ddib_fed.diffusion.solvers import integral_weights
from ddib_fed.engine import arrays
from ddib_fed.engine.gate import Made, measure_allowances, pass_latent, unmeasurable
from ddib_fed.engine.local_party import LocalParty, only, open_party
from ddib_fed.engine.party import ToDecode, ToEncode
from ddib_fed.errors import AlreadyExists, InputError, LatentNotGaussian, SettingsInvalid, UsageError
from ddib_fed.evaluation import sheets
from ddib_fed.evaluation.features import SampleVerdict
from ddib_fed.evaluation.samples import samples_of
from ddib_fed.files import write_file, write_json
from ddib_fed.latent import Latent
from ddib_fed.metrics import calibrate_by_chance, distances_to_domain, file_rule, picture_rule
from ddib_fed.models.bundle import Bundle, amend_bundle, load_bundle, open_bundle, put_beside, shipped_name
from ddib_fed.models.catalogue import copy_shipped, shipped_models
from ddib_fed.models.manifest import Manifest, StructureThresholds, carried_domain
from ddib_fed.models.sidecars import Allowances, PrivacyReport, Tuned, TunedLeg
from ddib_fed.networks.config import SyntheticConfig
from ddib_fed.networks.placement import torch_threads
from ddib_fed.record import UNGUIDED, Classes, Guidance, Settings
from ddib_fed.training import run
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import TrainingProgress
from ddib_fed.training.sources import OwnSamples, PictureSource, own_samples
from ddib_fed.training.sources import shipped_name as shipped_domain

Samples = NDArray[np.float32]
Label = int | str | None
Told = Callable[[int, int], None]
PLAIN = Settings()
FEWEST_FOR_CHANCE, MOST_FOR_CHANCE = 8, 4_000
"""Pictures for thresholds of structure: `metrics.CHANCE_PAIRS` pairs need no more, spread over the folder."""


class Model:
    """A model of one domain, verified, in this process.

    Attributes
    ----------
    bundle
        Its files as they were verified: manifest, weights, and what lies beside them (`tuned`, `allowances`,
        `privacy`, `autoencoder`).
    folder : Path or None
        Where it can be tuned and measured; None of a model that ships.

    Examples
    --------
    >>> import ddib_fed
    >>> moons = ddib_fed.Model.open("moons")
    >>> points = moons.sample(200)
    >>> points.shape, moons.encode(points).shape
    ((200, 2), (200, 2))
    >>> float(abs(moons.decode(moons.encode(points)) - points).max()) < 0.1
    True
    """

    shipped = staticmethod(shipped_models)
    copy = staticmethod(copy_shipped)

    def __init__(self, bundle: Bundle, folder: Path | None = None, **opening: Any) -> None:
        """Wrap a verified bundle; `opening` are further arguments of `open_party`."""
        self.bundle, self.folder, self._opening = bundle, folder, opening

    @classmethod
    def open(
        cls,
        which: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        classifier: str | Path | Bundle | None = None,
        size: Sequence[int] | None = None,
        threads: int | None = None,
        batch: int = 0,
        without: Collection[str] = (),
    ) -> Model:
        """Read and verify a model; its network is built when it is first used.

        Parameters
        ----------
        which
            The name of a model that ships (``moons``, ``satellite``, ...), or the folder of a bundle.
        device, dtype
            ``cpu``, ``cuda`` or ``cuda:1``, and the network's ``float32``, ``bfloat16`` or ``float16``; what is
            integrated stays float32. The error of each is in docs/operating.md.
        classifier
            A bundle of a classifier of noisy pictures, for guidance by `Guidance.classifier_scale`.
        size
            Height and width (volumes: depth, height, width) to which samples are brought, to be translated in
            overlapping tiles. Both models of a translation need the same.
        threads, batch
            Threads of torch, None to leave them as they are; pictures that are integrated together, 0 for 16 (of
            points 5,000).
        without
            Files beside the weights that are not read, because they will be written anew.

        Raises
        ------
        ModelNotFound, BundleInvalid, SettingsInvalid
            There is no such model; a file is damaged or was changed; the size, or at the first use the device, dtype or
            classifier, does not suit the model.
        """
        folder = None if shipped_name(str(which)) else Path(which)
        bundle = load_bundle(folder, without=without) if folder and without else open_bundle(str(which))
        if classifier is not None and not isinstance(classifier, Bundle):
            classifier = open_bundle(str(classifier))
        opening = {"device": device, "dtype": dtype, "threads": threads, "together": batch}
        model = cls(bundle, folder, classifier=classifier, **opening)
        return model if size is None else model.of_scene(*size)

    def to(self, target: Model) -> InProcess:
        """Return a client whose node is this process: this model encodes, `target` decodes.

        Jobs are kept in memory, and computed while their results are taken. Their requests may use `soften`, `seed`,
        `calibration` and `flags`, which nodes refuse.
        """
        return InProcess(self.party, target.party)

    def of_scene(self, *sides: int) -> Model:
        """Return the same model for samples of that size, in overlapping tiles."""
        return Model(self.bundle.of_scenes(*sides), self.folder, **self._opening)

    @cached_property
    def party(self) -> LocalParty:
        """The `Party` that computes: it encodes and decodes streams of items on the calling thread."""
        opening = self._opening if self.manifest.sample_kind != "point" else {**self._opening, "together": 0}
        return open_party(self.bundle, **opening)

    @property
    def manifest(self) -> Manifest:
        """Description of the model: network, samples, schedule and training."""
        return self.bundle.manifest

    @property
    def digest(self) -> str:
        """SHA-256, hex, of the manifest, which names the weights: it pins everything."""
        return self.bundle.digest

    @property
    def domain(self) -> str:
        """Name of its domain."""
        return self.manifest.domain

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) of a picture, (C, D, H, W) of a volume, (D,) of a point."""
        return self.manifest.sample_shape

    @property
    def classes(self) -> Classes:
        """Classes to decode to: of the model, or else of its classifier."""
        classifier = self._opening.get("classifier")
        owner = self.manifest
        if owner.num_classes is None and classifier is not None:
            owner = classifier.manifest
        return Classes(owner.name, owner.num_classes or 0, owner.classes)

    @property
    def verdict(self) -> SampleVerdict | None:
        """Comparison of its samples with training data; None where training measured none."""
        return SampleVerdict.of_figures(self.manifest.training.figures)

    def __repr__(self) -> str:
        size, kind = " x ".join(map(str, self.shape)), self.manifest.sample_kind
        unit, classes = " coordinates" if kind == "point" else "", self.manifest.num_classes
        return f"<Model {self.domain}: {kind}s of {size}{unit}{f', {classes} classes' if classes else ''}>"

    def sample(
        self,
        count: int,
        settings: Settings = PLAIN,
        *,
        label: Label = None,
        guidance: Guidance = UNGUIDED,
        seed: int = 0,
        on_progress: Told | None = None,
    ) -> Samples:
        """Draw samples, (count, *shape) float32: points in the units of the data, pictures in [-1, 1].

        Parameters
        ----------
        settings
            How the ODE is integrated.
        label, guidance
            The class to draw, by number or name, and guidance towards it.
        seed
            Of the noise; pictures are the first `count` of a seed.
        on_progress
            Called with (network evaluations done, in all).

        Raises
        ------
        SettingsInvalid
            The settings, the class or the guidance do not fit the model, here and below.
        """
        request = self._array_settings(settings, label, guidance, seed)
        if self.party.model.is_picture:
            return arrays.draw_samples(self.party, count, request, on_progress=on_progress)
        return self._points(_noise(count, self.shape[0], seed), request, on_progress)

    def draw(
        self,
        folder: str | Path,
        count: int | None = None,
        settings: Settings = PLAIN,
        *,
        overwrite: bool = False,
        **how: Any,
    ) -> dict[str, Any]:
        """Draw samples into a folder, with a sheet and report.json, which is written last; return the report.

        Points are written as samples.npy, latent.npy and samples.png; pictures as sample_0.png and on (volumes:
        sample_0.npy), and sheet.png. The usual count is 10,000 points or 64 pictures; `how` is as of `sample`. Raise
        AlreadyExists for a folder with results that may not be replaced.
        """
        folder = Path(folder)
        if (folder / "report.json").exists() and not overwrite:
            raise AlreadyExists(f"{folder} holds results already", hint="choose another folder, or --force")
        write = self._draw_pictures if self.party.model.is_picture else self._draw_points
        on_progress = how.pop("on_progress", None)
        request = self._array_settings(settings, how.pop("label", None), **how)
        report = {
            "model": {"name": self.manifest.name, "domain": self.domain, "digest": self.digest},
            "seed": request.seed,
            "settings": request.settings.described(),
            **write(folder, count or (64 if self.party.model.is_picture else 10_000), request, on_progress),
        }
        write_json(folder / "report.json", report)
        return report

    def _draw_points(
        self, folder: Path, count: int, request: arrays.ArraySettings, on_progress: Told | None
    ) -> dict[str, Any]:
        noise = _noise(count, self.shape[0], request.seed)
        wall, cpu = time.monotonic(), time.process_time()
        samples = self._points(noise, request, on_progress)
        spent = {"wall": round(time.monotonic() - wall, 3), "cpu": round(time.process_time() - cpu, 3)}
        cloud, domain = self.party.model.normalise(samples), carried_domain(self.manifest)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "samples.npy", to_npy(samples))
        write_file(folder / "latent.npy", to_npy(noise))
        sheets.clouds([("latent", noise), ("samples", cloud)], folder / "samples.png")
        target = dict(distances_to_domain(cloud, domain)) if domain in DOMAINS else None
        return {"points": count, "clip": request.guidance.clip, "seconds": spent, "target_cloud": target}

    def _draw_pictures(
        self, folder: Path, count: int, request: arrays.ArraySettings, on_progress: Told | None
    ) -> dict[str, Any]:
        samples = arrays.draw_samples(self.party, count, request, on_progress=on_progress)
        writer, width = samples_of(self.party.model, ImageLimits(), max_points=0), len(str(count - 1))
        names = [f"sample_{number:0{width}d}.{writer.format.lower()}" for number in range(count)]
        folder.mkdir(parents=True, exist_ok=True)
        for name, sample in zip(names, samples, strict=True):
            write_file(folder / name, writer.file(sample[None]))
        data = self.manifest.data
        note = "" if data is None else data.note or data.source
        caption = ". ".join(filter(None, [self.domain, note]))
        sheets.save_sheet(folder / "sheet.png", {"samples": samples[:64]}, caption=caption)
        scale = dict(zip(("slope", "intercept"), file_rule(self.manifest).output_scale, strict=True))
        about = {"class": request.target_class, "count": count, "guidance": asdict(request.guidance)}
        return {**about, "output_scale": scale, "pictures": names}

    def _points(self, noise: Samples, request: arrays.ArraySettings, on_progress: Told | None) -> Samples:
        """Decode points (N, D) from noise (N, D)."""
        turns = arrays.turns(self.party, len(noise))
        counter = arrays.counting(request.settings.evaluations * turns, on_progress)
        noises = arrays.point_draw(request.seed, 0, noise.shape[1])
        inputs = ToDecode(0, Latent.from_array(noise), draw=noises)
        return self.party.decode(inputs, request.leg(counter)).samples

    def encode(
        self,
        samples: Samples,
        settings: Settings = PLAIN,
        *,
        label: Label = None,
        soften: float | None = None,
        seed: int = 0,
    ) -> Samples:
        """Encode samples to latents. A latent is an invertible encoding: treat it as the sample.

        Parameters
        ----------
        samples
            (N, *shape) float32: points in the units of the data, pictures in [-1, 1].
        settings, label
            How the ODE is integrated, and to what depth; class of the samples, by number or name.
        soften, seed
            Noise level sigma / alpha to which pictures are diffused first, None for the model's own; its seed.

        Returns
        -------
        ndarray
            (N, *latent shape) float32, of N(0, I) at full depth; an autoencoder alone changes the shape.

        Raises
        ------
        ShapeMismatch, NotFinite, LatentNotGaussian
            The samples do not fit the model; a latent is unlike those of its domain.
        """
        model = self.party.model
        request = replace(self._array_settings(settings, label, seed=seed), soften=soften)
        parts = enumerate(self._parts(samples))
        items = (arrays.item_of(number, part, model, model, request) for number, part in parts)
        inputs = (ToEncode(item.number, item.samples, request.target_class, item.noise) for item in items)
        outcomes = self.party.encode_each(inputs, request.leg())
        return np.concatenate([only(outcome).latent.data for outcome in outcomes])

    def decode(
        self,
        latents: Samples,
        settings: Settings = PLAIN,
        *,
        label: Label = None,
        guidance: Guidance = UNGUIDED,
        seed: int = 0,
    ) -> Samples:
        """Decode latents (N, *latent shape) float32, of the depth that the settings name, to samples (N, *shape).

        Settings, label, guidance and seed are as of `sample`. Raise ShapeMismatch, NotFinite or LatentNotGaussian for
        latents that do not fit the model, or are not of N(0, I).
        """
        model, request = self.party.model, self._array_settings(settings, label, guidance, seed)

        def items() -> Any:
            for number, part in enumerate(self._parts(latents)):
                name = f"{seed} {number}".encode()
                draw = (
                    arrays.picture_draw(model, name, "decode")
                    if model.is_picture
                    else arrays.point_draw(seed, 0, part.shape[1])
                )
                yield ToDecode(number, Latent.from_array(part), request.target_class, draw)

        outcomes = self.party.decode_each(items(), request.leg())
        samples = np.concatenate([only(outcome).samples for outcome in outcomes])
        return samples.clip(-1.0, 1.0) if model.is_picture else samples

    def integrate(
        self,
        x: Samples,
        settings: Settings = PLAIN,
        *,
        sigma: float = 0.0,
        back: bool = False,
        on_progress: Told | None = None,
    ) -> Samples:
        """Follow the ODE with states as they are: nothing is softened, refused or clipped; return the other end.

        Parameters
        ----------
        x
            (N, *latent shape) float32 in the units of the ODE (`units`).
        settings
            How, and from the data end to what depth; SettingsInvalid is raised if they do not fit the model.
        sigma
            Noise level sigma / alpha of the data end; 0 for the data itself.
        back
            From noise to data.
        on_progress
            Called with (network evaluations done, in all).
        """
        model, rows = self.party.model, self.party.executor.rows
        plan = model.plan(SolverSettings.of(settings), sigma)
        plan = replace(plan, decode_grid=plan.encode_grid.reversed())
        parts = torch.split(torch.from_numpy(np.ascontiguousarray(x, np.float32)), rows)
        steps = plan.decoder if back else plan.encoder
        tell = arrays.counting(settings.evaluations * len(parts), on_progress)
        ends = []
        with self.threads():
            for part in parts:
                classes = model.condition(model.class_rows(None, len(part)))
                start, share = part.to(model.device), settings.share
                ends.append(model.integrate(start, steps, share=share, cond=classes, on_step=tell).cpu())
        return torch.cat(ends).numpy()

    def refusals(
        self, latents: Samples, settings: Settings = PLAIN, *, states: Samples | None = None
    ) -> list[str]:
        """Return why the gate of a node refuses latents, "" where it does not: of each picture, or of a set of points.

        `latents` are (N, *latent shape) float32, of the depth that the settings name. With `states`, of which they are
        said to be encodings, in the units of the ODE and softened, the gate is the source's, which encodes again;
        without them it is the target's.
        """
        leg, answers = self._array_settings(settings).leg(), []
        sigma, usual = self.party.model.sigma(None), self.bundle.allowances if settings.share == 1.0 else None
        items = self._parts(latents), self._parts(latents if states is None else states)
        for z, x in zip(*items, strict=True):

            def again(rows: list[int], x: Samples = x) -> torch.Tensor:
                return torch.from_numpy(self.integrate(x[rows], settings, sigma=sigma))

            known = None if states is None else torch.from_numpy(x)
            made = Made(settings.evaluations, known, None if known is None else again, usual)
            try:
                pass_latent(torch.from_numpy(z), leg, made)
            except LatentNotGaussian as error:
                answers.append(error.detail)
            else:
                answers.append("")
        return answers

    def velocity(self, x: Samples, lam: float) -> Samples:
        """Return the network's v = alpha eps - sigma x0 at states (N, *latent shape) of one level.

        The level is lambda = log(alpha / sigma), and the states are in the units of the ODE.
        """
        model, level = self.party.model, self.bundle.schedule.level(lam)
        answers = []
        with self.threads(), torch.no_grad():
            for part in torch.split(torch.from_numpy(x), self.party.executor.rows):
                classes = model.condition(model.class_rows(None, len(part)))
                answers.append(model.denoiser()(part.to(model.device), level, classes).cpu())
        return torch.cat(answers).numpy()

    def levels(self, settings: Settings = PLAIN, *, sigma: float = 0.0) -> tuple[float, ...]:
        """Return lambda = log(alpha / sigma) at the nodes of an integration, from data to noise, of which `sigma` is
        the noise level of the data end; one more than the evaluations.
        """
        plan = self.party.model.plan(SolverSettings.of(settings), sigma)
        return tuple(level.lam for level in plan.encode_grid.levels)

    def walk(
        self,
        x: Tensor,
        lams: Tensor,
        *,
        order: int = 3,
        whitened: bool = False,
        labels: Sequence[int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Follow the ODE through levels of one's own: yield the state at each and the velocity there, None at the last.

        States and velocities are in the coordinates of the steps, the last state in the units of the ODE. Gradients
        flow to the states and to the levels between the ends, unless torch.no_grad() says otherwise.

        Parameters
        ----------
        x
            States (N, *latent shape) in the units of the ODE.
        lams
            (n + 1,) float64 on the CPU: falling to encode, rising to decode.
        order, whitened
            Of the multistep solver, 1 to 5; whether a spectral model steps in the whitened frequencies of its pictures.
        labels
            The class of each.
        """
        model = self.party.model
        denoiser = model.denoiser(whitened=whitened)
        cond = model.condition(model.class_rows(None, len(x)) if labels is None else labels)
        alphas, sigmas = torch.sigmoid(2.0 * lams).sqrt(), torch.sigmoid(-2.0 * lams).sqrt()
        table = torch.stack([alphas, sigmas, self.bundle.schedule.t_of_lam(lams)], dim=1)
        first_level, last_level = (Level(*table[i].tolist()) for i in (0, -1))
        axis = lams if whitened else torch.atan2(sigmas, alphas)
        state = guess = denoiser.enter(x.to(model.device), first_level)
        history: deque[Tensor] = deque(maxlen=order + 1)

        def advanced(first: int, last: int, end: int) -> Tensor:
            """Return the state at node `end` by the polynomial through velocities of nodes `first` to `last`."""
            weights = integral_weights(axis[max(0, first) : last + 1].flip(0), axis[end - 1], axis[end])
            reached = state
            for weight, value in zip(weights.to(state), history, strict=False):
                reached = reached.addcmul(value, weight)
            return reached

        for i in range(len(lams) - 1):
            v = denoiser.at(guess, Places(LevelTable(table[i : i + 1]), None, None, x.dtype), cond)
            yield guess, v
            history.appendleft(v)
            if i > 0:
                state = advanced(i - order, i, i)
            guess = advanced(i + 1 - order, i, i + 1)
        yield denoiser.leave(guess, last_level), None

    @property
    def is_spectral(self) -> bool:
        """Whether a share of the network can encode; the rest is the linear estimate of its spectrum."""
        return self.party.model.spectral

    def data(
        self, which: str | Path | None = None, *, train: int = 0, held_out: int = 0, test: int = 0
    ) -> OwnSamples:
        """Return at most so many samples of the model's domain, evenly spaced, as `train`, `held_out` and `test`.

        `which` is a folder of pictures or a .npy file of points; None for the domain that ships, which has `test`.
        """
        return own_samples(self.manifest, which, train, held_out, test=test)

    def own_folder(self) -> Path:
        """Return the folder that may be written to; raise UsageError for a model that ships."""
        if self.folder is None:
            name = self.manifest.name
            hint = f"ddib model get {name} --out DIR makes a copy"
            raise UsageError(f"{name} ships with the package, which is not written to", hint=hint)
        return self.folder

    def put_steps(self, legs: Sequence[Mapping[str, Any]], *, command: str = "") -> Tuned:
        """Check learned steps, and write them into steps.json; those of the same direction, softening and number go.

        `Settings(grid="learned")` uses them. The digest stays.
        """
        weights = self.manifest.weights_sha256
        tuned = (self.bundle.tuned or Tuned(weights_sha256=weights)).with_legs(
            tuple(map(TunedLeg.model_validate, legs)), command
        )
        put_beside(self.own_folder(), tuned)
        self._read_again(self.own_folder())
        return tuned

    def put_privacy(self, values: Mapping[str, Any]) -> PrivacyReport:
        """Check the figures of a privacy report, and write privacy.json beside the weights of a model of one's own."""
        report = PrivacyReport(weights_sha256=self.manifest.weights_sha256, **values)
        if self.folder is not None:
            put_beside(self.folder, report)
            self._read_again(self.folder)
        return report

    def units(self, samples: NDArray[Any]) -> Samples:
        """Return samples (N, *shape) in the units of the ODE, (N, *latent shape) float32."""
        return self.party.model.into_units(samples.astype(np.float32)).cpu().numpy()

    def out_of_units(self, x: Samples) -> Samples:
        """Return states (N, *latent shape) at the data end as samples, (N, *shape) float32."""
        return self.party.model.out_of_units(torch.from_numpy(x))

    @property
    def has_autoencoder(self) -> bool:
        """Whether its ODE runs on the latents of an autoencoder."""
        return self.bundle.autoencoder is not None

    def reconstruct(self, samples: NDArray[Any]) -> Samples:
        """Return pictures (N, *shape) as the model's autoencoder gives them back; without one, as they are.

        Nothing that the model decodes can be nearer to a picture.
        """
        rows = samples.astype(np.float32)
        if self.has_autoencoder:
            rows = np.concatenate([self.out_of_units(self.units(row[None])) for row in rows])
        return rows.clip(-1.0, 1.0) if self.party.model.is_picture else rows

    def _parts(self, rows: Samples) -> Sequence[Samples]:
        """Return the items of an array: each picture, or all points as one set."""
        return [row[None] for row in rows] if self.party.model.is_picture else [rows]

    def _array_settings(
        self, settings: Settings, label: Label = None, guidance: Guidance = UNGUIDED, seed: int = 0
    ) -> arrays.ArraySettings:
        number = self.classes.number(label) if isinstance(label, str) else label
        return arrays.ArraySettings(
            SolverSettings.of(settings), target_class=number, guidance=guidance, seed=seed
        )

    def measure(
        self,
        *,
        data: str | Path | None = None,
        seed: int = 0,
        skip_bad: bool = False,
        on_encoding: Told | None = None,
        on_scan: Told | None = None,
    ) -> str:
        """Measure the model's own latents and pictures, for the gate and for marks of doubt.

        Bounds of the gate are written into gate.json beside the weights. A model of pictures without thresholds of
        structure gets them if `data` names pictures; they are in the manifest, so the digest changes then.

        Parameters
        ----------
        data, seed
            A folder of pictures of the domain that the model was not trained on, or a .npy file of points; None for
            the domain that ships. Of all random draws. Bounds need at least 40 pictures; with `skip_bad` those that
            cannot be read are left out.
        on_encoding, on_scan
            Called with (done, in all).

        Returns
        -------
        str
            Why bounds could not be measured, where thresholds could; empty where they were.

        Raises
        ------
        InputError, UsageError
            Neither could be measured; the model ships: copy it first.
        """
        folder, manifest, problem = self.own_folder(), self.manifest, None
        try:
            put_beside(folder, self._bounds(data, seed, on_encoding, skip_bad=skip_bad))
        except InputError as error:
            problem = error
        generates = manifest.sample_kind == "picture" and manifest.role == "generator"
        lacks = manifest.structure is None and generates
        if lacks and data is not None and shipped_domain(manifest, data) is None:
            amend_bundle(folder, structure=self._thresholds(Path(data), on_scan, skip_bad=skip_bad))
        elif problem is not None:
            raise problem
        self._read_again(folder)
        return "" if problem is None else problem.detail

    def _bounds(
        self, data: str | Path | None, seed: int, on_encoding: Told | None, *, skip_bad: bool
    ) -> Allowances:
        model, samples = self.party.model, np.empty(0, np.float32)
        if not (why := unmeasurable(model, run.GATE_PICTURES)):
            own = own_samples(model.manifest, data, run.GATE_PICTURES, run.GATE_PICTURES, skip_bad=skip_bad)
            samples = own.mixed()[: run.GATE_PICTURES]
            why = unmeasurable(model, len(samples))
        if why:
            name = model.manifest.name
            raise InputError(
                f"the usual latents of {name} cannot be measured: {why}",
                hint=f"ddib model show {name} says what the model is; --data names a folder of pictures",
            )
        given = {"--skip-bad": skip_bad, "--data PATH": data, f"--seed {seed}": seed}
        command = " ".join(["ddib model measure MODEL", *(each for each in given if given[each])])
        with self.threads():
            return measure_allowances(model, samples, command=command, seed=seed, tell=on_encoding)

    def _thresholds(self, images: Path, progress: Told | None, *, skip_bad: bool) -> StructureThresholds:
        rule = picture_rule(self.manifest)
        check = partial(check_fit, rule=rule, windows=True)
        entries = scan(images, skip_bad=skip_bad, check=check, progress=progress).entries
        if len(entries) < FEWEST_FOR_CHANCE:
            problem = f"{images} has {len(entries)} pictures; at least {FEWEST_FOR_CHANCE} are needed"
            raise InputError(problem, hint="add pictures of the domain")
        pictures = load(entries[:: -(-len(entries) // MOST_FOR_CHANCE)], rule)
        return calibrate_by_chance(pictures[::2], pictures[1::2], units=self.manifest.normalisation)

    def export(self, path: str | Path) -> str:
        """Write a model of the public DDIB code's 2-D network as that code's checkpoint; return the flags it needs.

        The file is a state dict in float32; the public scripts look for models/synthetic/log2D0/model000000.pt.
        SettingsInvalid is raised for any other network.
        """
        manifest, network, schedule = self.manifest, self.manifest.network, self.manifest.schedule
        named = schedule.steps is not None and schedule.name in ("linear", "cosine") and schedule.ends is None
        timed = manifest.time_input == "timestep" and manifest.parameterisation != "v"
        if not isinstance(network, SyntheticConfig) or not named or not timed:
            raise SettingsInvalid(
                f"{manifest.name} is a network of kind {network.kind} that predicts {manifest.parameterisation}; the "
                "public code's for points is `synthetic`, and predicts eps or x0 at integer steps of a linear or "
                "cosine schedule",
                hint="train one: ddib model train --domain moons --set network=public --steps 100000 --out DIR",
            )
        flags = {
            **network.model_dump(exclude={"kind", "out_channels"}),
            "diffusion_steps": schedule.steps,
            "noise_schedule": schedule.name,
            "predict_xstart": manifest.parameterisation == "x0",
            "rescale_timesteps": schedule.rescale_timesteps,
        }
        stream = io.BytesIO()
        torch.save({key: value.clone() for key, value in self.bundle.state.items()}, stream)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(path), stream.getvalue())
        return " ".join(f"--{key} {value}" for key, value in flags.items())

    @staticmethod
    def public_settings(
        line: str, manifests: Sequence[Manifest], evaluations: int | None = None
    ) -> tuple[SolverSettings, bool | None]:
        """Return the settings in a line of the public code's flags, and whether they say to clip.

        Without `evaluations` the flags' steps count, which must be the same for all models; without those at most 48.
        SettingsInvalid is raised for a flag that the public code does not have.
        """
        return arrays.public_sampling(line, manifests, evaluations)

    def _read_again(self, folder: Path) -> None:
        self.bundle = load_bundle(folder)
        self.__dict__.pop("party", None)

    def threads(self) -> AbstractContextManager[None]:
        """Run with the model's number of threads of torch, if one was given, and put the former number back."""
        threads = self._opening.get("threads")
        return nullcontext() if threads is None else torch_threads(threads)


def _noise(count: int, dim: int, seed: int) -> Samples:
    """Draw noise (count, dim) of points, around the origin in the order of their angle."""
    noise = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    if dim > 1:
        noise = noise[torch.argsort(torch.atan2(noise[:, 1], noise[:, 0]))]
    return noise.numpy()


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    source: PictureSource | None = None,
    resume: bool = False,
    force: bool = False,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    at_terminal: bool = False,
) -> Model:
    """Train a model and write its bundle; under torchrun, together with the other processes.

    Parameters
    ----------
    out
        The bundle's folder; the run, with its progress and checkpoints, is in out/run.
    source
        Pictures in memory, instead of those that the config names.
    resume
        Continue the run in `out`, if it has the same settings and data; a finished one too, if more steps or time
        are asked for.
    force
        Remove the content of `out`, and begin.
    on_progress
        Called with the step, the steps in all, the loss and the rate.
    at_terminal
        Show bars and remarks on stderr, and let Ctrl-C and SIGTERM stop the run so that it can be resumed.

    Raises
    ------
    AlreadyExists, StateConflict, InputError
        `out` holds a run or a model, and neither `resume` nor `force` is set, or a run of other settings or data; the
        data cannot be used.

    Examples
    --------
    >>> import ddib_fed, tempfile
    >>> config = ddib_fed.TrainConfig(domain="moons", steps=2, width=16, blocks=1)
    >>> ddib_fed.train(config, tempfile.mkdtemp() + "/moons")
    <Model moons: points of 2 coordinates>
    """
    if at_terminal:
        bundle = run.train_at_terminal(config, Path(out), resume=resume, force=force)
    else:
        bundle = run.train(config, Path(out), on_progress, source=source, resume=resume, force=force)
    return Model(bundle, Path(out), threads=config.threads)
