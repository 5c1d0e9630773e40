"""`[policy] memorised`: a start checks the index of its model, a reload reads it again, a bad one changes nothing."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.bridge.serving import ServingParty
from ddib_fed.errors import ConfigError
from ddib_fed.metrics.attacks.copies import reduced
from ddib_fed.metrics.attacks.training_index import IndexFacts, file_name, index_file
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model import library
from ddib_fed.node.model.loaded import LoadedModel
from ddib_fed.node.model.training_index import described, open_index
from ddib_fed.node.policy_file import PolicyFile
from ddib_fed.node.role import NodeContext
from ddib_fed.node.running import startup, switching
from ddib_fed.node.running.switching import Models
from tests.node.picture_examples import SIZE, pictures_engine, save_pictures_model
from tests.node.tiny_nodes import make_config, make_context, make_institution, tiny_bundle


@pytest.fixture(scope="module")
def engine():
    made = pictures_engine("relief", seed=2)
    yield made
    made.close()


@pytest.fixture
def node(tmp_path: Path, engine):
    config = make_config(tmp_path / "south", "south.example", "target", domain="relief")
    return make_context(config, make_institution(tmp_path / "south", "south.example"), engine)


def index_of(model: str, *, threshold: float = 0.12) -> bytes:
    own = reduced(np.random.default_rng(0).uniform(-1, 1, (9, 1, SIZE, SIZE)).astype(np.float32))
    facts = IndexFacts(
        model_sha256=model,
        sample_shape=(1, SIZE, SIZE),
        pictures=9,
        numbers=own.shape[1],
        threshold=threshold,
        held_out=0,
    )
    return index_file(facts, own)


def put(node, engine, content: bytes | None = None) -> Path:
    """An index of the engine's model in a folder beside node.toml, which names the folder."""
    return put_as(node, engine.model.bundle.digest, good(engine) if content is None else content)


def put_as(node, digest: str, content: bytes) -> Path:
    path = node.config.folder / "indexes" / file_name(digest)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    text = re.sub(r"(?m)^# memorised = .*$", 'memorised = "indexes"', node.config.path.read_text())
    node.config.path.write_text(text)
    return path


def read(node) -> NodeConfig:
    return NodeConfig.load(node.config.path)


def good(engine) -> bytes:
    return index_of(engine.model.bundle.digest)


def test_the_index_of_the_served_model_is_opened(node, engine) -> None:
    """Only by a target whose policy names one."""
    assert open_index(node.config, engine.model.bundle) is None
    put(node, engine)
    found = open_index(read(node), engine.model.bundle)
    assert found is not None
    assert described(found) == f"9 training pictures (index {found.sha256[:12]}, below 0.12)"
    assert open_index(read(node).with_roles(("source",)), engine.model.bundle) is None


def _missing(path: Path) -> None:
    path.unlink()


def _open_to_others(path: Path) -> None:
    path.chmod(0o640)


def _in_a_shared_folder(path: Path) -> None:
    path.parent.chmod(0o777)


def _damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _something_else(path: Path) -> None:
    path.write_bytes(b"no index")


def _of_another_model(path: Path) -> None:
    path.write_bytes(index_of("cd" * 32))


WRONG = {
    _missing: "there is no",
    _open_to_others: "can be read by others",
    _in_a_shared_folder: "can be written to by others",
    _damaged: "is damaged",
    _something_else: "is not an index",
    _of_another_model: "is the index of the model cdcdcdcdcdcd",
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda each: each.__name__.strip("_"))
def test_a_file_that_cannot_be_used_ends_a_start(node, engine, spoil) -> None:
    """With the setting, what is wrong and a command that can be pasted; `check` says the same."""
    path = put(node, engine)
    spoil(path)
    with pytest.raises(ConfigError) as refused:
        open_index(read(node), engine.model.bundle)
    assert "memorised = 'indexes' in [policy]" in refused.value.detail
    assert WRONG[spoil] in refused.value.detail
    assert refused.value.hint.startswith(("ddib privacy index --model ", "chmod "))
    path.parent.chmod(0o700)


def test_a_model_that_decodes_none_of_its_training_pictures_has_no_index(node, engine) -> None:
    """It is a model of points, or of scenes."""
    put(node, engine)
    for bundle, said in (
        (tiny_bundle(), "points"),
        (engine.model.bundle.of_scenes(2 * SIZE, 2 * SIZE), "scenes"),
    ):
        with pytest.raises(ConfigError, match=said):
            open_index(read(node), bundle)


@pytest.mark.slow
def test_check_says_what_there_is(node, tmp_path) -> None:
    """The step of the model does; a name that is no file fails it."""
    save_pictures_model(node.config.paths.bundle, "relief", seed=2)
    step = next(each for each in startup.STEPS if each.name == "model")
    assert "copies" not in step.look(read(node)).text
    from ddib_fed.models.bundle import load_bundle

    digest = load_bundle(node.config.paths.bundle).digest
    path = put_as(node, digest, index_of(digest))
    assert "gives out no copies of 9 training pictures" in step.look(read(node)).text
    path.unlink()
    with pytest.raises(ConfigError, match="memorised"):
        step.look(read(node))


def acts(node, act: str) -> list[dict]:
    found = map(json.loads, node.config.paths.audit.read_text().splitlines())
    return [record for record in found if record["act"] == act]


def test_a_reload_applies_it_and_takes_it_back(node, engine) -> None:
    """Both are changes of the policy, with digests of their own."""
    before = node.policy_sha256
    plain = node.config.path.read_text()
    put(node, engine)
    told = PolicyFile(node).reload()
    assert told[0] == "policy.memorised:  to indexes"
    assert told[1].startswith("policy.memorised: no copies of 9 training pictures")
    assert node.training_index is not None
    assert node.policy_sha256 != before
    assert acts(node, "policy_changed")[0]["changes"] == told
    node.config.path.write_text(plain)
    assert PolicyFile(node).reload() == ["policy.memorised: indexes to "]
    assert (node.training_index, node.policy_sha256) == (None, before)


def test_a_reload_reads_another_file_of_the_same_name(node, engine) -> None:
    """It is a change, and goes into the audit log; the same file again is none."""
    put(node, engine)
    file = PolicyFile(node)
    file.reload()
    assert file.reload() == []
    put(node, engine, index_of(engine.model.bundle.digest, threshold=0.2))
    assert "below 0.2" in file.reload()[0]
    assert node.training_index.facts.threshold == 0.2
    assert len(acts(node, "policy_changed")) == 2


def test_a_reload_of_what_cannot_be_used_changes_nothing(node, engine) -> None:
    """The index in use stays in use, and the node says what to do."""
    path = put(node, engine)
    file = PolicyFile(node)
    file.reload()
    before = node.training_index
    path.write_bytes(index_of("cd" * 32))
    (told,) = file.reload()
    assert "ddib privacy index --model" in told
    assert told.endswith("then ddib reload")
    assert file.problem is not None
    assert node.training_index is before
    assert acts(node, "policy_refused")


def test_each_warm_model_keeps_its_own_index(node, engine) -> None:
    """After another one is activated, and after a reload that does not find the earlier one's file."""
    first = engine.model.bundle.digest
    path = put(node, engine)
    file = PolicyFile(node)
    file.reload()
    other = pictures_engine("relief", seed=5)
    try:
        with pytest.raises(ConfigError, match="there is no") as refused:
            node.set_engine(other)
        assert f"--out {node.config.folder / 'indexes'}" in refused.value.hint
        assert node.active_digest == first
        put(node, other)
        node.set_engine(other)
        assert node.training_index.facts.model_sha256 == other.model.bundle.digest
        path.unlink()
        assert file.reload() == []
        assert node.training_index_of(first).facts.model_sha256 == first
    finally:
        other.close()


def test_an_earlier_model_without_an_index_is_kept_for_its_jobs(node, engine) -> None:
    """It has no index, so it is not used for decoding (tests/target_node/test_outputs.py)."""
    put(node, engine)
    PolicyFile(node).reload()
    other = pictures_engine("relief", seed=5)
    try:
        node.keep_warm(other)
        assert node.is_warm(other.model.bundle.digest)
        assert node.training_index_of(other.model.bundle.digest) is None
    finally:
        other.close()


def test_a_policy_that_is_read_in_the_middle_of_a_switch_holds_for_the_model_that_becomes_active(
    node, engine, tmp_path, monkeypatch
) -> None:
    """The switch has seen that no index is asked for; the reload that asks for one waits until it has ended."""
    save_pictures_model(tmp_path / "other", "relief", seed=5)
    digest = library.install(node.config, tmp_path / "other")
    put(node, engine)
    put_as(node, digest, index_of(digest))
    models, prepare = Models(node, []), NodeContext.prepare

    def reload() -> None:
        with models.settled():
            PolicyFile(node).reload()

    thread = threading.Thread(target=reload)

    def meanwhile(self: NodeContext, party: ServingParty) -> LoadedModel:
        loaded = prepare(self, party)
        thread.start()
        thread.join(0.1)
        return loaded

    monkeypatch.setattr(NodeContext, "prepare", meanwhile)
    monkeypatch.setattr(switching, "open_engine", lambda *_, **__: pictures_engine("relief", seed=5))
    models.activate(digest)
    thread.join(20)
    assert node.training_index is not None
    assert node.training_index.facts.model_sha256 == node.active_digest == digest
    node.running_engine.close()


def test_a_path_that_has_no_digest_is_refused(node) -> None:
    """The policy's digest is taken over printable ASCII."""
    text = node.config.path.read_text().replace('# memorised = ""', 'memorised = "trainingsbilder-ü"')
    node.config.path.write_text(text)
    with pytest.raises(ConfigError, match="memorised"):
        read(node)
