"""Two small models of 16 x 16 grey noise, and files with everything that must not cross."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddib_fed.engine.local_party import ServingParty
from ddib_fed.models.bundle import make_bundle, save_bundle
from ddib_fed.models.manifest import Manifest, PictureFormat
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import UNetConfig

SIZE = 16
SECRET = "Lovelace-1815"


def pictures_model(
    domain: str,
    *,
    seed: int,
    classes: tuple[str, ...] = (),
    form: PictureFormat | None = None,
    class_dropout: bool = False,
    spectral: bool = False,
    **changes,
) -> tuple[Manifest, dict[str, torch.Tensor]]:
    """Manifest and weights of a model for `domain`; one of classes answers differently to each."""
    network = UNetConfig(
        image_size=SIZE, in_channels=1, model_channels=32, out_channels=1, num_res_blocks=1,
        channel_mult=(1.0, 1.0), num_classes=len(classes) or None, use_scale_shift_norm=True,
        class_dropout=class_dropout, spectral=spectral,
    )  # fmt: skip
    manifest = Manifest(
        name=domain, domain=domain, sample_kind="picture", sample_shape=(1, SIZE, SIZE), network=network,
        time_input="scaled-lambda" if spectral else "lambda", soften_sigma=0.02,
        picture=form or PictureFormat(), classes=classes,
        **{"normalisation": Normalisation(std=0.5), **changes},
    )  # fmt: skip
    torch.manual_seed(seed)
    module = build_network(network)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1 and not weight.any():  # a fresh network's last convolutions are zero
                torch.nn.init.normal_(weight, std=0.03)
        torch.nn.init.normal_(module.out[-1].weight, std=0.004)
    return manifest, module.state_dict()


def save_pictures_model(folder: Path, domain: str, **options) -> None:
    save_bundle(folder, *pictures_model(domain, **options))


def pictures_engine(domain: str = "scans", **options) -> ServingParty:
    options = {"seed": 1, **options}
    return ServingParty(make_bundle(*pictures_model(domain, **options)), device="cpu", threads=1)


def noise(height: int = SIZE, width: int = SIZE, *, seed: int = 0) -> np.ndarray:
    """Grey noise (height, width) in [-1, 1] whose every block of the model's size is noise still, float64."""
    generator = np.random.default_rng(seed)
    small = generator.standard_normal((SIZE, SIZE)) * 0.5
    rows = np.arange(height) * SIZE // height
    columns = np.arange(width) * SIZE // width
    return small[rows][:, columns].clip(-1, 1)


def to_bits(values: np.ndarray, dtype) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.rint((values + 1) / 2 * top).astype(dtype)


@dataclass(frozen=True)
class Files:
    """Pictures as a person has them: (name, size (height, width), pixels as they lie in the file)."""

    folder: Path
    sizes: dict[str, tuple[int, int]]
    pixels: dict[str, np.ndarray]

    @property
    def paths(self) -> list[Path]:
        return [next(self.folder.glob(f"{name}.*")) for name in self.sizes]


def write_files(folder: Path) -> Files:
    """A PNG of the model's size, a JPEG and a 16-bit TIFF of others, a .npy; names and metadata hold secrets."""
    text = PngInfo()
    text.add_text("Patient", SECRET)
    png = to_bits(noise(seed=1), np.uint8)
    Image.fromarray(png).save(folder / "Ada-png.png", pnginfo=text)
    exif = Image.Exif()
    exif[270] = SECRET
    jpeg = to_bits(noise(48, 32, seed=2), np.uint8)
    Image.fromarray(jpeg).save(folder / "Ada-jpeg.jpg", quality=95, exif=exif)
    tiff = to_bits(noise(32, 64, seed=3), np.uint8).astype(np.uint16)  # in the raw units of the model
    tifffile.imwrite(folder / "Ada-tiff.tif", tiff, description=SECRET)
    npy = noise(16, 32, seed=4).astype(np.float32) * 127.5 + 127.5
    np.save(folder / "Ada-npy.npy", npy)
    pixels = {"Ada-png": png, "Ada-jpeg": jpeg, "Ada-tiff": tiff, "Ada-npy": npy}
    return Files(folder, {name: array.shape for name, array in pixels.items()}, pixels)


def png_bytes(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(to_bits(values, np.uint8)).save(file, "PNG")
    return file.getvalue()
