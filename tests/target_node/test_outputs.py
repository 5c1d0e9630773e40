"""A picture that is nearly a training picture of the target's model does not leave; the others do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.bridge.party import Decoded
from ddib_fed.errors import ContractUnknown, Memorised, NotReady
from ddib_fed.latent import Latent
from ddib_fed.metrics.attacks.copies import reduced
from ddib_fed.metrics.attacks.training_index import IndexFacts, file_name, index_file
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.samples.images import decode_image
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.wire.contracts.contract import Contract, PictureTerms
from ddib_fed.wire.mapping import from_message, to_message
from ddib_fed.wire.streams.chunks import Announced, assemble, stream
from ddib_fed.wire.version import versions_to_pb
from target_node.outputs import OutputCheck
from tests.node.picture_examples import SIZE, pictures_engine
from tests.target_node.conftest import Target, asking
from tests.wire.examples import picture_side

pytestmark = pytest.mark.slow

SIDE = picture_side(sample_shape=(1, SIZE, SIZE), picture=PictureTerms(0.0, 65535.0, 16), size_rule="resize")


@pytest.fixture(scope="module")
def engine():
    made = pictures_engine("relief", seed=2, form=PictureFormat(high=65535.0, bits=16))
    yield made
    made.close()


class South:
    """South's node of pictures, as north calls it."""

    def __init__(self, target: Target, north) -> None:
        self.target = target
        self.north = north
        request = pb.NegotiateContractRequest(
            versions=versions_to_pb(), source=to_message(SIDE, pb.ContractSide)
        )
        with target.called_by(north) as stub:
            answer = asking(stub.NegotiateContract, request).contract
        self.contract = from_message(answer, Contract)

    def call(self, numbers: Iterable[int], came: dict[int, np.ndarray], *, round_trip: bool = False) -> None:
        """Decode latents by their numbers; each result is appended to `came` when it arrives."""
        solver = common_pb2.SolverSettings(evaluations=8)
        head = pb.DecodeHeader(contract_sha256=self.contract.digest, request_id="job", items=9, solver=solver,
                               round_trip=round_trip)  # fmt: skip
        messages = [pb.DecodeRequest(header=head)]
        for number in numbers:
            messages += self._latent(number)
        answers: list[pb.DecodeResponse] = []
        try:
            with self.target.called_by(self.north) as stub:
                asking(
                    lambda sent, timeout: answers.extend(stub.Decode(sent, timeout=timeout)), iter(messages)
                )
        finally:
            came |= _pictures(answers)
            self.latents = [each for each in answers if each.WhichOneof("message") == "latent"]

    def _latent(self, number: int) -> list[pb.DecodeRequest]:
        noise = np.random.default_rng(number).standard_normal((1, 1, SIZE, SIZE), dtype=np.float32)
        latent = Latent.from_array(noise)
        tensor = common_pb2.TensorHeader(dtype=common_pb2.DATA_TYPE_FLOAT32, shape=noise.shape,
                                         size_bytes=noise.nbytes, sha256=latent.sha256)  # fmt: skip
        head = pb.LatentHeader(item=number, tensor=tensor, contract_sha256=self.contract.digest)
        return list(stream(pb.DecodeRequest, "latent", head, noise.tobytes()))

    def acts(self, act: str) -> list[dict]:
        lines = self.target.config.paths.audit.read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["act"] == act]


def _pictures(answers: Iterable[pb.DecodeResponse]) -> dict[int, np.ndarray]:
    """Of each item, (1, SIZE, SIZE) in [-1, 1]."""

    def opener(head):
        what = head.file if isinstance(head, pb.DecodedHeader) else head.tensor
        return Announced(what.size_bytes, what.sha256, 1 << 20)

    said = [each for each in answers if each.WhichOneof("message") != "progress"]
    found = {}
    for whole in assemble(iter(said), {"result": opener, "latent": opener}):
        if not isinstance(whole.header, pb.DecodedHeader):
            continue
        pixels = decode_image(whole.data).pixels.astype(np.float32)
        found[whole.header.item] = np.moveaxis(pixels / 32767.5 - 1, 2, 0)
    return found


def plant(folder: Path, model: str, pictures: np.ndarray) -> None:
    """An index of these training pictures, in a folder of indexes."""
    folder.mkdir(mode=0o700, parents=True)
    path = folder / file_name(model)
    own = reduced(pictures.astype(np.float32))
    facts = IndexFacts(
        model_sha256=model,
        sample_shape=(1, SIZE, SIZE),
        pictures=len(own),
        numbers=own.shape[1],
        threshold=0.12,
        held_out=0,
    )
    path.write_bytes(index_file(facts, own))
    path.chmod(0o600)


@pytest.fixture
def drawn(tmp_path, open_target, north, engine) -> dict[int, np.ndarray]:
    """What the model makes of latents 0 to 3, while nothing is refused."""
    came: dict[int, np.ndarray] = {}
    South(open_target(domain="relief"), north).call(range(4), came)
    assert set(came) == set(range(4))
    return came


@pytest.fixture
def south(tmp_path, open_target, north, engine, drawn) -> South:
    """A target that was trained on what its model makes of latent 1, among others."""
    others = np.random.default_rng(8).uniform(-1, 1, (50, 1, SIZE, SIZE))
    noisy = drawn[1] + 0.01 * np.random.default_rng(9).standard_normal(drawn[1].shape)
    folder = tmp_path / "south" / "indexes"
    plant(folder, engine.model.bundle.digest, np.concatenate([others, noisy[None]]))
    return South(open_target(domain="relief", memorised='"indexes"'), north)


def test_a_copy_is_refused_by_its_number_and_the_others_arrive(south: South, drawn) -> None:
    """Also what the node had taken behind it; what it had not is for the next call, as a source sends it."""
    came: dict[int, np.ndarray] = {}
    with pytest.raises(Memorised) as refused:
        south.call([0, 1, 2, 3], came)
    assert refused.value.facts == {"item": "1"}
    assert refused.value.hop == "target south.example"
    taken = {
        line["item"] for line in south.acts("latent_received") if line["n"] > south.acts("receipt")[0]["n"]
    }
    assert set(came) == taken - {1}
    if behind := {2, 3} - taken:
        south.call(sorted(behind), came)
    assert set(came) == {0, 2, 3}
    for number, picture in came.items():
        np.testing.assert_allclose(picture, drawn[number], atol=1e-3)


def test_neither_picture_nor_latent_of_a_copy_leaves(south: South) -> None:
    """A round trip would tell the picture to whoever inverts it."""
    came: dict[int, np.ndarray] = {}
    with pytest.raises(Memorised):
        south.call([1], came, round_trip=True)
    assert (came, south.latents) == ({}, [])
    south.call([0], came, round_trip=True)
    assert (set(came), len(south.latents)) == ({0}, 1)


def test_it_is_written_down_without_content(south: South) -> None:
    """Who, which item, how near and by which index; the metric counts it."""
    with pytest.raises(Memorised):
        south.call([1], {})
    (line,) = south.acts("output_refused")
    said = {key: line[key] for key in ("request", "item", "reason", "index")}
    sha256 = south.target.node.training_index.sha256
    assert said == {"request": "job", "item": 1, "reason": "MEMORISED", "index": sha256}
    assert "north.example" in line["peer"]
    assert float(line["distance"]) < 0.12
    assert {"time", "act", "peer", "distance", *said} <= set(line)
    items = south.target.node.metrics.items.labels("decode", "failed")
    assert items._value.get() == 1


def test_a_policy_that_refuses_copies_gives_out_nothing_without_its_index(south: South) -> None:
    """Neither a new call nor one that runs: a mistake of the node's must not let copies out."""
    node = south.target.node
    node.set_training_indexes({node.active_digest: None})
    with pytest.raises(NotReady):
        south.call([0], {})
    check = OutputCheck(node, node.active_digest, lambda *_, **__: None, "north.example", "job")
    with pytest.raises(NotReady, match="index of training pictures"):
        check(Decoded(0, np.zeros((1, 1, SIZE, SIZE), np.float32), None, 0.0))


def test_an_earlier_model_without_an_index_is_given_up(south: South, engine) -> None:
    """The source gets an error that the contract is gone, and agrees on the model that is active now."""
    node, first = south.target.node, engine.model.bundle.digest
    other = pictures_engine("relief", seed=5, form=PictureFormat(high=65535.0, bits=16))
    try:
        plant_one = IndexFacts(model_sha256=other.model.bundle.digest, sample_shape=(1, SIZE, SIZE), pictures=1,
                               numbers=SIZE * SIZE, threshold=0.1, held_out=0)  # fmt: skip
        path = node.config.folder / "indexes" / file_name(other.model.bundle.digest)
        path.write_bytes(index_file(plant_one, np.zeros((1, SIZE * SIZE), np.float32)))
        path.chmod(0o600)
        node.set_engine(other)
        came: dict[int, np.ndarray] = {}
        south.call([0], came)
        assert set(came) == {0}, "the earlier model still has its own index"
        node.set_training_indexes({first: None})
        with pytest.raises(ContractUnknown):
            south.call([0], {})
    finally:
        other.close()


def test_without_the_policy_everything_is_given_out(south: South) -> None:
    """As by default."""
    node = south.target.node
    node.config = node.config.with_policy(node.config.policy.model_copy(update={"memorised": ""}))
    node.set_training_indexes({node.active_digest: None})
    again = South(south.target, south.north)
    came: dict[int, np.ndarray] = {}
    again.call([1], came)
    assert set(came) == {1}
