"""Opens what a command was given: studies of the field's formats, as the node's model takes them, and plain files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed.client.files import LeftOut, check_names, find_items, ignored_line
from ddib_fed.client.folder_run import FolderRun, RunOptions
from ddib_fed.client.views import Domains
from ddib_fed.engine.record import MOST_TILES
from ddib_fed.errors import UsageError
from ddib_fed.formats.recognition import TAKEN, Recognised, files_below, is_larger, recognise
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.formats.study import Bad, Choice

LEAST_TILE = 8
"""Pixels of a tile's side."""


def open_run(
    files: Sequence[Path], reading: Mapping[str, Any], options: RunOptions, *, detach: bool = False
) -> FolderRun:
    """The run of the files of a command, none of which is read yet; `reading` has `intensity`, `slices` and `tile`."""
    run, bad = FolderRun(options), list[tuple[Path, Any]]()
    choice = open_studies(files, reading, options, bad=bad, detach=detach)
    taken, without = list[str](), list[Path]()
    if choice is not None:
        if detach:
            raise UsageError(
                f"--detach: {choice.studies.origins[0].given} is put together when its items are there",
                hint="leave --detach out; after an interruption the same command resumes",
            )
        if line := ignored_line(choice.ignored):
            say(line, err=True)
        files, run.studies = choice.plain, choice.studies
        run.left_out = [LeftOut.of(path, error) for path, error in bad]
        for origin in choice.studies.origins:
            taken += [*origin.outputs, *origin.beside, f"{origin.name}.json"]
            without += origin.inputs
    if files:
        run.items, said = find_items(files, options.out, taken=taken, without=without)
        check_names(run.items, options.out)
        for line in said:
            say(line, err=True)
    return run


def open_studies(
    files: Sequence[Path],
    reading: Mapping[str, Any],
    options: RunOptions,
    *,
    bad: Bad | None = None,
    detach: bool = False,
) -> Choice | None:
    """The studies among the files of a command, and the rest, which is translated as it is; None without studies."""
    from ddib_fed.formats.intensity import AUTO, IntensityRule

    found = recognise(files, options.out)
    if reading["intensity"] != AUTO:
        IntensityRule.parse(reading["intensity"])  # before the node is asked
    auto, source = reading["tile"] == "auto", None
    of_maps = of_pictures = _tile(reading["tile"])
    pictures = auto and not detach and (any(each.is_picture for each in found.studies) or _any_picture(found))
    if pictures or any(not each.is_picture for each in found.studies):
        with options.progress.opened(options.profile) as client:
            source = client.domains(own_alone=True)
    if auto and source is not None and len(source.sample_shape) == 3:
        of_maps = (source.sample_shape[1], source.sample_shape[2])
        of_pictures = of_maps if source.tiles and not detach else None
    most = MOST_TILES if auto else None
    if of_pictures is not None and found.plain:
        tile = of_pictures
        found = recognise(files, options.out, lambda path: is_larger(path, tile, most))
    if not found.studies:
        return None
    from ddib_fed.formats.opening import open_recognised
    from ddib_fed.formats.study import Options

    slices = "axial" if source is None else _slices(reading["slices"], source)
    intensity = reading["intensity"] if source is None else _intensity(reading["intensity"], source)
    own_rule = "" if source is None else source.intensity
    return open_recognised(found, Options(intensity, slices, of_maps, of_pictures, most, own_rule), bad=bad)


def _tile(text: str) -> tuple[int, int] | None:
    if text in {"auto", "none"}:
        return None
    if not text.isdecimal() or not LEAST_TILE <= int(text) <= 65536:
        raise UsageError(f"--tile {text!r} is no size", hint="--tile 256, --tile auto or --tile none")
    return int(text), int(text)


def _any_picture(found: Recognised) -> bool:
    """Whether a plain file might be larger than a model, which is then asked for its size."""
    files: Iterable[Path] = (
        file for path in found.plain for file in (files_below(path, None).files if path.is_dir() else (path,))
    )
    return any(
        path.suffix.lower() in TAKEN and is_larger(path, (LEAST_TILE, LEAST_TILE), None) for path in files
    )


def _intensity(asked: str, source: Domains) -> str:
    """The rule that was asked for; as the source's model says it, where it was trained with the same."""
    from ddib_fed.formats.intensity import AUTO, IntensityRule

    if not source.intensity or asked == AUTO:
        return asked
    rule, own = IntensityRule.parse(asked), IntensityRule.parse(source.intensity)
    if rule == own:
        return source.intensity
    model = f"the model of {source.institution}/{source.domain}"
    if own.name == "hu" and rule.name != "values":
        raise UsageError(
            f"{model} was trained in Hounsfield units, and --intensity {asked} sends other numbers",
            hint="leave --intensity out; --intensity values, if the file's own numbers are Hounsfield units",
        )
    say(f"warning: --intensity {asked}: {model} was trained with {source.intensity}", err=True)
    return asked


def _slices(asked: str, source: Domains) -> str:
    """The plane that was asked for, or the one that the source's model was trained with."""
    from ddib_fed.formats.intensity import AUTO

    if asked == AUTO:
        return source.slices or "axial"
    if source.slices not in {"", asked}:
        model = f"the model of {source.institution}/{source.domain}"
        say(f"warning: --slices {asked}: {model} was trained on {source.slices} slices", err=True)
    return asked
