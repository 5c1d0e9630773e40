"""Latents that crossed, judged by what pictures they are of: what a search for windows of bytes cannot find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tests.security.tap.search import Found, Tensor, Traffic

MOST_SHARED = 0.01
"""Of the numbers of a latent; those of an honest one are float32 and meet the picture's by accident alone."""
SAME = 1e-4
"""Of a number of a latent that is computed again in another process and another batch: 2e-5 at most here."""
SPREADS = 6.0
"""Standard deviations above the mean of honest correlations."""


@dataclass(frozen=True, slots=True)
class Judge:
    """What is known of the pictures."""

    pictures: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    threshold: float

    def look(self, traffic: Traffic) -> list[Found]:
        """What was found in the latents on the way to the target, and in every run of numbers."""
        found = []
        for tensor in traffic.tensors:
            values = tensor.values()
            for name, picture in self.pictures.items():
                if (share := shared(values, picture)) > MOST_SHARED:
                    found.append(Found(f"{share:.0%} of the numbers of {name}", tensor.where))
            if self.expected and tensor.where.endswith("asked") and not self._known(tensor):
                found.append(Found("a latent that no picture has", tensor.where))
        found += [
            Found(f"{r:.2f} correlation with {name}", where) for name, where, r in self.correlations(traffic)
        ]
        return found

    def _known(self, tensor: Tensor) -> bool:
        values = tensor.values()
        return any(
            values.shape == other.shape and float(np.abs(values - other).max()) < SAME
            for other in self.expected.values()
        )

    def correlations(self, traffic: Traffic) -> Iterator[tuple[str, str, float]]:
        """Runs of numbers in chunks and fields that correlate more than an honest latent."""
        for place in traffic.places:
            if not place.numbers:
                continue
            for form, values in runs(place.data):
                for name, picture in self.pictures.items():
                    if (r := strongest(values, picture.reshape(-1))) > self.threshold:
                        yield name, f"{place.where} as {form}", r


def shared(values: np.ndarray, picture: np.ndarray) -> float:
    """The part of the numbers that are, to the last bit, numbers of the picture in the model's units."""
    return float(np.isin(values.reshape(-1), picture.astype(np.float32).reshape(-1)).mean())


def runs(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """The bytes as numbers of each type, from each of the first bytes on; numbers that are none are 0."""
    for kind in ("<f4", ">f4", "<f2", ">f2"):
        size = int(kind[2])
        for start in range(size):
            part = data[start : start + (len(data) - start) // size * size]
            yield f"{kind} from byte {start}", _tamed(np.frombuffer(part, kind))
    for start in range(2):
        part = data[start : start + (len(data) - start) // 2 * 2]
        words = np.frombuffer(part, "<u2").astype("<u4") << 16
        yield f"bfloat16 from byte {start}", _tamed(words.view("<f4"))


def _tamed(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        wide = values.astype(np.float64)
    return np.where(np.isfinite(wide) & (np.abs(wide) < 64), wide, 0.0)


def strongest(values: np.ndarray, picture: np.ndarray) -> float:
    """The largest absolute correlation of the picture with any run of its length; 0 for fewer numbers than 64."""
    count = len(picture)
    if len(values) < count or count < 64:
        return 0.0
    target = picture.astype(np.float64) - picture.mean()
    norm = np.linalg.norm(target)
    if norm == 0:
        return 0.0
    size = 1 << int(np.ceil(np.log2(len(values) + count)))
    products = np.fft.irfft(np.fft.rfft(values, size) * np.conj(np.fft.rfft(target, size)), size)
    products = products[: len(values) - count + 1]
    sums, squares = (np.concatenate([[0.0], np.cumsum(power)]) for power in (values, values**2))
    spread = squares[count:] - squares[:-count] - (sums[count:] - sums[:-count]) ** 2 / count
    # Runs that are nearly constant have no correlation to speak of, only rounding.
    usable = spread > 1e-6 * count
    return float(np.abs(products[usable] / (np.sqrt(spread[usable]) * norm)).max(initial=0.0))


def threshold(latents: Sequence[np.ndarray], pictures: Sequence[np.ndarray]) -> float:
    """A correlation above that of honest latents with their own pictures, other than those that are judged."""
    own = np.array(
        [
            strongest(z.reshape(-1).astype(np.float64), x.reshape(-1))
            for z, x in zip(latents, pictures, strict=True)
        ]
    )
    return float(min(own.mean() + SPREADS * own.std(), 1.0 - (1.0 - own.max()) / 2))
