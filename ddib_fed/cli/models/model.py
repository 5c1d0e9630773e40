"""`ddib model`: train, sample, import and show models. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.bars import bar
from ddib_fed.cli import options
from ddib_fed.cli.help import group
from ddib_fed.cli.models.importing import import_
from ddib_fed.cli.models.listing import get, list_
from ddib_fed.cli.models.opening import open_model
from ddib_fed.cli.models.sampling import interpolate, sample
from ddib_fed.cli.models.train import train
from ddib_fed.cli.models.tune import figures, gate, said, tune
from ddib_fed.cli.output import lines, outcome
from ddib_fed.errors import AlreadyExists

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.models.dp import DifferentialPrivacy
    from ddib_fed.models.manifest import Distilled
    from ddib_fed.models.privacy import Figure, Membership, PrivacyReport, Reading


@group(
    context_settings={"help_option_names": ["-h", "--help"]},
    hooks={"distil": "ddib_fed.lab.commands:distil"},
)
def model() -> None:
    """List, copy, train, sample, show and import models."""


for each in (list_, get, train, tune, gate, sample, interpolate, import_):
    model.add_command(each)


@model.command()
@options.FORMAT
def presets(*, output_format: str) -> None:
    """List the networks for pictures, with their size, parameters and least memory for training."""
    from ddib_fed.cli.output import print_json
    from ddib_fed.training.config import preset_costs

    rows = preset_costs()
    if output_format == "json":
        print_json(rows)
        return
    lines({name: _preset(row) for name, row in rows.items()})


def _preset(row: dict[str, Any]) -> str:
    size, parameters, memory = row["size"], row["parameters"] / 1e6, row["memory"] / 2**30
    needs = f"{parameters:.1f} M parameters, {memory:.2f} GiB and activations"
    return f"{size} x {size}, {needs}, batch {row['batch']}: {row['purpose']}"


@model.command()
@options.MODEL
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.pt",
    help="The checkpoint; the public scripts look for models/synthetic/log2D0/model000000.pt and the like.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@options.OUTCOME
def export(*, which: str, out: Path, force: bool) -> None:
    """Write a model of the public DDIB code's 2-D network as that code's checkpoint, and print its flags.

    `ddib model import --synthetic` reads it back.
    """
    from ddib_fed.files import write_file
    from ddib_fed.models.exporting import public_checkpoint

    if out.exists() and not force:
        raise AlreadyExists(f"{out} exists", hint="choose another file, or --force")
    bundle = open_model(which)
    content, flags = public_checkpoint(bundle)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, content)
    norm = bundle.manifest.normalisation
    lines({"checkpoint": str(out), "flags": flags, "units": _units(bundle)})
    outcome(checkpoint=out, flags=flags, digest=bundle.digest, mean=norm.mean, std=norm.std)


def _units(bundle: Bundle) -> str:
    norm = bundle.manifest.normalisation
    if (norm.mean, norm.std) == (0.0, 1.0):
        return "those of the data"
    return f"(data - {norm.mean}) / {norm.std}: the public code does not scale"


@model.command()
@options.MODEL
@options.FORMAT
def show(*, which: str, output_format: str) -> None:
    """Verify a model and print its manifest.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    from ddib_fed.cli.output import print_json
    from ddib_fed.metrics.sample_verdict import SampleVerdict

    bundle = open_model(which)
    manifest = bundle.manifest.model_dump(mode="json")
    if output_format == "json":
        steps = None if bundle.tuned is None else bundle.tuned.figures()
        own = None if bundle.allowances is None else bundle.allowances.figures()
        attacked = None if bundle.privacy is None else bundle.privacy.values()
        print_json({"digest": bundle.digest, **manifest, "steps": steps, "gate": own, "privacy": attacked})
        return
    training = manifest.pop("training")
    manifest.pop("distilled")
    distilled = bundle.manifest.distilled
    verdict = SampleVerdict.of_figures(bundle.manifest.training.figures)
    if bundle.manifest.differential_privacy is not None:
        manifest["differential_privacy"] = protection(bundle.manifest.differential_privacy)
    flat = {key: _text(value) for key, value in manifest.items() if value not in (None, "", [])}
    flat["sample_shape"] = " x ".join(map(str, manifest["sample_shape"]))
    lines(
        {
            "digest": bundle.digest,
            **flat,
            **({} if distilled is None else distilled_lines(distilled)),
            **{f"training {key}": _text(value) for key, value in training.items()},
            **(
                {}
                if bundle.tuned is None
                else {"steps": bundle.tuned.digest(), **dict(figures(bundle.tuned))}
            ),
            **({} if verdict is None else {"samples": verdict.sentence(bundle.manifest.training.steps)}),
            "gate": said(bundle.allowances)
            if bundle.allowances is not None
            else "fixed bounds alone"
            if bundle.manifest.sample_kind == "picture"
            else "fixed bounds, and points of each set are encoded again",
            **(
                {}
                if bundle.privacy is None
                else {f"privacy, {key}": text for key, text in attacked_lines(bundle.privacy)}
            ),
        }
    )


@model.command()
@click.argument("folder", metavar="MODEL", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Pictures of the model's domain, at least eight.",
)
@click.option("--skip-bad", is_flag=True, help="List unreadable pictures, and continue.")
@options.FORMAT
def thresholds(*, folder: Path, images: Path, skip_bad: bool, output_format: str) -> None:
    """Measure how much structure unrelated pictures share, and store it in a model's bundle.

    Translations whose edges or values agree with their source no better than that are marked as doubtful.
    Training does this by itself; this command is for models that were imported, or trained by an older release.
    MODEL is the bundle's folder. Its weights do not change; its digest does.
    """
    from ddib_fed.cli.output import print_json
    from ddib_fed.metrics.thresholds import put_thresholds

    with bar("looking at files") as show:
        found = put_thresholds(
            folder, images, skip_bad=skip_bad, progress=lambda done, total: show(done, total, "")
        )
    measured = found.manifest.structure
    assert measured is not None
    said = {"digest": found.digest, **measured.model_dump()}
    if output_format == "json":
        print_json(said)
        return
    lines({key: _text(value) for key, value in said.items()})


def protection(spent: DifferentialPrivacy) -> str:
    start = f"; not counting what its initial weights {spent.initial[:16]} spent" if spent.initial else ""
    return f"{spent}{start}. Not covered: pictures that are translated, several samples of one person, normalisation"


def _text(value: object) -> str:
    if isinstance(value, dict):
        said = {key: item for key, item in value.items() if item not in (None, "", [])}
        return ", ".join(f"{key} {_text(item)}" for key, item in said.items())
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def distilled_lines(found: Distilled) -> dict[str, str]:
    """What a distilled model was made from and how accurate it is, line by line."""
    rows = {
        "distilled from": f"{found.teacher_name}, digest {found.teacher[:16]}",
        "errors": f"on the grid {found.grid}: distances from its {found.solver} with {found.evaluations} evaluations, "
        f"in deviations of the data: median, and what 95 % of {found.samples:,} held-out samples stay below",
    }
    for error in found.errors:
        plural = "evaluation" if error.evaluations == 1 else "evaluations"
        rows[f"{error.evaluations} {plural}"] = (
            f"encode {error.encode:g}, {error.encode_p95:g}; decode {error.decode:g}, {error.decode_p95:g}; "
            f"there and back {error.round_trip:g}"
        )
    return rows


def attacked_lines(found: PrivacyReport) -> list[tuple[str, str]]:
    """A line for each kind of latent and each attack."""
    rows = [(_name(each), _read(each, found.sample_kind)) for each in found.readings]
    rows += [(f"membership, softened {each.soften_sigma:g}", _told(each)) for each in found.membership]
    if found.copies is not None:
        near, held_out = found.copies.samples.value, found.copies.held_out.value
        said = (
            f"nearest at {near:.2f} of the distance from the mean picture, held-out pictures at {held_out:.2f}; "
            f"{found.copies.near.value:.0%} nearer than 99 in 100 held-out pictures"
        )
        rows.append(("training pictures drawn again", said))
    return [
        ("attacked", f"{found.attacked} latents, of as many candidates; {found.known} samples known"),
        *rows,
    ]


def _name(each: Reading) -> str:
    softened = f"softened {each.soften_sigma:g}" if each.soften_sigma else "not softened"
    return f"{each.encoder}, depth {each.depth:g}, {softened}"


def _read(each: Reading, kind: str) -> str:
    unit = "dB" if kind == "picture" else "deviations off"
    said = (
        f"correlation {_number(each.correlation)}, found by it {_number(each.found_by_correlation)}; {each.surrogate} "
        f"reads {_number(each.read)} {unit}, found {_number(each.found_by_reading)}"
    )
    if each.model_read is None or each.found_by_model is None:
        return said
    return f"{said}; a model of the attacker {_number(each.model_read)} {unit}, found {_number(each.found_by_model)}"


def _told(each: Membership) -> str:
    return f"area under the curve by the latent's norm {_number(each.norm)}, by the loss {_number(each.loss)}"


def _number(figure: Figure) -> str:
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"
