"""Learning the latents of an autoencoder: pictures become latents once, and are learned as pictures are."""

import hashlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddib_fed.data.folder import Progress, expand
from ddib_fed.engine.model import Codec, out_of_network
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.bundle import Bundle, autoencoder_folder, load_autoencoder
from ddib_fed.models.manifest import LatentSpace
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.config import LibraryConfig
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.pictures import PictureTask, Start, augmented
from ddib_fed.training.sources import Floats, PictureSource, Pixels

TOGETHER = 16  # pictures that are encoded at once
AUGMENTED = 16  # copies of each picture, of which the first is the picture itself, with `augment`


class Behind(NamedTuple):
    """The autoencoder that a run learns the latents of, and its folder."""

    folder: Path
    bundle: Bundle

    def space(self, shape: tuple[int, ...], units: Normalisation | None = None) -> LatentSpace:
        """Return the latent space of samples of this shape."""
        network, factor = self.bundle.manifest.network, self.bundle.factor
        assert isinstance(network, LibraryConfig)
        return LatentSpace(
            shape=(network.latent_channels, *(side // factor for side in shape[1:])),
            autoencoder_sha256=self.bundle.manifest.autoencoder_sha256,
            normalisation=units or Normalisation(),
        )


def open_autoencoder(config: TrainConfig, source: PictureSource) -> Behind | None:
    """Open the autoencoder of the config or of its initial model; raise unless it takes the pictures."""
    which = config.latent or config.init
    folder = None if which is None else autoencoder_folder(str(which), required=config.latent is not None)
    if folder is None:
        return None
    behind = Behind(folder, load_autoencoder(folder))
    made, factor = behind.bundle.manifest, behind.bundle.factor
    channels, *sides = source.shape
    others = channels != made.sample_shape[0] or len(source.shape) != len(made.sample_shape)
    wrong = {
        f"pictures of {channels} channels, and the autoencoder takes {made.sample_shape[0]}": others,
        f"pictures of {source.shape[1:]} do not divide by {factor}, as the autoencoder needs": any(
            side % factor for side in sides
        ),
        "pictures become latents once, before the first step, so that no windows are cut": config.crop,
    }
    for what, there in wrong.items():
        if there:
            raise SettingsInvalid(f"{which}: {what}", hint="ddib model train --help: --latent, --size")
    return behind


def as_latents(
    config: TrainConfig,
    source: PictureSource,
    behind: Behind,
    units: Normalisation,
    device: torch.device,
    progress: Progress | None,
) -> PictureSource:
    """Return the latents of (mapped) pictures, not normalised yet; of those that `flip` and `augment` make too."""
    codec = Codec(behind.bundle, behind.space(source.shape), device)

    def encoded(pixels: Pixels, done: int, copy: int = 0) -> Floats:
        latents = []
        for first in range(0, len(pixels), TOGETHER):
            pictures = expand(pixels[first : first + TOGETHER])
            mapped = units.mapped(augmented(pictures, config, copy, first) if copy else pictures)
            x = torch.from_numpy(behind.bundle.manifest.normalisation.apply(mapped))
            latents.append(codec.encode(x.to(device)).cpu().numpy())
            if progress is not None:
                progress(min(done + first + TOGETHER, total), total)
        return np.concatenate(latents)

    sides = [source.train, source.train[..., ::-1]] if config.flip else [source.train]
    parts = sides * (1 if config.augment == "none" else AUGMENTED)
    total = sum(map(len, parts))
    numbered = ((part, n * len(part), max(0, n - len(sides) + 1)) for n, part in enumerate(parts))
    train = np.concatenate([encoded(*each) for each in numbered])
    labels = None if source.labels is None else np.tile(source.labels, len(parts))
    told = f"{source.digest} {behind.bundle.digest} {units.model_dump_json()} {len(parts)}"
    return replace(
        source,
        train=train,
        held_out=encoded(source.held_out, total),
        labels=labels,
        digest=f"latents:{hashlib.sha256(told.encode()).hexdigest()}",
        quantum=0.0,
    )


class LatentTask(PictureTask):
    """What is learned are the latents; what is shown, judged and held out are the pictures."""

    latents: LatentSpace

    def __init__(
        self,
        config: TrainConfig,
        pictures: PictureSource,
        latents: PictureSource,
        start: Start,
        behind: Behind,
        units: Normalisation,
    ) -> None:
        # Mirrored and augmented pictures are among the latents, and colours are of pictures.
        own = config.model_copy(update={"flip": False, "augment": "none", "colours": "rgb"})
        super().__init__(own, latents, start._replace(normal=None))
        self.pictures, self.units, self.autoencoder = pictures, units, behind.folder
        self.latents = behind.space(pictures.shape, self.normal)
        self._behind = behind.bundle

    @cached_property
    def _decoder(self) -> Codec:
        return Codec(self._behind, self.latents, torch.device("cpu"))

    def shown(self, x: Tensor) -> Floats:
        parts = torch.split(x, TOGETHER)
        sides = self.pictures.shape[1:]
        # The same model in memory: its network is not asked.
        manifest = self._behind.manifest.model_copy(update={"normalisation": self.units})
        whole = replace(self._behind, manifest=manifest, autoencoder=self._behind)
        pictures = [out_of_network(whole, self._decoder.decode(part, sides).numpy()) for part in parts]
        return np.concatenate(pictures)
