"""A backup is made while the node works, holds everything but the model, and is believed only as a whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import tarfile
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from ddib_fed.errors import AlreadyExists, ChunkCorrupt, ConfigError, FileMissing, InputError
from ddib_fed.files import copy_folder
from ddib_fed.models.bundle import save_bundle
from ddib_fed.node.backup.checking import check_backup
from ddib_fed.node.backup.making import make_backup
from ddib_fed.node.backup.record import NAME, is_safe
from ddib_fed.node.backup.restoring import left_out, restore
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model import library
from ddib_fed.node.model.hosted import load_hosted
from ddib_fed.node.officer.facts import stored
from ddib_fed.trust import pki
from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.audit.verification import verify
from source_node.jobs.store import JobStore, Part
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_config, make_institution, manifest, save_model, state
from tests.source_node.jobs.job_examples import ALICE, decode, running, submit


class North:
    """A source node's folder with peers, jobs and a log, as a node leaves it; the store is open, as while it runs."""

    def __init__(self, folder: Path) -> None:
        self.config = make_config(folder, "north.example", "source")
        self.institution = make_institution(folder, "north.example")
        self.institution.admit(Institution("south.example", folder.parent / "south"))
        self.institution.store.suspend("south.example")
        (self.config.paths.state / "softening.key").write_bytes(b"secret" * 6)
        self.audit = AuditLog(self.config.paths.audit)
        self.audit.write("job_accepted", job="1")
        self.store = JobStore(self.config.paths.jobs, self.config.paths.spool)
        self.job = submit(self.store, b"a picture")

    def close(self) -> None:
        self.store.close()


@pytest.fixture
def north(tmp_path: Path):
    made = North(tmp_path / "north")
    yield made
    made.close()


def test_what_is_restored_is_the_node_as_it_was(north: North, tmp_path: Path) -> None:
    """Keys, peers, suspensions, jobs with their files, and the log, which says that it was restored."""
    record = make_backup(north.config, tmp_path / "north.tar")
    assert (record.institution, record.jobs) == ("north.example", 1)
    assert (tmp_path / "north.tar").stat().st_mode & 0o777 == 0o600
    assert check_backup(tmp_path / "north.tar") == record
    assert restore(tmp_path / "north.tar", tmp_path / "again") == record
    config = NodeConfig.load(tmp_path / "again" / "node.toml")
    before, after = north.config.paths, config.paths
    assert pki.load_identity(after.pki) == pki.load_identity(before.pki)
    assert (after.state / "softening.key").read_bytes() == (before.state / "softening.key").read_bytes()
    copy = Institution.__new__(Institution)
    copy.name, copy.folder = "north.example", after.state
    assert [peer.institution for peer in copy.store.list()] == ["south.example"]
    assert "south.example" in copy.store.snapshot().suspended
    with closing(JobStore(after.jobs, after.spool)) as store:
        assert store.swept_files == 0
        assert store.get(north.job.job_id).spec == north.job.spec
        assert store.read_part(north.job.job_id, 0, Part.INPUT) == b"a picture"
    log = verify(after.audit)
    assert (log.ok, log.lines) == (True, 2)
    assert b'"act":"restored"' in after.audit.read_bytes()
    for path in after.state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_backup_leaves_nothing_in_the_state_folder(north: North, tmp_path: Path) -> None:
    """Neither links nor copies."""
    before = sorted(north.config.paths.state.rglob("*"))
    make_backup(north.config, tmp_path / "north.tar")
    assert sorted(north.config.paths.state.rglob("*")) == before


def test_what_a_killed_backup_left_goes_with_the_next(north: North, tmp_path: Path) -> None:
    """Its links would keep the files of jobs; one that another process makes now is left alone."""
    state = north.config.paths.state
    dead, alive = state / ".backup-4194305-x", state / f".backup-{os.getpid()}-x"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "link").write_bytes(b"x")
    make_backup(north.config, tmp_path / "north.tar")
    assert (dead.exists(), alive.exists()) == (False, True)


def test_what_a_killed_backup_or_restoration_left_beside_its_target_goes_with_the_next(
    north: North, tmp_path: Path
) -> None:
    """Both hold keys and pictures; what others call likewise, or make now, stays."""
    archive, folder = ".ddib-backup-node-1.north.example-", ".ddib-restore-"
    dead = [tmp_path / f"{archive}4194305-x", tmp_path / f"{folder}4194305-x"]
    kept = [
        tmp_path / f"{archive}{os.getpid()}-x", tmp_path / f"{folder}{os.getpid()}-x",
        tmp_path / ".ddib-backup-node-2.north.example-4194305-x", tmp_path / f"{folder}of-mine",
    ]  # fmt: skip
    for path in (*dead, *kept):
        path.mkdir() if "restore" in path.name else path.write_bytes(b"half a key")
    make_backup(north.config, tmp_path / "north.tar")
    restore(tmp_path / "north.tar", tmp_path / "again")
    assert [path.exists() for path in (*dead, *kept)] == [False] * 2 + [True] * 4


def test_a_check_writes_nothing(north: North, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of it leaves no key and no picture anywhere."""
    make_backup(north.config, tmp_path / "north.tar")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    opened = os.open

    def reading(path, flags, *rest, **more):
        assert flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0, path
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", reading)
    assert check_backup(tmp_path / "north.tar").jobs == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_damaged_database_or_log_is_noticed(members: dict[str, bytes], tmp_path: Path) -> None:
    """Also when the record has the digest of what is damaged."""
    jobs, log = "state/jobs.sqlite", "state/audit.jsonl"
    content = members[jobs]
    for number, (name, data) in enumerate(
        [
            (jobs, content[:4096] + bytes(len(content) - 4096)),
            (jobs, content[:100]),
            (log, members[log].replace(b"job_accepted", b"job_refused_")),
        ]
    ):
        record = json.loads(members[NAME])
        record["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        file = written(tmp_path / f"{number}.tar", members | {NAME: json.dumps(record).encode(), name: data})
        for act in (check_backup, lambda path: restore(path, tmp_path / "never")):
            with pytest.raises(ChunkCorrupt):
                act(file)


def test_what_a_backup_does_not_hold_is_named(tmp_path: Path) -> None:
    """The model always; the proxy's login and the index of training pictures where node.toml names them."""
    folder = tmp_path / "north"
    plain = make_config(folder, "north.example", "source")
    assert left_out(plain, "ab" * 32) == [f"the model abababababab at {plain.paths.bundle}"]
    settings = {
        "proxy": '"http://proxy:3128"', "proxy_login": '"proxy.login"', "memorised": '"index"'
    }  # fmt: skip
    full = make_config(folder, "north.example", "source", **settings)
    assert left_out(full, "ab" * 32)[1:] == [
        f"the proxy's login at {folder / 'proxy.login'}",
        f"the index of training pictures at {folder / 'index'}",
    ]
    assert folder / "proxy.login" in {each.path for each in stored(full)}


def test_the_place_of_an_installed_model_is_named(north: North, tmp_path: Path) -> None:
    """The one that was active lies in the state folder and not in the backup; its choice counts beside the other."""
    first, second = save_model(north.config).digest, tmp_path / "new"
    active = save_bundle(second, manifest("other"), state()).digest
    library.choose(north.config, library.install(north.config, second))
    record = make_backup(north.config, tmp_path / "north.tar")
    restore(tmp_path / "north.tar", tmp_path / "again")
    again = NodeConfig.load(tmp_path / "again" / "node.toml")
    command = f"ddib model install BUNDLE --config {again.path}"
    assert left_out(again, record.model_sha256) == [
        f"the model {first[:12]} at {again.paths.bundle}",
        f"the model {active[:12]}, which was active, at {again.paths.models / active}: {command}",
    ]
    copy_folder(north.config.paths.bundle, again.paths.bundle)
    assert library.install(again, second) == active
    assert load_hosted(again).digest == active, "what is named is all that the node needs"
    assert left_out(again, first) == [f"the model {first[:12]} at {again.paths.bundle}"]


def test_a_file_that_is_no_nodes_is_named(north: North, tmp_path: Path) -> None:
    """Rather no backup than one that cannot be restored."""
    (north.config.paths.state / "my notes.txt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"my notes\.txt"):
        make_backup(north.config, tmp_path / "north.tar")


def work(store: JobStore, stop: threading.Event) -> None:
    """Jobs that come, are worked on, delivered and deleted, as fast as they can."""
    number = 0
    while not stop.is_set():
        number += 1
        job = running(store, f"picture {number}".encode() * 50)
        decode(store, job)
        store.finish(job.job_id, "FINISHED")
        if number % 2:
            store.delete(job.job_id, ALICE)


def test_a_backup_under_load_is_consistent(north: North, tmp_path: Path) -> None:
    """Every file that a row of the copy names is in it and whole, and no other; the node went on meanwhile."""
    stop = threading.Event()
    worker = threading.Thread(target=work, args=(north.store, stop))
    north.store.claim()
    worker.start()
    try:
        for number in range(5):
            make_backup(north.config, tmp_path / f"{number}.tar")
    finally:
        stop.set()
        worker.join()
    for number in range(5):
        restore(tmp_path / f"{number}.tar", tmp_path / str(number))
        paths = NodeConfig.load(tmp_path / str(number) / "node.toml").paths
        with closing(sqlite3.connect(paths.jobs)) as rows:
            named = rows.execute("SELECT job_id, item, part FROM parts").fetchall()
        with closing(JobStore(paths.jobs, paths.spool)) as store:
            assert store.swept_files == 0
            for job_id, item, part in named:
                store.read_part(job_id, item, Part(part))


def test_a_folder_that_goes_while_the_files_are_taken_is_passed_over(
    north: North, tmp_path: Path, monkeypatch
) -> None:
    """The folders of jobs that end are removed at any moment, also between being listed and being looked into."""
    spool = north.config.paths.spool
    real = os.scandir

    def scandir(path):
        if isinstance(path, str | Path) and Path(path).name.startswith(".going"):
            Path(path).rmdir()
        return real(path)

    for number in range(3):
        (spool / f".going-{number}").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    make_backup(north.config, tmp_path / "north.tar")
    monkeypatch.undo()
    assert not list(spool.glob(".going*"))
    restore(tmp_path / "north.tar", tmp_path / "again")
    paths = NodeConfig.load(tmp_path / "again" / "node.toml").paths
    with closing(JobStore(paths.jobs, paths.spool)) as store:
        assert store.read_part(north.job.job_id, 0, Part.INPUT) == b"a picture"


def test_nothing_is_overwritten(north: North, tmp_path: Path) -> None:
    """Neither a file by a backup nor a node's folder by a restoration."""
    (tmp_path / "there.tar").write_bytes(b"mine")
    with pytest.raises(AlreadyExists):
        make_backup(north.config, tmp_path / "there.tar")
    make_backup(north.config, tmp_path / "north.tar")
    with pytest.raises(AlreadyExists):
        restore(tmp_path / "north.tar", north.config.folder)
    assert (tmp_path / "there.tar").read_bytes() == b"mine"
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "north.tar", tmp_path / "empty")


def test_a_backup_that_cannot_be_written_is_no_backup(north: North, tmp_path: Path) -> None:
    """Nothing stays under its name."""
    with pytest.raises(InputError, match="cannot be written"):
        make_backup(north.config, tmp_path / "nowhere" / "north.tar")
    fresh = make_config(tmp_path / "fresh", "west.example", "target")
    with pytest.raises(InputError, match="no state"):
        make_backup(fresh, tmp_path / "fresh.tar")


@pytest.fixture
def members(north: North, tmp_path: Path) -> dict[str, bytes]:
    make_backup(north.config, tmp_path / "north.tar")
    with tarfile.open(tmp_path / "north.tar") as archive:
        return {m.name: archive.extractfile(m).read() for m in archive.getmembers()}


def written(path: Path, members: dict[str, bytes], **types: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name in types:
                info.type, info.linkname, info.size = types[name], "/etc/passwd", 0
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_changed_missing_or_added_file_is_noticed(members: dict[str, bytes], tmp_path: Path) -> None:
    """Each file is compared with the record; nothing appears where the node is to be."""
    name = next(name for name in members if name.endswith("ca.key"))
    changed = members | {name: members[name][:-2] + b"x\n"}
    missing = {key: value for key, value in members.items() if key != name}
    added = members | {"state/peers/evil.example.json": b"{}"}
    outside = members | {"../evil": b"x"}
    for number, content in enumerate((changed, missing, added, outside)):
        file = written(tmp_path / f"{number}.tar", content)
        for act in (check_backup, lambda path: restore(path, tmp_path / "never")):
            with pytest.raises(ChunkCorrupt):
                act(file)
    assert not (tmp_path / "never").exists()
    assert not list(tmp_path.glob(".ddib-restore-*"))


def test_a_link_in_an_archive_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    """It would be followed when the node reads its key."""
    name = next(name for name in members if name.endswith("ca.key"))
    with pytest.raises(ChunkCorrupt):
        check_backup(written(tmp_path / "link.tar", members, **{name: tarfile.SYMTYPE}))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format_version": 2}, ConfigError),
        ({"format_version": 0}, ChunkCorrupt),
        ({"format_version": "1"}, ChunkCorrupt),
        ({"institution": "west.example"}, ChunkCorrupt),
        ({"audit_head": "0" * 64}, ChunkCorrupt),
        ({"more": 1}, ChunkCorrupt),
    ],
    ids=str,
)
def test_a_record_of_another_form_or_node_is_refused(
    members: dict[str, bytes], tmp_path: Path, change: dict, error
) -> None:
    """A later format says so; what does not fit its files is damaged."""
    record = json.loads(members[NAME]) | change
    with pytest.raises(error):
        check_backup(written(tmp_path / "x.tar", members | {NAME: json.dumps(record).encode()}))


@pytest.mark.parametrize(
    "name", ["state/../x", "/state/x", "state", "state/a b", "state//x", "x", "state/./x"]
)
def test_a_name_leads_nowhere_else(name: str) -> None:
    """Only node.toml and plain names below state/."""
    assert not is_safe(name)
    assert is_safe("state/spool/0a/0.input")


def test_what_is_no_backup_is_named(tmp_path: Path) -> None:
    """Missing, or something else."""
    with pytest.raises(FileMissing):
        check_backup(tmp_path / "none.tar")
    (tmp_path / "x.tar").write_bytes(b"x" * 2_000)
    with pytest.raises(ChunkCorrupt):
        check_backup(tmp_path / "x.tar")
