"""The dial of a calibration, measured on own pictures by ordinary jobs: what each setting gives, and a proposal.

Without pairs the SSIM of a translation with the calibration's map alone stands for its nearness to the truth: over the
shipped pairs both order the shares alike (docs/calibration.md). It says nothing of a map that is wrong.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from ddib_fed import metrics
from ddib_fed.calibration.record import Calibration, Dial
from ddib_fed.client.client import Client
from ddib_fed.client.folder_run import Run
from ddib_fed.client.in_process import InProcess
from ddib_fed.client.jobs import Request
from ddib_fed.data.fitting import PictureRule, from_array
from ddib_fed.data.folder import scan
from ddib_fed.data.pictures import encode_png
from ddib_fed.engine.local_party import open_party
from ddib_fed.errors import JobFailed, LatentNotGaussian, PolicyDenied, SettingsInvalid, UsageError
from ddib_fed.evaluation.translations import Translations, read_translations
from ddib_fed.metrics import Pictures
from ddib_fed.models.sidecars import PrivacyReport
from ddib_fed.protocol.messages import JobState
from ddib_fed.record import Settings
from ddib_fed.training.calibrating import ModelSource, open_source
from ddib_fed.training.sources import own_samples

SHARES: Final = (1.0, 0.75, 0.5)
EVALUATIONS = 24
"""Of a leg: settings are compared with one another, and half the evaluations order them alike."""
COOL, BLEND = 0.9, 0.3  # the temperature and the blend that are tried
ENOUGH = 0.6  # of the largest gain over a share of 1: the largest share that has as much is proposed
TOLERATED = 0.01
"""SSIM that is no gain, and that a lower temperature may cost with the map: maps gain by it although they lose less."""
FEWEST_READ = 8  # pairs that the read-out is fitted to
MOST_KNOWN = 0.75  # share of the pairs that the read-out is fitted to; it reads the others


@dataclass(frozen=True, slots=True)
class Measured:
    """One setting of the dial, and what it gives; PSNR is in dB, and a figure that was not measured is None."""

    dial: Dial
    map_ssim: float  # with the calibration's map alone, as the correlation of edges
    edges: float
    sharpness: float  # mean change from pixel to pixel
    pictures: int  # that were translated; the others were refused
    whiteness: float | None = None  # patch correlation of the latents over that of noise
    round_trip: float | None = None
    read: float | None = (
        None  # of pictures that a linear read-out, fitted to `pairs` others, reads from their latents
    )
    pairs: int = 0
    surrogate: float | None = None  # by the model's privacy report
    psnr: float | None = None  # against the truth, where anchors show it, as the two that follow
    ssim: float | None = None
    partner: float | None = None

    @property
    def worth(self) -> float:
        return self.map_ssim if self.ssim is None else self.ssim


Kept = tuple[Translations, Pictures]
Translate = Callable[[Dial], Kept]  # own pictures under a setting: their translations, and their latents
REFUSALS: Final = (PolicyDenied, SettingsInvalid, LatentNotGaussian)
"""Errors by which a node or a model refuses a share; any other ends the measurement."""


def measure_dial(
    calibration: Calibration,
    source: ModelSource,
    target: ModelSource,
    *,
    client: Client | None = None,
    pictures: str | Path | None = None,
    anchors: tuple[Path, Path] | None = None,
    limit: int = 24,
    least_share: float = 0.0,
    threads: int = 1,
) -> tuple[list[Measured], Dial]:
    """Measure what each setting of the dial gives under a calibration; return the figures and the proposed setting.

    Pictures of the source's domain are translated there and back at each share, 24 evaluations a leg.

    Parameters
    ----------
    calibration
        The calibration that is measured; a node's jobs must run under it.
    source, target
        A model, its name if it ships, or its folder. With `client` the source's model, and INSTITUTION/DOMAIN.
    client
        Client of the institution's source node, whose jobs translate; without it the models do in this process.
    pictures, limit
        Pictures of the source's domain: a folder, or the name of a domain that ships, by default the model's; at most
        so many.
    anchors
        Instead two folders with pictures of the same things in both domains, by the same file names: the truth counts.
    least_share
        Smallest share that is tried, as [policy] least_share of both nodes allows it.
    threads
        Threads of torch in one process.

    Returns
    -------
    rows, dial
        A `Measured` for each setting, and the setting that is proposed; `Calibration.dialled` puts it in.

    Raises
    ------
    CalibrationModel, UsageError, JobFailed
        The source's model cannot encode under the calibration as it is trained now; it is of latents, and has no map of
        pictures to compare with; jobs ran under another one.

    Examples
    --------
    >>> from ddib_fed import Calibration, measure_dial
    >>> calibration = Calibration.open("satellite-as-relief")
    >>> rows, dial = measure_dial(calibration, "satellite-as-relief", "relief", limit=4)  # doctest: +SKIP
    """
    bundle = open_source(source)
    if client is None:
        encoder, decoder = (open_party(each, threads=threads) for each in (bundle, open_source(target)))
        client = InProcess(encoder, decoder)
        target = client.target
    with tempfile.TemporaryDirectory() as folder:
        root, truth = Path(folder), None
        if anchors is not None:
            root, truth = anchors
            entries = scan(root).entries
            paths = [entry.path for entry in entries[:: -(-len(entries) // limit)]]
        else:
            samples = own_samples(bundle.manifest, None if pictures is None else str(pictures), limit, limit)
            some = samples.held_out if 2 * len(samples.held_out) > limit else samples.train
            paths = write_pictures(some, metrics.picture_rule(bundle.manifest), root)
        translate = translating(client, str(target), paths, root, calibration, truth)
        return compare_settings(translate, [s for s in SHARES if s >= least_share], bundle.privacy)


def compare_settings(
    translate: Translate, shares: Sequence[float], privacy: PrivacyReport | None
) -> tuple[list[Measured], Dial]:
    """Measure each setting over the pictures that all of them have; return the figures and the proposed setting.

    The first share that is refused, or is refused for more than half of the pictures, ends the scan.
    """
    readings = privacy.readings if privacy else ()
    known = {each.share: each.read.value for each in readings if each.depth == 1.0 and each.soften_sigma}

    def measured() -> list[Measured]:
        return [_row(dial, *each, known.get(dial.share)) for dial, each in kept.items()]

    kept: dict[Dial, Kept] = {}
    most = 0
    for dial in (Dial(share=share) for share in shares):
        try:
            tried = _over_same({**kept, dial: translate(dial)})
        except REFUSALS:
            if not kept:
                raise
            break
        most = most or len(tried[dial][0].names)
        if 2 * len(tried[dial][0].names) < most:
            break
        kept = tried
    share = _largest_with_enough(measured())
    cool = Dial(share=share, temperature=COOL)
    kept = _over_same({**kept, cool: translate(cool)})
    rows = measured()
    chosen = next(row for row in rows if row.dial.share == share)
    room = TOLERATED if chosen.ssim is None else 0.0
    if rows[-1].worth >= chosen.worth - room:
        chosen = rows[-1]
    translations = kept[chosen.dial][0]
    assert translations.mapped is not None
    dial = chosen.dial.model_copy(update={"blend": BLEND})
    blended = (1.0 - BLEND) * translations.translated + BLEND * translations.mapped
    rows.append(_row(dial, replace(translations, translated=blended)))
    if rows[-1].worth >= chosen.worth:
        chosen = rows[-1]
    if chosen.ssim is not None:  # where the truth says that the network adds nothing, no latent need cross
        rows.append(_row(Dial(blend=1.0), replace(translations, translated=translations.mapped)))
        if rows[-1].worth > chosen.worth:
            chosen = rows[-1]
    return rows, chosen.dial


def _over_same(kept: Mapping[Dial, Kept]) -> dict[Dial, Kept]:
    """Keep of each setting the pictures that all settings have."""
    names = set.intersection(*(set(translations.names) for translations, _ in kept.values()))
    same: dict[Dial, Kept] = {}
    for dial, (translations, latents) in kept.items():
        where = [at for at, name in enumerate(translations.names) if name in names]
        same[dial] = translations.of(where), latents[where]
    return same


def _largest_with_enough(rows: Sequence[Measured]) -> float:
    gains = [row.worth - rows[0].worth for row in rows]
    most = max(gains)
    if most < TOLERATED:
        return rows[0].dial.share
    return next(row.dial.share for row, gain in zip(rows, gains, strict=True) if gain >= ENOUGH * most)


def _row(
    dial: Dial, translations: Translations, latents: Pictures | None = None, surrogate: float | None = None
) -> Measured:
    translated, mapped = translations.translated, translations.mapped
    assert mapped is not None
    pairs = round(MOST_KNOWN * len(translations.names))
    round_trip = whiteness = read = psnr = ssim = partner = None
    if latents is not None:
        whiteness = metrics.whiteness(torch.from_numpy(latents)).ratio
        read = _read(latents, translations, pairs)
        if translations.back is not None and translations.source is not None:
            round_trip = float(metrics.psnr(translations.back, translations.source).mean())
    if translations.truth is not None:
        same = metrics.compare(translated, translations.truth)
        psnr, ssim = float(same.psnr.mean()), float(same.ssim.mean())
        partner = float(metrics.hits_by_pixels(translated, translations.truth).mean())
    return Measured(
        dial,
        float(metrics.ssim(translated, mapped).mean()),
        float(metrics.structure(mapped, translated).edge_correlation.mean()),
        float(metrics.sharpness(translated).mean()),
        len(translated),
        whiteness, round_trip, read, pairs, surrogate, psnr, ssim, partner,
    )  # fmt: skip


def _read(latents: Pictures, translations: Translations, count: int) -> float | None:
    """Return the PSNR in dB of pictures that a read-out of `count` pairs reads from the latents of the others."""
    assert translations.source is not None
    assert translations.mapping is not None
    units = translations.mapping.source
    x = units.apply(translations.source)
    if count < FEWEST_READ or len(latents) - count < 2 or latents.shape != x.shape:
        return None
    inverse = metrics.by_frequency(latents[:count], x[:count], 1.0)
    read = units.undo(inverse(latents[count:])).clip(-1.0, 1.0)
    return float(metrics.psnr(read, translations.source[count:]).mean())


def write_pictures(pictures: Pictures, rule: PictureRule, folder: Path) -> list[Path]:
    """Write pictures (N, C, H, W) in [-1, 1] as files of the raw values of a model's rule."""
    paths = []
    slope, intercept = rule.output_scale
    for number, picture in enumerate(pictures):
        numbers = from_array(picture, rule)
        plain = (slope, intercept) == (1.0, 0.0)
        paths.append(folder / f"{number:03}{'.png' if plain else '.npy'}")
        if plain:
            paths[-1].write_bytes(encode_png(numbers))
        else:
            np.save(paths[-1], (slope * numbers + intercept).astype(np.float32))
    return paths


def translating(
    client: Client,
    target: str,
    pictures: Sequence[Path],
    root: Path,
    calibration: Calibration,
    truth: Path | None = None,
) -> Translate:
    """Translate files below a folder by jobs of a client, there and back, and read the results.

    The returned function leaves out pictures that are refused. It raises any other error of a job or a picture, the
    first refusal where all pictures are refused, and JobFailed if they are of another calibration.
    """
    if calibration.alone is None:
        raise UsageError(
            "a rotation of latents has no map of pictures, which the dial is measured against",
            hint="ddib translate --share 0.75 --set temperature=0.9",
        )

    def translate(dial: Dial) -> tuple[Translations, Pictures]:
        settings = Settings(evaluations=EVALUATIONS, **dial.model_dump())
        own = None if client.keeps_jobs else calibration  # nodes have agreed on it
        request = Request(settings, cycle=True, keep_latents=True, left=(), calibration=own)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(client, target, Path(folder), request, skip_bad=True)
            run.open_below(root, pictures)
            run.read()
            run.translate()
            failed = [job for job in run.jobs if job.state is JobState.FAILED]
            errors = [job.error.error(client.hop) for job in failed if job.error is not None]
            errors += [each.error for each in (*run.left_out, *run.failed)]
            for error in errors:
                if not (run.results and isinstance(error, REFUSALS)):
                    raise error
            run.require_translated()
            translations = read_translations(
                Path(folder), source=root, truth=truth, mapping=calibration.alone
            )
            if translations.mapping is None:
                raise JobFailed(
                    "the jobs ran under another calibration than the one that is measured",
                    hint="ddib calibrate list; remove the one that is not wanted",
                )
            latents = [np.load(Path(folder) / f"{name}.latent.npy") for name in translations.names]
        return translations, np.concatenate(latents)

    return translate
