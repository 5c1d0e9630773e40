"""Models in this process, as a notebook uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.extras import extra

if TYPE_CHECKING:
    from ddib_fed.bridge.local_party import LocalParty
    from ddib_fed.models.bundle import Bundle


class Model:
    """A model that encodes and decodes in this process; made by `load`.

    Attributes:
        party: The party behind it, for `ddib_fed.bridge`.
    """

    def __init__(self, party: LocalParty, opener: Callable[[Bundle], LocalParty]) -> None:
        self.party, self._opener = party, opener

    def of_scene(self, height: int, width: int) -> Model:
        """The same for pictures of that size in overlapping tiles, as `load` makes it with `scene`; errors likewise."""
        return Model(self._opener(self.party.model.bundle.of_scenes(height, width)), self._opener)

    @property
    def domain(self) -> str:
        """Name of its domain."""
        return self.party.describe().domain

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W) of a picture, (D,) of a point."""
        return self.party.describe().sample_shape

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        what = f"pictures of {size}" if self.party.model.is_picture else f"points of {size} coordinates"
        classes = self.party.describe().classes
        return f"<Model {self.domain}: {what}{f', {classes} classes' if classes else ''}>"


def load(
    model: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    classifier: str | Path | None = None,
    scene: tuple[int, int] | None = None,
) -> Model:
    """Load a model.

    Args:
        model: The name of a model that ships (`moons`, `satellite`, ...), or the folder of a bundle.
        device: "cpu", "cuda", "cuda:1".
        dtype: Of the network: "float32", "bfloat16" or "float16"; what is integrated stays float32. The error
            of each is in docs/operating.md.
        classifier: A bundle of a classifier of noisy pictures, for guidance by `classifier_scale`.
        scene: Height and width to which every picture is brought, and at which it is translated in overlapping tiles;
            both models of a translation need the same. Without it a larger picture keeps its size so where the source
            is a model of parts of pictures, in up to 1,024 tiles, and is fitted to the model's size elsewhere.

    Raises:
        ModelNotFound: There is no such model.
        BundleInvalid: The bundle fails its checks.
        SettingsInvalid: The device or dtype does not exist here, or the classifier does not fit, or the scene is
            smaller than the model's pictures.
    """
    with extra("node", "torch", "a model in this process needs torch, which is not installed"):
        from ddib_fed.bridge.local_party import open_party
        from ddib_fed.models.shipped import open_bundle

    guide = None if classifier is None else open_bundle(str(classifier))
    bundle = open_bundle(str(model))
    if scene is not None:
        bundle = bundle.of_scenes(*scene)

    def opener(bundle: Bundle) -> LocalParty:
        return open_party(bundle, device, dtype, classifier=guide)

    return Model(opener(bundle), opener)
