"""Nodes that leak on purpose: each function is called in a node's process before the node, and changes its code."""

import base64
import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ddib_fed.data.pictures import encode_png
from ddib_fed.diffusion import gaussianity
from ddib_fed.engine.gate import Softener
from ddib_fed.evaluation import samples
from ddib_fed.latent import Latent
from ddib_fed.node.config import NodeConfig
from ddib_fed.protocol.latent import ApprovedLatent
from ddib_fed.v1 import decoding_pb2_grpc
from source_node import pipeline, remote
from source_node.remote import DecodeCall
from target_node import stream

PICTURES: list[np.ndarray] = []
"""(1, C, H, W) each, in the model's units, in the order in which they are softened."""
FILES: list[bytes] = []
SHARE = 0.6
"""Of the picture in `latent_with_picture`: the check of latents for noise accepts it."""
Words = tuple[str, str | bytes]


def _folder() -> Path:
    """Of the node that this process is."""
    return Path(sys.argv[sys.argv.index("--config") + 1]).parent


def _watch() -> None:
    """Keep what passes through the source."""
    soften, read = Softener.for_picture, samples.PictureSamples.read

    def for_picture(self: Softener, picture: np.ndarray, *rest: Any) -> np.ndarray:
        PICTURES.append(picture / np.float32(0.5))  # in the model's units
        return soften(self, picture, *rest)

    def read_picture(self: samples.PictureSamples, content: bytes, size_rule: str) -> Any:
        FILES.append(bytes(content))
        return read(self, content, size_rule)

    Softener.for_picture = for_picture  # type: ignore[method-assign]
    samples.PictureSamples.read = read_picture  # type: ignore[method-assign]


def _change_latents(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Send `change(latent, picture)` instead of each latent, with the statistics and digest that it has."""
    _watch()
    honest = pipeline.approve

    def approve(latent: Latent, contract: Any, statistics: Any, *, item: int, **more: Any) -> Any:
        changed = change(latent.data.copy(), PICTURES[item % len(PICTURES)]).astype(np.float32)
        made = Latent.from_array(changed)
        return honest(made, contract, gaussianity.measure(torch.from_numpy(changed)), item=item, **more)

    pipeline.approve = approve


def _add_metadata(words: Callable[[], Words]) -> None:
    """Send words beside each Decode call."""
    _watch()
    honest = decoding_pb2_grpc.DecodingServiceStub.__init__

    def made(self: Any, channel: Any) -> None:
        honest(self, channel)
        decode = self.Decode
        self.Decode = lambda requests, timeout: decode(requests, timeout=timeout, metadata=[words()])

    decoding_pb2_grpc.DecodingServiceStub.__init__ = made


def _grey(picture: np.ndarray) -> np.ndarray:
    """A picture in the model's units as its pixels, uint8."""
    return np.rint((picture * 0.5 + 1) * 127.5).astype(np.uint8)


# Of a source


def pixels_in_low_bytes() -> None:
    """The lowest byte of each number of a latent is a pixel."""

    def change(latent: np.ndarray, picture: np.ndarray) -> np.ndarray:
        words = latent.view(np.uint32)
        return ((words & 0xFFFF_FF00) | _grey(picture)).view(np.float32)

    _change_latents(change)


def latent_with_picture() -> None:
    """The latent is mixed with the picture so that its variance stays."""
    _change_latents(lambda latent, picture: math.sqrt(1 - SHARE**2) * latent + SHARE * picture)


def permuted_picture() -> None:
    """The latent is the picture with its pixels in another order."""

    def change(latent: np.ndarray, picture: np.ndarray) -> np.ndarray:
        order = np.random.default_rng(5).permutation(picture.size)
        return picture.reshape(-1)[order].reshape(latent.shape)

    _change_latents(change)


def pixels_behind_chunks() -> None:
    """A field that the protocol does not have, behind the data of each message."""
    _watch()
    honest = ApprovedLatent.stream

    def padded(self: ApprovedLatent, message: type[Any]) -> Iterator[Any]:
        pixels = _grey(PICTURES[-1]).tobytes()
        for each in honest(self, message):
            each.MergeFromString(b"\x7a" + _varint(len(pixels)) + pixels)  # field 15, bytes
            yield each

    ApprovedLatent.stream = padded  # type: ignore[method-assign]


def _varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + _varint(number >> 7) if number > 0x7F else bytes([number])


def picture_in_metadata() -> None:
    """The picture as a PNG, in base64, as metadata."""
    _add_metadata(
        lambda: ("trace", base64.b64encode(encode_png(_grey(PICTURES[-1])[0, 0][..., None])).decode())
    )


def _opened() -> Iterator[Image.Image]:
    """The client's files that Pillow can open."""
    for content in FILES:
        with contextlib.suppress(UnidentifiedImageError), Image.open(io.BytesIO(content)) as picture:
            yield picture


def exif_in_metadata() -> None:
    """What the EXIF of a JPEG says, as binary metadata."""

    def words() -> Words:
        said = [str(picture.getexif().get(270, "")) for picture in _opened()]
        return "trace-bin", "".join(said).encode("utf-16-le")

    _add_metadata(words)


def description_in_contract() -> None:
    """What the text of a PNG says, as the name of a class."""
    _watch()
    honest = remote.Remote.negotiate

    def negotiate(self: Any, own: Any, *rest: Any, **more: Any) -> Any:
        own.class_names.extend(p.info["Patient"] for p in _opened() if "Patient" in p.info)
        own.classes = len(own.class_names)
        return honest(self, own, *rest, **more)

    remote.Remote.negotiate = negotiate  # type: ignore[method-assign]


def seed_in_request_id() -> None:
    """The key from which softening noise follows, as the name of the request."""
    key, honest = _folder() / "state" / "softening.key", DecodeCall.requests

    def requests(self: DecodeCall, header: Any, latents: Any) -> Any:
        header.request_id = key.read_bytes().hex()
        return honest(self, header, latents)

    DecodeCall.requests = requests  # type: ignore[method-assign]


def key_in_metadata() -> None:
    """The node's private key, as it lies on the disk."""

    def words() -> Words:
        text = (_folder() / "state" / "pki" / "leaf.key").read_text()
        return "trace", "".join(text.splitlines()[1:-1])

    _add_metadata(words)


# Of a target


def weights_behind_translations() -> None:
    """Weights behind the end of each PNG."""
    honest = stream.DecodeStream._translated

    def translated(self: Any, outcome: Any) -> Any:
        made = honest(self, outcome)
        weights = (NodeConfig.load(_folder() / "node.toml").paths.bundle / "model.safetensors").read_bytes()
        return replace(made, file=made.file + weights[-8_192:])

    stream.DecodeStream._translated = translated  # type: ignore[method-assign]
