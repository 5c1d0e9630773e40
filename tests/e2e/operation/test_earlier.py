"""The release before this one: its state folder is read, and its nodes and clients work with those of this release.

`tests/data/earlier` holds its wheel without the weights that ship (`tests/make_earlier.py` made it). Two of its nodes
write real state at the start of the test, so that no certificate and no deadline in it has passed. Then one is killed,
and a node of this release goes on in its folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import JobView, Part, Result
from ddib_fed.errors import ContractMismatch
from ddib_fed.guidance import Guidance
from ddib_fed.samples.images import decode_image
from ddib_fed.trust.audit.verification import verify
from ddib_fed.wire.jobs import Settings
from tests.e2e.harness import Node, free_port, wait_until
from tests.e2e.operation.test_durability import first_progress
from tests.e2e.translation.test_translate import npy
from tests.node.picture_examples import noise, png_bytes
from tests.node.tiny_nodes import gaussian

pytestmark = pytest.mark.e2e

WHEEL = next((Path(__file__).parents[2] / "data" / "earlier").glob("*.whl"))
SET_UP = Path(__file__).with_name("earlier_institutions.py")
SHORT = Settings(evaluations=12)
# Enough that south can be stopped while north encodes: a second or so.
LONG = {"points": Settings(evaluations=1_500), "pictures": Settings(evaluations=120)}


@dataclass
class Earlier:
    """The earlier release, and the institutions that it has set up in a folder, with the ports of their nodes."""

    environment: dict[str, str]
    folder: Path
    ports: dict[str, tuple[int, int]]

    def run(self, *words: object) -> str:
        """Run its Python; the output."""
        done = subprocess.run(
            [sys.executable, "-P", *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Earlier:
    folder = tmp_path_factory.mktemp("earlier")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(folder / "site")
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    made = Earlier(environment, folder, {kind: (free_port(), free_port()) for kind in ("points", "pictures")})
    made.run(SET_UP, folder, *(f"{kind}:{north}:{south}" for kind, (north, south) in made.ports.items()))
    return made


def sample(kind: str, seed: int) -> bytes:
    return npy(gaussian(300, seed)) if kind == "points" else png_bytes(noise(seed=seed))


def far_away(kind: str) -> bytes:
    """What no latent of noise can be made of."""
    return npy(gaussian(300) * 100) if kind == "points" else png_bytes(np.full((16, 16), -1.0))


def values(content: bytes) -> np.ndarray:
    if content.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(content))
    return decode_image(content).pixels.astype(np.float32) / 255


@dataclass
class World:
    """North, which this release has taken over; south, which the earlier one still runs; and what was before.

    Attributes:
        jobs: What the earlier node said of each job, by what it is an example of.
        results: Of the finished jobs, as the earlier node gave them.
        latent: The encoded item of the job that waited for south, as it lay in the spool.
        audit: North's audit log when it was killed.
    """

    kind: str
    earlier: Earlier
    north: Node
    south: Node
    jobs: dict[str, JobView]
    results: dict[str, Result]
    latent: bytes
    audit: bytes

    @property
    def folder(self) -> Path:
        return self.earlier.folder / self.kind

    def client(self, name: str) -> Client:
        return Client(Profile.load(self.folder / name / "client.toml"), patience_s=30)


@pytest.fixture(scope="module", params=["points", pytest.param("pictures", marks=pytest.mark.long)])
def world(request: pytest.FixtureRequest, earlier: Earlier) -> Iterator[World]:
    kind = request.param
    north, south = (
        Node(earlier.folder / kind / side, "both", f"{side}.example", port, environment=earlier.environment)
        for side, port in zip(("north", "south"), earlier.ports[kind], strict=True)
    )
    made = World(kind, earlier, north, south, {}, {}, b"", b"")
    try:
        south.start(wait=False)
        north.start(wait=False)
        south.wait_serving()
        north.wait_serving()
        work(made)
        north.environment = {}  # from here on, this release
        north.start()
        yield made
    finally:
        north.stop()
        south.stop()


def work(world: World) -> None:
    """Leave a job of every kind in north's folder; in the end north is killed while south does not answer."""
    kind, target = world.kind, f"south.example/south-{world.kind}"
    with world.client("alice") as client:

        def submit(settings: Settings, *items: bytes, **options: bool) -> str:
            return client.submit(items, target, settings, **options).job_id

        def ended(job_id: str) -> str:
            list(client.watch(job_id))
            return job_id

        two = (sample(kind, 1), sample(kind, 2))
        jobs = {
            "fetched": ended(submit(SHORT, *two, cycle=True, keep_latent=True)),
            "unfetched": ended(submit(SHORT, *two, cycle=True, keep_latent=True)),
            "failed": ended(submit(SHORT, far_away(kind))),
        }
        world.results = {str(result.item): result for result in client.fetch(jobs["fetched"])}
        client.acknowledge(jobs["fetched"], [(0, world.results["0"].translation.sha256)])
        jobs["waiting"] = submit(LONG[kind], sample(kind, 3), keep_latent=True)
        first_progress(client, jobs["waiting"], "encode")
        assert world.south.process is not None
        world.south.process.send_signal(signal.SIGSTOP)
        jobs["queued"] = submit(SHORT, sample(kind, 4))
        jobs["cancelled"] = submit(SHORT, sample(kind, 5))
        client.cancel(jobs["cancelled"])
        spool = world.north.config.paths.spool
        wait_until(
            lambda: client.get(jobs["waiting"]).items[0].state == "ENCODED", seconds=20, what="encoded"
        )
        world.jobs = {name: client.get(job_id) for name, job_id in jobs.items()}
    world.north.kill()
    world.south.process.send_signal(signal.SIGCONT)
    world.latent = next(spool.rglob("*encoded*")).read_bytes()
    world.audit = world.north.config.paths.audit.read_bytes()


def test_the_earlier_release_ran(world: World) -> None:
    """The wheel's code wrote the state, and it holds jobs in every state."""
    code = "import ddib_fed, source_node; print(ddib_fed.__file__, source_node.__file__)"
    assert world.earlier.run("-c", code).count(world.earlier.environment["PYTHONPATH"]) == 2
    states = {name: job.state for name, job in world.jobs.items()}
    assert states == {
        "fetched": "FINISHED",
        "unfetched": "FINISHED",
        "failed": "FAILED",
        "waiting": "RUNNING",
        "queued": "QUEUED",
        "cancelled": "CANCELLED",
    }


def test_jobs_that_had_ended_are_what_they_were(world: World) -> None:
    """Their states, items, failures, settings and times; nothing is lost and nothing is run again."""
    with world.client("alice") as client:
        assert {job.job_id for job in client.list()} >= {job.job_id for job in world.jobs.values()}
        for name in ("fetched", "unfetched", "failed", "cancelled"):
            found = client.get(world.jobs[name].job_id)
            assert (found.item_count, found.items_done) == (len(found.items), len(found.items))
            assert replace(found, item_count=0, items_done=0) == world.jobs[name]  # it did not say these


def test_results_that_nobody_had_fetched_are_delivered(world: World) -> None:
    """Byte for byte what the earlier release would have delivered, with the same record.

    But for the solver's order, which the earlier release gave as 0 where it took the default.
    """
    earlier = world.results["1"]
    used = earlier.provenance.solver.model_copy(update={"order": 3})
    assert earlier.provenance.solver.order == 0
    with world.client("alice") as client:
        left = list(client.fetch(world.jobs["fetched"].job_id))
        assert left == [replace(earlier, provenance=earlier.provenance.with_(solver=used))]
        found = sorted(client.fetch(world.jobs["unfetched"].job_id), key=lambda result: result.item)
    assert [set(result.files) for result in found] == [{Part.TRANSLATION, Part.RETURNED, Part.LATENT}] * 2
    for result in found:
        before = world.results[str(result.item)]
        assert result.provenance.contract_sha256 == before.provenance.contract_sha256
        # Another job of the same input: in calls of other sizes the last digits are others.
        for part in (Part.TRANSLATION, Part.LATENT):
            np.testing.assert_allclose(
                values(result.files[part].data), values(before.files[part].data), atol=0.005
            )
        assert hashlib.sha256(result.translation.data).digest() == result.translation.sha256


def test_work_that_was_interrupted_is_finished(world: World) -> None:
    """The latent that the earlier release had made is sent as it was, to its node; the queue goes on."""
    with world.client("alice") as client:
        for name in ("waiting", "queued"):
            list(client.watch(world.jobs[name].job_id))
            assert client.require_finished(world.jobs[name].job_id).state == "FINISHED"
        result = next(client.fetch(world.jobs["waiting"].job_id))
    assert result.provenance.latent_sha256 == hashlib.sha256(world.latent).hexdigest()


def test_the_database_and_the_audit_go_on(world: World) -> None:
    """The database is intact; the audit's chain begins with the earlier release's lines and is whole."""
    paths = world.north.config.paths
    database = sqlite3.connect(f"file:{paths.jobs}?mode=ro", uri=True)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    assert paths.audit.read_bytes().startswith(world.audit)
    assert len(paths.audit.read_bytes()) > len(world.audit)
    assert verify(paths.audit).ok


def test_a_source_of_this_release_translates_at_an_earlier_target(world: World) -> None:
    """With the earlier peer file, keys and bundle: the same latent, softening included, translation and return."""
    with world.client("alice") as client:
        found = client.translate(
            [sample(world.kind, 1)], f"south.example/south-{world.kind}", SHORT, cycle=True, keep_latent=True
        )[0]
    same(found, world.results["0"])


def same(found: Result, before: Result) -> None:
    """The files of a result are those of another, to rounding."""
    assert set(found.files) == set(before.files)
    for part, file in before.files.items():
        tolerance = 1e-5 if part is Part.LATENT else 0.005
        np.testing.assert_allclose(
            values(found.files[part].data), values(file.data), rtol=1e-5, atol=tolerance
        )
    assert found.provenance.contract_sha256 == before.provenance.contract_sha256


def test_an_earlier_source_translates_at_a_target_of_this_release(world: World) -> None:
    """Bob at south, there and back; the record names this release's node and its model."""
    content = sample(world.kind, 6)
    with world.client("bob") as client:
        assert [domain.institution for domain in client.domains().targets] == ["north.example"]
        found = client.translate([content], f"north.example/north-{world.kind}", SHORT, cycle=True)[0]
    returned = values(found.files[Part.RETURNED].data)
    assert np.abs(returned - values(content)).mean() < 0.02
    assert not np.array_equal(values(found.translation.data), values(content))
    manifest = json.loads((world.north.folder / "model" / "manifest.json").read_text())
    assert found.provenance.target_institution == "north.example"
    assert found.provenance.target_model_sha256 == manifest["digest"]


def test_guidance_that_an_earlier_node_does_not_know_is_refused_by_name(world: World) -> None:
    """At the target, by the source of this release; at the source, by the client. The error names hop and versions."""
    hops = {"alice": ("south", "target south.example"), "bob": ("north", "source south.example")}
    for name, (peer, hop) in hops.items():
        with world.client(name) as client, pytest.raises(ContractMismatch) as caught:
            client.submit(
                [sample(world.kind, 1)], f"{peer}.example/{peer}-{world.kind}", SHORT, guidance=Guidance(2.0)
            )
        (difference,) = caught.value.differences
        assert (difference.field, difference.source) == ("version", "1.5, 1.4, 1.3, 1.2, 1.1, 1.0")
        assert difference.target.startswith("1.1")
        assert "pgrade" in difference.remedy
        assert hop in f"{caught.value.hop} {difference.remedy}"


def test_an_earlier_client_uses_a_node_of_this_release(world: World) -> None:
    """The earlier `ddib translate`, with the profile that it wrote."""
    folder, suffix = world.folder, ".npy" if world.kind == "points" else ".png"
    (folder / f"sample{suffix}").write_bytes(sample(world.kind, 1))
    world.earlier.run(
        "-c", "from ddib_fed.cli.main import main; main()", "translate", folder / f"sample{suffix}",
        "--to", f"south.example/south-{world.kind}", "--steps", 12, "--cycle", "--out", folder / "out",
        "--profile", folder / "alice" / "client.toml",
    )  # fmt: skip
    translated = values((folder / "out" / f"sample{suffix}").read_bytes())
    np.testing.assert_allclose(translated, values(world.results["0"].translation.data), rtol=1e-5, atol=0.005)
    assert (folder / "out" / f"sample.returned{suffix}").exists()
