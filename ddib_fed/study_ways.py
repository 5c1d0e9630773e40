"""A study: its plan, the scans that it names, and what each way makes of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

import ddib_fed
from ddib_fed import metrics
from ddib_fed import study_scores as scores
from ddib_fed.cli.folder_report import ConsoleProgress
from ddib_fed.errors import InputError
from ddib_fed.files import load_toml, write_file, write_json
from ddib_fed.pages import cell, write_page
from ddib_fed.study_scores import Affine, Mask, Span, Table, Volume
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.studies import WrittenStudy

BRIDGE, MAP, MAP_THROUGH, TRUTH = "bridge", "map", "map through the target's autoencoder", "truth"
SOURCE, HISTOGRAM, LOCATION = "source unchanged", "histogram matching", "location and scale"
FIGURES: Final = {  # what is shown, and 1 where more is better
    "mae": ("MAE", -1),
    "psnr": ("PSNR dB", 1),
    "ms_ssim": ("MS-SSIM", 1),
    "dice": ("Dice", 1),
    "hd95_mm": ("HD95 mm", -1),
    "edges": ("edges as in the source", 1),
}
OF_RECORDS: Final = {
    "cycle_psnr": "round trip dB",
    "doubtful": "marked doubtful, share",
    "differs": "class changed, share of pixels",
    "kurtosis": "latent: kurtosis (0 of noise)",
    "correlation": "latent: correlation (0 of noise)",
}
QUESTIONS: Final = {
    "unit": 'the unit of the target\'s values, e.g. unit = "HU"',
    "range": "the fixed range of PSNR and MS-SSIM in that unit, e.g. range = [-1024, 3000]",
    "mask": 'where figures are taken, e.g. mask = "{subject}/mask.mha", or mask = "none" for the whole volume',
    "dilated_mm": "by how many mm to dilate the mask, e.g. dilated_mm = 0 where its files are dilated already",
    "registration": "how source and truth were registered, in words, for the methods section",
    "trained_on": "the subjects that the models have seen, e.g. trained_on = []",
}
"""What no protocol may assume, by its key."""
OF_UNPAIRED: Final = ("unit", "range", "trained_on")
TITLES: Final = {
    "synthesis": "Synthesis and truth",
    "harmonisation": "The same subjects at the target site",
    "unpaired": "Without a truth",
}
WIDE, STEP = 330, 64  # pixels: of a picture on the page; of which an autoencoder takes whole numbers
ENOUGH, LEAST_TRAVELLERS = 10, 3  # subjects
FAR, MANY = 1.0, 0.001  # voxels beside each other, and share of values outside of the range, that are named


class _Table(BaseModel, extra="forbid", frozen=True):
    pass


class SourceSite(_Table):
    """A site whose scans are translated: by its node, which `profile` dials, or by a model of this process."""

    images: str
    model: str = ""
    profile: str = ""
    calibration: str = ""
    intensity: str = "auto"
    unit: str = ""


class TargetSite(_Table):
    """The site that they are translated to; `images` are the truth, `reference` other scans of the site."""

    domain: str = ""
    model: str = ""
    images: str = ""
    reference: str = ""
    labels: str = ""


class StudyPlan(_Table):
    """PLAN.toml. Paths are relative to its folder; {subject} and {session} in them say what is whose."""

    protocol: Literal["synthesis", "harmonisation", "unpaired"]
    source: Mapping[str, SourceSite]
    target: TargetSite
    unit: str | None = None
    range: tuple[float, float] | None = None
    mask: str | None = None
    dilated_mm: float | None = Field(None, ge=0.0)
    registration: str | None = None
    trained_on: tuple[str, ...] | None = None
    groups: Mapping[str, str] = {}
    evaluations: int = Field(48, ge=1)
    shares: tuple[float, ...] = ()
    segmentation: str = ""
    window: tuple[float, float] | None = None  # black and white of the page's pictures; without one the range

    @model_validator(mode="after")
    def _whole(self) -> Self:
        unpaired, target = self.protocol == "unpaired", self.target
        asked = OF_UNPAIRED if unpaired else QUESTIONS
        lacking = [QUESTIONS[name] for name in asked if getattr(self, name) is None]
        by_model = {bool(each.model) for each in self.source.values()} | {bool(target.model)}
        needed = {
            f"the plan lacks what no study may assume: {'; '.join(lacking)}": not lacking,
            'target.images is needed: the truth of each subject, e.g. "{subject}/ct.mha"': unpaired or target.images,
            "target.reference is needed: other scans of the target": not unpaired or target.reference,
            'segmentation is needed: a command, e.g. "segment {input} {output}"': self.protocol != "harmonisation"
            or self.segmentation,
            "target.domain is for nodes, target.model and the model of each source for models: give one of them":
            len(by_model) == 1 and bool(target.domain) != bool(target.model),
            "range goes from less to more": self.range is None or self.range[0] < self.range[1],
            "target.labels need segmentation, which labels what is made": self.segmentation or not target.labels,
            "images of a source need {subject}: intervals are over subjects": all(
                "{subject}" in each.images for each in self.source.values()
            ),
        }  # fmt: skip
        if faults := [fault for fault, is_met in needed.items() if not is_met]:
            raise ValueError("; ".join(faults))
        return self


@dataclass(frozen=True, slots=True)
class Case:
    """A scan of a subject at a site, and what belongs to it."""

    subject: str
    session: str
    site: str
    image: Path
    truth: Path | None
    mask: Path | None
    labels: Path | None

    @property
    def name(self) -> str:
        return f"{self.subject}_{self.session}" if self.session else self.subject


class Seen(NamedTuple):
    """What sites are classified by: features (N, D) of a volume's slices, and the volumes of its tissues in ml."""

    site: str
    subject: str
    features: Table
    tissues: Mapping[int, float]


class Shown(NamedTuple):
    """A table of the page."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str
    kind: str = ""


@dataclass(slots=True)
class Comparison:
    """A plan, its cases, and what was measured of each way for each case."""

    plan: StudyPlan
    folder: Path
    out: Path
    device: str
    cases: list[Case] = field(default_factory=list)
    figures: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    features: dict[str, list[Table]] = field(default_factory=dict)
    seen: dict[str, list[Seen]] = field(default_factory=dict)
    pictures: list[dict[str, bytes]] = field(default_factory=list)
    pitfalls: dict[str, None] = field(default_factory=dict)  # in order, each once
    models: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Translate every case in every way, and measure it."""
        plan, folder = self.plan, self.folder
        self.cases = [case for site in plan.source for case in find_cases(plan, folder, site)]
        self._check_subjects()
        values: dict[str, list[Volume]] = {site: [] for site in plan.source}
        for case in self.cases:  # before anything is translated
            volume, affine = scores.read(case.image)
            values[case.site].append(scores.thinned(volume))
            for path in filter(None, (case.truth, case.mask, case.labels)):
                partner(case, path, affine, volume.shape)
        paths = matches(folder, plan.target.reference) if plan.target.reference else []
        pool = [scores.thinned(scores.read(path)[0]) for path in paths]
        with ExitStack() as opened:
            for name, site in plan.source.items():
                via, target, model = self._site(site, opened)
                for case in (case for case in self.cases if case.site == name):
                    say(f"{case.site} {case.name}", err=True)
                    source, affine = scores.read(case.image)
                    all_values = np.concatenate(values[name])
                    made = without_network(source, all_values, np.concatenate(pool)) if pool else {}
                    if plan.protocol != "harmonisation" and site.unit != plan.unit:
                        source = scores.moved(source, scores.ends(source), self._span)
                    made = {SOURCE: source} | made | self._translated(case, site, via, target, model)
                    self._score(case, made, affine)
        if plan.protocol == "unpaired":
            real = [metrics.features(scores.in_units(scores.read(path)[0], self._span)) for path in paths]
            self.features[TRUTH] = [np.concatenate(real)]

    @property
    def _span(self) -> Span:
        assert self.plan.range is not None  # the plan was checked
        return self.plan.range

    def _check_subjects(self) -> None:
        trained_on, subjects = self.plan.trained_on or (), sorted({case.subject for case in self.cases})
        if both := [subject for subject in subjects if subject in trained_on]:
            said = f"the models have seen {len(both)} of {len(subjects)} subjects ({', '.join(both[:5])})"
            self.pitfalls[f"{said}: their figures say nothing of another person"] = None
        if len(subjects) < ENOUGH:
            said = f"there are {len(subjects)} subjects" if len(subjects) > 1 else "there is one subject"
            self.pitfalls[
                f"{said}: intervals are rough below ten, too narrow below five, and none of one"
            ] = None
        if self.plan.protocol != "harmonisation":
            return
        there, groups = {(case.site, case.subject) for case in self.cases}, self.plan.groups
        pairs = [(site, subject) for site in self.plan.source for subject in subjects]
        lacking = [f"{subject} at {site}" for site, subject in pairs if (site, subject) not in there]
        lacking += [f"{subject} in groups" for subject in subjects if groups and subject not in groups]
        if len(subjects) < LEAST_TRAVELLERS or lacking:
            lacking = lacking or [f"a third subject: there are {len(subjects)}"]
            why = f"travelling subjects are at every site, three or more; there is no {lacking[0]}"
            raise InputError(why, hint='add scans or leave subjects out, or choose protocol = "synthesis"')

    def _site(self, site: SourceSite, opened: ExitStack) -> tuple[Any, str, ddib_fed.Model | None]:
        """Return what translates, to which target, and the target's model if it is of this process."""
        if not site.model:
            profile = ddib_fed.Profile.load(self.folder / site.profile if site.profile else None)
            return profile, self.plan.target.domain, None
        model = ddib_fed.Model.open(self.plan.target.model, device=self.device)
        here = opened.enter_context(ddib_fed.Model.open(site.model, device=self.device).to(model))
        return here, here.target, model

    def _translated(
        self, case: Case, site: SourceSite, via: Any, target: str, model: ddib_fed.Model | None
    ) -> dict[str, Volume]:
        """Return what the map alone, the bridge and the bridge at each share make of a scan."""
        unpaired, base = self.plan.protocol == "unpaired", {"evaluations": self.plan.evaluations}
        own = self.folder / site.calibration
        calibration = str(own) if own.is_file() else site.calibration or None

        def run(way: str, settings: Mapping[str, Any]) -> tuple[WrittenStudy, Any]:
            chosen = ddib_fed.Settings(**settings)
            request = ddib_fed.Request(chosen, cycle=unpaired and way == BRIDGE, calibration=calibration)
            folder = self.out / way / case.site / case.name
            made = ddib_fed.Run(via, target, folder, request, ConsoleProgress())
            made.open([case.image], intensity=site.intensity)
            made.read()
            made.translate()
            if not made.written:
                made.conclude()  # raises why
            if refused := made.written[0].refused:
                self.pitfalls[f"{case.site} {case.name}, {way}: {refused}"] = None
            return made.written[0], made.studies

        written, studies = run(BRIDGE, base)
        record, made = written.provenance, dict[str, Volume]()
        self.models[record.source_domain] = record.source_model_sha256
        self.models[record.target_domain] = record.target_model_sha256
        self.settings[case.site] = settings_text(record)
        if record.calibration_sha256:
            mapped, _ = run(MAP, {**base, "blend": 1.0})
            made[MAP] = scores.read(mapped.files[0])[0]
            if model is not None and model.has_autoencoder:
                made[MAP_THROUGH] = through(model, made[MAP], studies[0])
        made[BRIDGE] = scores.read(written.files[0])[0]
        for share in self.plan.shares:
            shared, _ = run(f"{BRIDGE}-{share:g}", {**base, "share": share})
            made[f"{BRIDGE}, share {share:g}"] = scores.read(shared.files[0])[0]
        self.figures.setdefault(BRIDGE, []).append(of_records(written.report["items"]) if unpaired else {})
        if case.truth is not None:
            file, place = written.files[0], self.out / "synthetic" / case.site / case.name
            place.mkdir(parents=True, exist_ok=True)
            end = "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix
            write_file(place / f"{case.truth.name.split('.')[0]}{end}", file.read_bytes())
        return made

    def _score(self, case: Case, made: dict[str, Volume], affine: Affine) -> None:
        plan, spacing, shape = self.plan, scores.spacing_of(affine), made[SOURCE].shape
        truth = None if case.truth is None else partner(case, case.truth, affine, shape)
        labels = None if case.labels is None else partner(case, case.labels, affine, shape)
        mask = np.ones(shape, bool)
        if case.mask is not None:
            mask = scores.dilated(
                partner(case, case.mask, affine, shape) > 0, plan.dilated_mm or 0.0, spacing
            )
        if truth is not None:
            self._check_truth(case, made[SOURCE], truth, mask)
        segment = partial(scores.segmented, plan.segmentation, affine=affine)
        if truth is not None and labels is None and plan.segmentation:
            labels = segment(truth)
        start = scores.in_units(made[SOURCE], scores.ends(made[SOURCE]))
        for way, volume in made.items():
            figures = {} if truth is None else scores.synthesis(volume, truth, mask, self._span)
            if labels is not None and plan.segmentation:
                own = segment(volume)
                figures |= scores.overlap(own, labels, spacing)
                self._add(
                    way,
                    Seen(case.site, case.subject, scores.look(volume, mask), scores.volumes_ml(own, spacing)),
                )
            if plan.protocol == "unpaired":
                units = scores.in_units(volume, self._span)
                figures["edges"] = float(metrics.structure(start, units).edge_correlation.mean())
                self.features.setdefault(way, []).append(metrics.features(units))
            if way == BRIDGE:
                self.figures[way][-1] |= figures
            else:
                self.figures.setdefault(way, []).append(figures)
        if truth is not None and labels is not None:
            self._add(
                TRUTH,
                Seen("target", case.subject, scores.look(truth, mask), scores.volumes_ml(labels, spacing)),
            )
        stacks = made if truth is None else {**made, TRUTH: truth}
        window = plan.window or self._span
        self.pictures.append({way: scores.picture(volume, window, affine) for way, volume in stacks.items()})

    def _add(self, way: str, seen: Seen) -> None:
        others = self.seen.setdefault(way, [])
        if all((seen.site, seen.subject) != each[:2] for each in others):
            others.append(seen)

    def _check_truth(self, case: Case, source: Volume, truth: Volume, mask: Mask) -> None:
        (low, high), inside = self._span, truth[mask]
        if (outside := float(((inside < low) | (inside > high)).mean())) > MANY:
            said = f"{case.name}: {outside:.1%} of the truth in the mask lies outside of {low:g} to {high:g}"
            self.pitfalls[f"{said}, where PSNR and MS-SSIM see nothing"] = None
        beside = scores.shift(source, truth, mask)
        if self.plan.protocol == "synthesis" and max(map(abs, beside)) > FAR:
            said = f"{case.name}: the truth's edges lie {', '.join(f'{each:.0f}' for each in beside)} voxels beside"
            self.pitfalls[f"{said} the source's: register them, or the figures measure the shift"] = None

    @property
    def keys(self) -> list[str]:
        """The figures that every way has."""
        return [key for key in FIGURES if key in self.figures[BRIDGE][0]]

    @property
    def drawn(self) -> metrics.Resamples:
        return metrics.resample(len(self.cases), [case.subject for case in self.cases])

    def tables(self) -> list[Shown]:
        """Return the tables of the page: rows of ways, cells of figures with intervals over subjects."""
        subjects = [case.subject for case in self.cases]
        over = f"in brackets {metrics.LEVEL:.0%} of bootstrap draws of {len({*subjects})} subjects"
        over = over if len({*subjects}) > 1 else "one subject, so no intervals"
        note, title = f"Scans: {len(subjects)}; {over}.", TITLES[self.plan.protocol]

        def cells(way: str, keys: Sequence[str]) -> list[str]:
            return [text(self.drawn.mean([row[key] for row in self.figures[way]])) for key in keys]

        order = [way for way in self.pictures[0] if way != TRUTH]
        first = Shown(title, ["", *(FIGURES[key][0] for key in self.keys)], [], note)
        first.rows.extend([way, *cells(way, self.keys)] for way in order)
        if self.plan.protocol != "unpaired":
            return [first, self._sites()] if self.plan.protocol == "harmonisation" else [first]
        slices = [
            subject for subject, each in zip(subjects, self.features[BRIDGE], strict=True) for _ in each
        ]
        by_slice = metrics.resample(len(slices), slices)
        first.columns.append("Frechet distance to the target")
        for row in first.rows:
            judged = np.concatenate(self.features[row[0]])
            row.append(text(metrics.feature_distance(judged, self.features[TRUTH][0], by_slice)))
        known = [key for key in OF_RECORDS if all(key in row for row in self.figures[BRIDGE])]
        alone = [[OF_RECORDS[key], *cells(BRIDGE, [key])] for key in known]
        return [first, Shown("The bridge alone", ["", "mean"], alone, note)]

    def _sites(self) -> Shown:
        """Return the accuracy of a classifier of sites, and the ICC of tissue volumes over sites."""
        own, groups, sites = self.seen[TRUTH], self.plan.groups, [*self.plan.source, "target"]
        people = sorted({each.subject for each in own})
        drawn = metrics.resample(len(people))
        labels = sorted({label for each in own for label in each.tissues})
        counts = [*groups.values()]
        grouped = bool(groups) and min(counts.count(each) for each in counts) > 1

        def row(way: str, of: Sequence[Seen], features: Table, tissues: Table) -> list[str]:
            subjects = [each.subject for each in of for _ in each.features]
            answers = [[each.site for each in of for _ in each.features]]
            answers += [[groups[subject] for subject in subjects]] if grouped else []
            right = [scores.accuracies(features, each, subjects) for each in answers]
            places = {(each.subject, each.site): values for each, values in zip(of, tissues, strict=True)}
            table = np.array([[places[person, site] for site in sites] for person in people])
            agreement = [f"{scores.icc(table[..., at]):.3f}" for at in range(len(labels))]
            return [way, *(text(drawn.mean([each[p] for p in people])) for each in right), *agreement]

        rows = []
        for way in (way for way in self.pictures[0] if way != TRUTH):
            of = [*self.seen[way], *own]
            features = np.concatenate([each.features for each in of])
            tissues = np.array([[each.tissues.get(label, 0.0) for label in labels] for each in of])
            rows.append(row(way, of, features, tissues))
            if way == SOURCE:
                by_slice = [each.site for each in of for _ in each.features]
                adjusted = (
                    scores.combat(features, by_slice),
                    scores.combat(tissues, [each.site for each in of]),
                )
                if adjusted[0] is None or adjusted[1] is None:
                    self.pitfalls["ComBat is left out, because neuroHarmonize is not installed"] = None
                else:
                    rows.append(row("ComBat of the features", of, adjusted[0], adjusted[1]))
        told = ["site accuracy", *(["group accuracy"] if grouped else [])]
        note = (
            f"By a linear discriminant of slices, fitted on other subjects; chance is {1 / len(sites):.3g}. ICC(2,1) "
            "over subjects and sites. ComBat is fitted on all subjects, so its figures are optimistic."
        )
        return Shown("Sites", ["", *told, *(f"ICC, label {each}" for each in labels)], rows, note)

    def verdicts(self) -> list[str]:
        """Return whether the bridge is better than the best way without it, of each figure, by paired intervals."""
        lines = []
        for key in self.keys:
            called, sign = FIGURES[key]
            means = {way: sign * np.mean([row[key] for row in rows]) for way, rows in self.figures.items()}
            way = max((each for each in means if not each.startswith(BRIDGE)), key=means.__getitem__)
            pairs = zip(self.figures[BRIDGE], self.figures[way], strict=True)
            gain = self.drawn.mean([sign * (bridge[key] - other[key]) for bridge, other in pairs])
            better, worse = gain["low"] > 0, gain["high"] < 0
            than = "better than" if better else "worse than" if worse else "no better than"
            one = "" if gain["low"] < gain["high"] else "; one subject says nothing of others"
            lines.append(f"{called}: the bridge is {than} {way} (gain {text(gain)}{one}).")
        return lines

    def methods(self) -> str:
        """Return a paragraph for a methods section."""
        plan, (low, high) = self.plan, self._span
        models = "; ".join(f"{name} (SHA-256 {digest[:16]})" for name, digest in self.models.items())
        mask = "the whole volume" if plan.mask == "none" else f"a mask dilated by {plan.dilated_mm or 0:g} mm"
        by = f"dual diffusion implicit bridges (Su et al., ICLR 2023) with ddib-fed {ddib_fed.__version__}"
        counted = f"{len(self.cases)}; subjects: {len({case.subject for case in self.cases})}"
        parts = [
            f"Scans: {counted}; sites: {len(plan.source)}. They were translated by {by}. Models: {models}"
        ]
        parts += [f"{site}: {settings}" for site, settings in self.settings.items()]
        parts.append(f"Subjects seen in training: {', '.join(plan.trained_on or ()) or 'none of these'}")
        parts.append(f"Unit: {plan.unit}; range of PSNR and MS-SSIM: {low:g} to {high:g}")
        if plan.protocol != "unpaired":
            parts.append(f"Figures are of {mask}; registration: {plan.registration}")
        if plan.segmentation:
            parts.append(f"Segmentation: {plan.segmentation}")
        return ". ".join([*parts, f"Intervals are {metrics.LEVEL:.0%} of bootstrap draws of subjects."])

    def write(self, tables: Sequence[Shown]) -> None:
        names = [f"{case.site} {case.name}" for case in self.cases]
        rows = [
            {"name": name, "address": "", "mark": "", "figures": [figures[key] for key in self.keys]}
            | {"pictures": [(png, f"{name}, {way}", WIDE) for way, png in pictures.items()]}
            for name, figures, pictures in zip(names, self.figures[BRIDGE], self.pictures, strict=True)
        ]
        write_page(
            self.out / "study.html",
            "pictures.html",
            title=f"{self.plan.protocol}: {' to '.join(self.models)}",
            verdict="",
            notes=[*self.verdicts(), *(f"Beware: {each}." for each in self.pitfalls), self.methods()],
            tables=[table._asdict() for table in tables],
            columns=["scan", "", *self.pictures[0], *(f"bridge: {FIGURES[key][0]}" for key in self.keys)],
            rows=rows,
            left_out=0,
            provenance=[],
        )
        write_file(self.out / "methods.txt", f"{self.methods()}\n".encode())
        said = {"verdicts": self.verdicts(), "pitfalls": [*self.pitfalls], "methods": self.methods()}
        measured = {"scans": names, "figures": self.figures, "tables": [table._asdict() for table in tables]}
        about = {
            "version": ddib_fed.__version__,
            "plan": self.plan.model_dump(mode="json"),
            "models": self.models,
        }
        write_json(self.out / "study.json", {**about, **said, **measured})


def text(interval: Mapping[str, float]) -> str:
    """Return a figure with its interval; of one subject, over which none can be drawn, the figure alone."""
    value, low, high = (cell(interval[key]) for key in ("value", "low", "high"))
    return value if interval["low"] == interval["high"] else f"{value} [{low}, {high}]"


def settings_text(record: ddib_fed.Record) -> str:
    solver, calibration = record.solver, "none"
    if record.calibration_sha256:
        calibration = f"{record.calibration_kind} {record.calibration_sha256[:16]}"
    return (
        f"{record.source_domain} to {record.target_domain}, {solver.solver}, {solver.evaluations} evaluations, share "
        f"{solver.share:g}, temperature {solver.temperature:g}, blend {solver.blend:g}, calibration {calibration}"
    )


def of_records(items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means of what the records of a volume's items say."""
    rows = [{**each["picture"], **each["latent"], **each} for each in items if "picture" in each]
    known = {key: [float(row[key]) for row in rows if row.get(key) is not None] for key in OF_RECORDS}
    return {key: float(np.mean(values)) for key, values in known.items() if values}


def matches(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern, sorted; raise InputError if there is none."""
    if paths := sorted(folder.glob(re.sub(r"\{\w+\}", "*", pattern))):
        return paths
    raise InputError(f"no file is called {folder / pattern}", hint=f"ls {shlex.quote(str(folder))}")


def find_cases(plan: StudyPlan, folder: Path, site: str) -> Iterator[Case]:
    """Yield the scans of a site, by its pattern, each with the files that belong to it."""
    pattern, mask = plan.source[site].images, plan.mask or ""
    others = {"truth": plan.target.images, "mask": mask.removeprefix("none"), "labels": plan.target.labels}
    expression = re.escape(pattern).replace(r"\*", "[^/]*")
    for key in ("subject", "session"):  # the first says it, any other repeats it
        expression = expression.replace(rf"\{{{key}\}}", f"(?P<{key}>[^/_]+)", 1)
        expression = expression.replace(rf"\{{{key}\}}", f"(?P={key})")
    for path in matches(folder, pattern):
        if (match := re.fullmatch(expression, path.relative_to(folder).as_posix())) is None:
            continue
        names = {"session": "", **match.groupdict()}
        beside = {kind: folder / other.format(**names) if other else None for kind, other in others.items()}
        for kind, file in beside.items():
            if file is not None and not file.is_file():
                hint = f"ls {shlex.quote(str(file.parent))}"
                raise InputError(f"{path}: its {kind} {file} is not there", hint=hint)
        yield Case(names["subject"], names["session"], site, path, **beside)


def partner(case: Case, path: Path, affine: Affine, shape: tuple[int, ...]) -> Volume:
    """Return a volume that belongs to a scan; raise InputError unless it lies on the same grid."""
    volume, own = scores.read(path)
    if volume.shape == shape and np.allclose(own, affine, atol=1e-2):
        return volume
    sizes = [" x ".join(map(str, each[::-1])) for each in (volume.shape, shape)]
    how = (
        "it lies elsewhere in space"
        if volume.shape == shape
        else f"it has {sizes[0]} voxels, the scan {sizes[1]}"
    )
    raise InputError(
        f"{path} is not on the grid of {case.image}: {how}",
        hint="resample it onto the scan's grid, e.g. by SimpleITK's Resample or in 3D Slicer",
    )


def without_network(source: Volume, values: Volume, pool: Volume) -> dict[str, Volume]:
    """Return a volume as two classic ways make it of the values of its site and of the target's."""
    stacks = [each.reshape(1, 1, -1, 1) for each in (source, values, pool)]
    (mean, deviation), (mean_there, deviation_there) = scores.moments(values), scores.moments(pool)
    return {
        HISTOGRAM: metrics.histogram_match(*stacks).reshape(source.shape),
        LOCATION: (source - mean) / deviation * deviation_there + mean_there,
    }


def through(model: ddib_fed.Model, volume: Volume, study: Any) -> Volume:
    """Return a volume as the autoencoder of the target gives its slices back."""
    form = model.manifest.picture
    assert form is not None  # a model of pictures
    span, planes = (form.low, form.high), study.geometry.planes(volume.T, study.plane)[0]
    height, width = planes.shape[1:3]
    sides = [-(-side // STEP) * STEP for side in (height, width)]
    room = ((0, 0), (0, sides[0] - height), (0, sides[1] - width), (0, 0))
    stack = np.moveaxis(np.pad(scores.moved(planes, span, (-1.0, 1.0)), room, mode="edge"), 3, 1).astype(
        np.float32
    )
    of_size = model if model.shape == stack.shape[1:] else model.of_scene(*sides)
    back = np.moveaxis(of_size.reconstruct(stack)[:, :, :height, :width], 1, 3)
    return scores.moved(np.ascontiguousarray(study.geometry.restored(back, study.plane).T), (-1.0, 1.0), span)


def study(path: Path, out: Path, device: str) -> tuple[Comparison, list[Shown]]:
    """Return the comparison of a plan and its tables; write its page and its files."""
    plan = load_toml(path, StudyPlan, hint="docs/formats.md has a plan to begin with")
    made = Comparison(plan, path.parent, out, device)
    made.run()
    tables = made.tables()
    made.write(tables)
    return made, tables
