"""Opens the pictures that a training configuration names: a shipped domain, a folder, or arrays that are given."""

from __future__ import annotations

from collections.abc import Callable

from ddib_fed.errors import SettingsInvalid
from ddib_fed.samples.scans import Progress
from ddib_fed.training.config import PictureTrainConfig
from ddib_fed.training.pictures.folder import folder_source
from ddib_fed.training.pictures.sources import PictureSource, shipped_source


def open_source(
    config: PictureTrainConfig,
    source: PictureSource | None = None,
    *,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> PictureSource:
    """The pictures that `config` names, or those given, checked against it.

    Args:
        config: The run.
        source: Pictures in memory, when the config names none.
        say: Told what a folder is like and what is odd about it, a sentence each.
        progress: Called with (pictures looked at, in all) of a folder.

    Raises:
        DomainNotFound: There is no such domain.
        ExtraMissing: The package that carries the domain's pictures is not installed.
        InputError: The pictures cannot be used.
        SettingsInvalid: The config names pictures and others were given, or none at all.
    """
    named = config.domain is not None or config.images is not None
    if named == (source is not None):
        raise SettingsInvalid(
            "give either a domain or a folder in the settings, or the pictures themselves",
            hint="one of the three",
        )
    if source is None:
        source = _named(config, say or _nothing, progress)
    if config.size is not None and source.shape[1:] != (config.size, config.size):
        raise SettingsInvalid(
            f"the pictures of {source.name} are {source.shape[2]} x {source.shape[1]}, not {config.size}",
            hint="leave size out: it follows from the pictures",
        )
    if config.classes is not None and source.labels is None:
        raise SettingsInvalid(f"the pictures of {source.name} have no classes", hint="leave classes out")
    if config.colours != "rgb" and source.shape[0] != 3:
        raise SettingsInvalid(f"the pictures of {source.name} are grey", hint="leave colours out")
    return source


def _nothing(_: str) -> None:
    """Say nothing."""


def _named(
    config: PictureTrainConfig, say: Callable[[str], None], progress: Progress | None
) -> PictureSource:
    if config.domain is not None:
        return shipped_source(config.domain)
    return folder_source(config, say=say, progress=progress)
