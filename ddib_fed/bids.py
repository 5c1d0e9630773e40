"""`ddib bids`: the images of a BIDS dataset become a derivative dataset (Brain Imaging Data Structure 1.10).

OUT/dataset_description.json                                  what made it, and of which dataset
OUT/sub-01/anat/sub-01_desc-ddib_T2w.nii.gz, and .json        a result, and its sources with the record
OUT/sub-01/anat/sub-01_desc-ddib_mask.nii.gz                  0 where nothing was translated
OUT/.ddib                                                     results as `ddib translate` writes them
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.errors import AlreadyExists, InputError, UsageError
from ddib_fed.files import read_json, write_json
from ddib_fed.terminal import say

VERSION: Final = "1.10.0"
DESCRIPTION: Final = "dataset_description.json"
WORK: Final = ".ddib"
NO_SUFFIX: Final = ("CT",)  # that BIDS has yet, so that its validator leaves such files out
_NAME: Final = re.compile(
    r"(?P<entities>sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9+]+)*)_(?P<suffix>[A-Za-z0-9]+)(?P<end>\.nii(?:\.gz)?)"
)


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a dataset; `folder` is of its session and data type, below the root."""

    path: Path
    folder: Path
    entities: str
    suffix: str
    end: str

    @property
    def labels(self) -> dict[str, str]:
        """Of its entities, such as ``{"sub": "01", "ses": "a"}``."""
        return dict(entity.split("-", 1) for entity in self.entities.split("_"))

    def result(self, suffix: str) -> Path:
        """Return where a derived image lies below its dataset, without the end of its name."""
        kept = "_".join(f"{key}-{label}" for key, label in self.labels.items() if key != "desc")
        return self.folder / f"{kept}_desc-ddib_{suffix}"


def images(root: Path) -> Iterator[Image]:
    """Yield the images of the subjects of a dataset, in order."""
    for path in sorted([*root.glob("sub-*/*/*.nii*"), *root.glob("sub-*/ses-*/*/*.nii*")]):
        if (match := _NAME.fullmatch(path.name)) is not None:
            yield Image(path, path.parent.relative_to(root), *match.group("entities", "suffix", "end"))


@click.command(
    epilog="\b\nExample:\n  ddib bids study study/derivatives/ddib participant --suffix T1w --as T2w "
    "--to south.example/brain-t2"
)
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.argument("level", metavar="participant", type=click.Choice(["participant"]))
@options.option("target --to INSTITUTION/DOMAIN", "Target, as listed by `ddib domains`.")
@options.option("source_model --source MODEL", "Without nodes: model that encodes, its name or folder.", str)
@options.option("target_model --target MODEL", "Without nodes: model that decodes.", str)
@options.option("--suffix SUFFIX", "Of the images to translate, such as T1w.", str, required=True)
@options.option(
    "new --as SUFFIX", "Of the results, such as T2w: what the target's images are.", str, required=True
)
@options.option("subjects --participant-label LABEL", "Only this subject; may be repeated.", multiple=True)
@options.option("sessions --session-label LABEL", "Only this session; may be repeated.", multiple=True)
@options.option(
    "skull --skull-stripped",
    "Whether the images are without skull; default: what their sidecars say.",
    ("yes", "no"),
)
@options.QUALITY
@options.EVALUATIONS
@options.SHARE
@options.INTENSITY
@options.FORCE
@options.option(
    "--skip-bad", "Leave out images that are unreadable or refused, list them, and end with exit code 15."
)
@options.OUTCOME
@options.PROFILE
@options.DEVICE
@options.SET
def bids(
    root: Path,
    out: Path,
    level: str,
    target: str | None,
    source_model: str | None,
    target_model: str | None,
    suffix: str,
    new: str,
    subjects: tuple[str, ...],
    sessions: tuple[str, ...],
    skull: str | None,
    intensity: str,
    force: bool,
    skip_bad: bool,
    profile_path: Path | None,
    device: str,
    settings: dict[str, Any],
    **given: Any,
) -> None:
    """Translate the images of a BIDS dataset into a derivative dataset.

    Each image of ROOT that ends on the suffix becomes one of the same geometry in OUT, with entities and folders as in
    ROOT and `desc-ddib`; the sidecar has its source and the record. No header and no sidecar of ROOT leaves this
    machine. After an interruption the same command resumes.
    """
    from ddib_fed.cli.folder_report import ConsoleProgress, report_run
    from ddib_fed.cli.translate import where_to

    del level
    options.refuse_settings(settings, ("pairs", "limit"), "is for classes", hint="omit it")
    via, to = where_to(target, source_model, target_model, settings, None, device, profile_path)
    name = check_dataset(root)
    chosen, look = (
        [image for image in images(root) if image.suffix == suffix],
        f"ls {shlex.quote(str(root))}/sub-*",
    )
    for key, labels in (("sub", subjects), ("ses", sessions)):
        wanted = {label.removeprefix(f"{key}-") for label in labels}
        chosen = [image for image in chosen if not wanted or image.labels.get(key) in wanted]
        if missing := sorted(wanted - {image.labels.get(key) for image in chosen}):
            raise InputError(f"{root} has no {suffix} image of {key}-{missing[0]}", hint=look)
    if not chosen:
        there = sorted({image.suffix for image in images(root)})
        hint = f"--suffix {there[0]}" if there else look
        raise InputError(
            f"{root} has no {suffix} image; it has {', '.join(there) or 'no image at all'}", hint=hint
        )
    stripped = {image.path: is_stripped(image, skull) for image in chosen}
    check_output(out)
    run = ddib_fed.Run(
        via, to, out / WORK, options.asked(settings, **given), ConsoleProgress(), force, skip_bad
    )
    run.open([image.path for image in chosen], intensity=intensity)
    run.read()
    describe(root, out, name, new)
    try:
        run.translate()
    finally:
        place(run, out, root, chosen, new, stripped)
    report_run(run, run.page())
    say(f"dataset: {out}, {len(run.written)} {new} images")
    run.conclude()


def check_dataset(root: Path) -> str:
    """Return the name of a dataset; raise InputError unless it is one."""
    described = read_json(root / DESCRIPTION)
    if not isinstance(described, dict) or not isinstance(described.get("Name"), str):
        raise InputError(
            f"{root} is no BIDS dataset: {DESCRIPTION} {'has no Name' if described else 'is not there'}",
            hint="name the folder that holds it; https://bids-specification.readthedocs.io says what it has",
        )
    return str(described["Name"])


def is_stripped(image: Image, skull: str | None) -> bool:
    """Return what the option or the image's sidecar says: BIDS requires it of a derivative, and none may assume it."""
    if skull is not None:
        return skull == "yes"
    sidecar = read_json(image.path.with_name(image.path.name.removesuffix(image.end) + ".json")) or {}
    if not isinstance(said := sidecar.get("SkullStripped"), bool):
        raise UsageError(
            f"{image.path}: its sidecar does not say whether it is skull-stripped",
            hint="add --skull-stripped yes or no",
        )
    return said


def check_output(out: Path) -> None:
    """Raise AlreadyExists where something else than our results lies."""
    if not out.exists() or not any(out.iterdir()):
        return
    made = (read_json(out / DESCRIPTION) or {}).get("GeneratedBy", [{}])
    if not any(each.get("Name") == "ddib-fed" for each in made):
        raise AlreadyExists(f"{out} holds what ddib bids did not write", hint="another OUT")


def describe(root: Path, out: Path, name: str, suffix: str) -> None:
    """Write what makes the derivative dataset, and what its validator is to leave out."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / DESCRIPTION,
        {
            "Name": f"{name}, translated by ddib-fed",
            "BIDSVersion": VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "ddib-fed", "Version": ddib_fed.__version__}],
            "DatasetLinks": {"raw": os.path.relpath(root, out)},
        },
    )
    text = "Images that diffusion models made of others (DDIB, ddib-fed), not acquired. Each sidecar has its source.\n"
    (out / "README").write_text(text, encoding="utf-8")
    ignored = [WORK, f"*_{suffix}.*"] if suffix in NO_SUFFIX else [WORK]
    (out / ".bidsignore").write_text("\n".join([*ignored, ""]), encoding="utf-8")


def place(
    run: ddib_fed.Run,
    out: Path,
    root: Path,
    chosen: Sequence[Image],
    suffix: str,
    stripped: Mapping[Path, bool],
) -> None:
    """Give the results their names of BIDS."""
    by_path = {image.path: image for image in chosen}
    for study in run.written:
        image = by_path[study.given]
        made = out / image.result(suffix)
        made.parent.mkdir(parents=True, exist_ok=True)
        for file, end in zip(study.files, (suffix, "mask"), strict=False):
            _link(file, out / f"{image.result(end)}{image.end}")
        record = study.provenance
        write_json(
            made.with_name(f"{made.name}.json"),
            {
                "Description": f"Synthetic: translated from {record.source_domain} to {record.target_domain} by "
                "diffusion models (DDIB), not acquired",
                "SkullStripped": stripped[image.path],
                "Sources": [f"bids:raw:{image.path.relative_to(root).as_posix()}"],
                "DDIB": read_json(study.record),
            },
        )


def _link(file: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(file, to)
        return
    shutil.copyfile(file, to)  # another file system, or one without links
