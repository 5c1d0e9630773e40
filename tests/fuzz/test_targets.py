"""Each parser of bytes from elsewhere, with damaged and hostile inputs: it refuses by name, or reads."""

import warnings
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddib_fed.errors import DdibError
from tests.conftest import Evidence
from tests.fuzz.targets import TARGETS

pytestmark = [pytest.mark.promise("bytes"), pytest.mark.slow]

DEEP = 200_000
NASTY = {
    "nothing": b"",
    "zeros": bytes(1_000),
    "ones": b"\xff" * 1_000,
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "a line of deep lists": b"[" * DEEP + b"\n",
    "a short line of deep lists": b"[" * 8_000 + b"\n",
    "closed deep lists": b"[" * DEEP + b"]" * DEEP,
    "a long number": b"9" * 10_000,
    "an infinite number": b'{"n": 1e999}\n',
    "an infinite list": b"[Infinity, NaN]",
    "half a character": b'{"institution": "\\ud800", "n": "\\udfff"}',
    "no object": b"[1, 2]",
    "a text": b'"text"',
    "a zip": b"PK\x03\x04" + bytes(60),
    "a pickle of os.system": b"cos\nsystem\n(S'touch /tmp/ddib-owned'\ntR.",
    "a PEM without end": b"-----BEGIN CERTIFICATE-----\n" + b"A" * 4_000,
    "a PNG that claims much": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x10\x06\0\0\0",
    "a safetensors that claims much": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    "an npy that claims much": b"\x93NUMPY\x02\0\xff\xff\xff\xff{'descr'",
    "a TIFF in a circle": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
}


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    return tuple(TARGETS[name].seeds())


def tried(run: Callable[[bytes], object], data: bytes) -> bool:
    """Whether the parser accepted the bytes; anything but a refusal of ours is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            run(data)
        except DdibError:
            return False
        return True


@pytest.mark.parametrize("name", TARGETS)
def test_a_whole_input_is_read(name: str) -> None:
    """The inputs that the others are made of are valid: what is refused is refused for the damage."""
    if name in {"certificate", "steps", "signed-calibration"}:
        return  # their seeds belong to other keys or weights, or lack the signatures
    assert any(tried(TARGETS[name].run, seed) for seed in seeds(name))


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_are_refused_or_read(name: str, evidence: Evidence) -> None:
    """Nesting without end, numbers without end, sizes that claim gigabytes, a pickle that runs a command."""
    evidence.cases(len(NASTY))
    for data in NASTY.values():
        tried(TARGETS[name].run, data)


Edit = tuple[str, float, bytes]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["put", "insert", "cut", "end", "repeat"]), st.floats(0, 1), st.binary(max_size=12)
    ),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """The bytes after some damage, each at a fraction of their length."""
    for kind, place, new in edits:
        at = int(place * len(data))
        if kind == "put":
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "cut":
            data = data[:at] + data[at + 1 + len(new) :]
        elif kind == "end":
            data = data[:at]
        else:
            data = data[:at] + data[at : at + 1 + len(new)] * 7 + data[at:]
    return data


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(1_800)
# The logger of rasterio fails on a text of a file that is no UTF-8, which Python prints and ignores.
@pytest.mark.filterwarnings("ignore:.*rasterio._env.log_error:pytest.PytestUnraisableExceptionWarning")
def test_damaged_inputs_are_refused_or_read(name, amount, evidence):
    """Bytes replaced, inserted, cut out, cut off and repeated, in valid inputs and in random ones."""
    target = TARGETS[name]
    count = amount(20, 2_000) if target.slow else amount(60, 10_000)

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.one_of(st.sampled_from(seeds(name)), st.binary(max_size=200)), edits=EDITS)
    def damage(seed: bytes, edits: list[Edit]) -> None:
        tried(target.run, edited(seed, edits))

    evidence.cases(count)
    damage()
