"""Configurations of the networks of a bundle, validated; the field names are those of the networks' arguments."""

import math
import re
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field, JsonValue, model_validator

from ddib_fed.record import Frozen


class MlpConfig(Frozen):
    kind: Literal["mlp"] = "mlp"
    dim: int = Field(default=2, ge=1, le=4096)
    width: int = Field(default=160, ge=1, le=4096)
    blocks: int = Field(default=4, ge=1, le=64)
    embedding: int = Field(default=128, ge=1, le=4096)
    features: int = Field(default=64, ge=2, le=1024, multiple_of=2)
    flow_map: bool = False


class SyntheticConfig(Frozen):
    """Arguments of `SyntheticModel`, the public code's network for points."""

    kind: Literal["synthetic"] = "synthetic"
    in_channels: int = Field(default=2, ge=1, le=4096)
    out_channels: int = Field(default=2, ge=1, le=8192)
    num_channels: int = Field(default=256, ge=32, le=4096, multiple_of=32)
    num_res_blocks: int = Field(default=3, ge=1, le=64)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class PictureNetwork(Frozen):
    """What the UNet and the classifier share, under the names of the public constructors."""

    image_size: int = Field(ge=1, le=4096)
    in_channels: int = Field(default=3, ge=1, le=64)
    model_channels: int = Field(ge=8, le=2048)
    out_channels: int = Field(ge=1, le=100_000)
    num_res_blocks: int = Field(ge=1, le=16)
    attention_resolutions: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(), max_length=16)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    channel_mult: tuple[Annotated[float, Field(gt=0.0, le=64.0)], ...] = Field(
        default=(1.0, 2.0, 4.0, 8.0), min_length=1, max_length=10
    )
    conv_resample: bool = True
    num_heads: int = Field(default=1, ge=1, le=1024)
    num_head_channels: int = Field(default=-1, ge=-1, le=4096)
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def divisor(self) -> int:
        return int(2 ** (len(self.channel_mult) - 1))

    @property
    def groups(self) -> int:
        """Of each normalisation."""
        return 32

    @model_validator(mode="after")
    def _divides(self) -> "PictureNetwork":
        if any(width < 32 or width % 32 for width in self.widths):
            raise ValueError(f"each level needs a multiple of 32 channels; these have {self.widths}")
        if self.num_head_channels == 0:
            raise ValueError("num_head_channels is -1 for none, or at least 1")
        part = self.num_heads if self.num_head_channels == -1 else self.num_head_channels
        self._check_heads({*self.attention_widths, self.widths[-1]}, part)
        return self

    @property
    def attention_widths(self) -> set[int]:
        return {w for level, w in enumerate(self.widths) if 2**level in self.attention_resolutions}

    @staticmethod
    def _check_heads(widths: set[int], part: int) -> None:
        for width in sorted(widths):
            if width % part:
                raise ValueError(f"attention on {width} channels does not divide by {part}")


class UNetConfig(PictureNetwork):
    """What `UNet` is made of."""

    kind: Literal["unet"] = "unet"
    num_classes: int | None = Field(default=None, ge=1, le=100_000)
    num_heads_upsample: int = Field(default=-1, ge=-1, le=1024)
    patch: int = Field(default=1, ge=1, le=16)
    class_dropout: bool = False
    norm_groups: Literal[1, 2, 4, 8, 16, 32] = 32
    global_mean: bool = False
    spectral: bool = False

    @property
    def divisor(self) -> int:
        return self.patch * super().divisor

    @property
    def groups(self) -> int:
        return self.norm_groups

    @model_validator(mode="after")
    def _is_a_unet(self) -> "UNetConfig":
        _check_out_channels(self)
        if self.image_size % self.patch:
            raise ValueError(f"patch {self.patch} does not divide image_size {self.image_size}")
        if self.class_dropout and self.num_classes is None:
            raise ValueError("class_dropout needs num_classes")
        if self.num_heads_upsample == 0:
            raise ValueError("num_heads_upsample is -1 for num_heads, or at least 1")
        if self.num_head_channels == -1 and self.num_heads_upsample > 0:
            self._check_heads(self.attention_widths, self.num_heads_upsample)
        return self


class ClassifierConfig(PictureNetwork):
    """What `NoisyClassifier` is made of."""

    kind: Literal["classifier"] = "classifier"
    pool: Literal["adaptive", "attention"] = "adaptive"

    @model_validator(mode="after")
    def _is_a_classifier(self) -> "ClassifierConfig":
        if self.pool == "attention" and self.num_head_channels == -1:
            raise ValueError("pool attention needs num_head_channels")
        if self.pool == "attention" and self.image_size % self.divisor:
            raise ValueError(f"pool attention needs an image_size that divides by {self.divisor}")
        return self


def _check_out_channels(config: "UNetConfig | LibraryConfig") -> None:
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise ValueError(
            f"out_channels {config.out_channels} is neither in_channels {config.in_channels} nor twice that"
        )


LibraryTarget = Literal[
    "monai.networks.nets.DiffusionModelUNet",
    "monai.networks.nets.AutoencoderKL",
    "monai.networks.nets.VQVAE",
    "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi.DiffusionModelUNetMaisi",
    "monai.apps.generation.maisi.networks.autoencoderkl_maisi.AutoencoderKlMaisi",
    "diffusers.UNet2DModel",
    "diffusers.DiTTransformer2DModel",
    "diffusers.AutoencoderKL",
    "diffusers.AutoencoderTiny",
    "diffusers.VQModel",
]


class _Names(NamedTuple):
    """What a class calls its arguments."""

    levels: str
    latent: str = ""
    classes: str = ""


_NAMES = {
    "DiffusionModelUNet": _Names("channels", classes="num_class_embeds"),
    "DiffusionModelUNetMaisi": _Names("num_channels", classes="num_class_embeds"),
    "UNet2DModel": _Names("block_out_channels", classes="num_class_embeds"),
    "DiTTransformer2DModel": _Names("", classes="num_embeds_ada_norm"),
    "AutoencoderKL": _Names("channels", "latent_channels"),
    "AutoencoderKlMaisi": _Names("num_channels", "latent_channels"),
    "VQVAE": _Names("channels", "embedding_dim"),
    "AutoencoderTiny": _Names("encoder_block_out_channels", "latent_channels"),
    "VQModel": _Names("block_out_channels", "latent_channels"),
}


MOST_LAYERS, MOST_DIVISOR = 64, 4096
"""Bounds of the layers of a level, and of how much a side shrinks: no network is begun that would never be done."""


class LibraryConfig(Frozen):
    """A network of another library: a class of a fixed list, with the arguments of its constructor.

    `fixed` are inputs that are the same at every call, such as MAISI's modality. `axes` are the network's, as axes of a
    sample from 1, below 0 where they run backwards: (3, -2, 1) of right, anterior, superior. `spectral` are the sides
    of samples whose mean and spectrum are kept (networks/spectrum.py): the arguments have twice as many channels.
    """

    kind: Literal["library"] = "library"
    target: LibraryTarget
    arguments: dict[str, JsonValue] = Field(max_length=64)
    fixed: dict[Literal["class_labels", "spacing_tensor"], int | tuple[float, ...]] = Field(
        default_factory=dict
    )
    axes: tuple[int, ...] = ()
    # Not in the digests of networks without it, such as imported ones.
    spectral: tuple[int, ...] = Field(default=(), exclude_if=lambda given: not given)

    @staticmethod
    def targets() -> tuple[str, ...]:
        """Return the classes that are known."""
        return get_args(LibraryTarget)

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]

    @property
    def _names(self) -> _Names:
        names = _NAMES[self.name]
        return (
            names._replace(levels="block_out_channels") if self.target == "diffusers.AutoencoderKL" else names
        )

    @property
    def is_autoencoder(self) -> bool:
        return bool(self._names.latent)

    @property
    def dims(self) -> int:
        """Axes of a sample beside its channels: 2 of pictures, 3 of volumes."""
        return self._number("spatial_dims", 2)

    @property
    def in_channels(self) -> int:
        """Of a sample."""
        taken = self._number("in_channels", 4 if self.name == "DiTTransformer2DModel" else 3)
        return taken // 2 if self.spectral else taken

    @property
    def out_channels(self) -> int:
        """Of an autoencoder, of what it decodes."""
        return self._number("out_channels", self.in_channels)

    @property
    def latent_channels(self) -> int:
        latent = self._number(self._names.latent, 4)
        return self._number("vq_embed_dim", latent) if self.name == "VQModel" else latent

    @property
    def divisor(self) -> int:
        """What each side of a sample must divide by; of an autoencoder, how much smaller a side of the latent is."""
        if self.name == "DiTTransformer2DModel":
            return self._number("patch_size", 2)
        if self.name == "VQVAE":
            steps: Any = self.arguments.get("downsample_parameters", ((2, 4, 1, 1),) * 3)
            levels: Any = self.arguments.get("channels", (96, 96, 192))
            once = not isinstance(steps[0], list | tuple)  # for each level
            return math.prod(step[0] for step in ([steps] * len(levels) if once else steps))
        levels = self.arguments.get(self._names.levels)
        return int(2 ** (len(levels) - 1)) if isinstance(levels, list | tuple) and levels else 1

    @property
    def num_classes(self) -> int | None:
        if "class_labels" in self.fixed or not self._names.classes:
            return None
        return self._number(self._names.classes, 0) or None

    @property
    def has_null_class(self) -> bool:
        return self.name == "DiTTransformer2DModel"

    def _number(self, name: str, default: int) -> int:
        value = self.arguments.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    @model_validator(mode="after")
    def _is_possible(self) -> "LibraryConfig":
        if not (2 <= self.dims <= 3 and 1 <= self.in_channels <= 1024 and 1 <= self.out_channels <= 2048):
            raise ValueError("a network has 2 or 3 axes, and 1 to 1,024 channels")
        if self.axes and sorted(map(abs, self.axes)) != list(range(1, self.dims + 1)):
            raise ValueError(f"{self.axes} are not the {self.dims} axes of a sample")
        if self.spectral and (self.is_autoencoder or len(self.spectral) != self.dims):
            raise ValueError(f"spectral {self.spectral} are not the sides of a denoiser's samples")
        if not self.is_autoencoder:
            _check_out_channels(self)
        for key, value in self.arguments.items():
            counts = value if isinstance(value, list) else [value]
            if re.search("blocks|layers", key) and any(
                isinstance(n, int) and n > MOST_LAYERS for n in counts
            ):
                raise ValueError(f"{key} is above {MOST_LAYERS}")
        with suppress(TypeError, LookupError):
            if self.divisor in range(1, MOST_DIVISOR + 1):
                return self
        raise ValueError(f"its levels do not shrink sides by a whole number from 1 to {MOST_DIVISOR:,}")


AnyConfig = MlpConfig | SyntheticConfig | UNetConfig | ClassifierConfig | LibraryConfig
NetworkConfig = Annotated[AnyConfig, Field(discriminator="kind")]
