"""A node serves another model without a restart; what began with the one before ends on it."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ddib_fed.bridge.party import Leg, ToDecode
from ddib_fed.bridge.serving import ServingParty
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.errors import BundleInvalid, ConfigError, ModelNotFound, StateConflict
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.networks.mlp import ResidualMLP
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model import library
from ddib_fed.node.model.hosted import load_hosted, open_engine
from ddib_fed.node.model.loaded import LoadedModel
from ddib_fed.node.policy_file import PolicyFile
from ddib_fed.node.role import NodeContext
from ddib_fed.node.running.switching import Models
from tests.node.model.other import other_bundle
from tests.node.tiny_nodes import (
    NETWORK,
    gaussian,
    make_context,
    make_institution,
    manifest,
    state,
    tiny_engine,
)


class Role:
    """A role whose accepted work began with these models."""

    def __init__(self) -> None:
        self.needed: set[str] = set()

    def models_needed(self) -> set[str]:
        return self.needed


@pytest.fixture
def models(config: NodeConfig):
    node = make_context(config, make_institution(config.folder, "north.example"), open_engine(config))
    role = Role()
    made = Models(node, [role])
    made.node, made.role = node, role
    yield made
    made.close()


def test_an_installed_model_is_a_verified_private_copy(config: NodeConfig, tmp_path: Path) -> None:
    """Under its digest; the same again is no error, and the source may go."""
    bundle = other_bundle(tmp_path / "new")
    digest = library.install(config, bundle)
    assert library.install(config, bundle) == digest
    shutil.rmtree(bundle)
    place = library.place_of(config, digest[:12])
    assert load_bundle(place).digest == digest
    assert library.installed(config) == [digest]
    assert all(path.stat().st_mode & 0o077 == 0 for path in place.iterdir())


def test_what_the_node_could_not_serve_is_not_installed(config: NodeConfig, tmp_path: Path) -> None:
    """Damaged, of another domain, or no bundle at all."""
    damaged = other_bundle(tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleInvalid):
        library.install(config, damaged)
    with pytest.raises(ConfigError, match="relief"):
        library.install(config, other_bundle(tmp_path / "relief", domain="relief"))
    with pytest.raises(ModelNotFound):
        library.install(config, tmp_path / "nowhere")
    assert library.installed(config) == []


def test_the_choice_is_served_from_the_next_start_and_taken_back(config: NodeConfig, tmp_path: Path) -> None:
    """On the disk; a rollback goes to the model of before, and a second one forward again."""
    first = load_hosted(config).digest
    second = library.install(config, other_bundle(tmp_path / "new"))
    library.choose(config, second)
    assert load_hosted(config).digest == second
    library.choose(config, library.previous(config))
    assert load_hosted(config).digest == first
    assert library.previous(config) == second


def test_a_model_that_is_put_in_place_by_hand_is_the_later_choice(config: NodeConfig, tmp_path: Path) -> None:
    """`train` wrote another bundle to [model] bundle: that one is served."""
    library.choose(config, library.install(config, other_bundle(tmp_path / "new")))
    shutil.rmtree(config.paths.bundle)
    trained = save_bundle(config.paths.bundle, manifest("trained"), state()).digest
    assert load_hosted(config).digest == trained
    with pytest.raises(StateConflict):
        library.previous(config)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format_version": 1}', b'{"active": "../../x"}'])
def test_a_damaged_choice_is_named(config: NodeConfig, content: bytes) -> None:
    """Rather no start than another model than the operator chose."""
    config.paths.model_choice.parent.mkdir(exist_ok=True)
    config.paths.model_choice.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.json"):
        load_hosted(config)


def test_a_name_that_is_no_digest_leads_nowhere(config: NodeConfig) -> None:
    """Nor does the beginning of none."""
    for name in ("", "..", "0" * 64, "zz"):
        with pytest.raises(ModelNotFound):
            library.place_of(config, name)


def test_work_that_began_keeps_its_model(models: Models, config: NodeConfig, tmp_path: Path) -> None:
    """While it runs, and until accepted work no longer needs it; then it is closed."""
    first = models.node.active_digest
    second = library.install(config, other_bundle(tmp_path / "new"))
    with models.node.serving(first) as began:
        assert models.activate(second) == first
        assert models.node.active_digest == models.node.side().model_sha256.hex() == second
        assert began.active_digest == began.side().model_sha256.hex() == first
        models.retire()
        assert models.node.is_warm(first)
    models.role.needed = {first}
    models.retire()
    assert models.node.is_warm(first)
    models.role.needed = set()
    models.retire()
    assert not models.node.is_warm(first)
    with pytest.raises(ModelNotFound), models.node.serving(first):
        pass
    assert models.activate(first) == second
    assert b'"act":"model_activated"' in config.paths.audit.read_bytes()


def test_a_switch_that_fails_is_taken_back_in_the_audit_log(
    models: Models, config: NodeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line came before it: the choice could not be written to the disk."""
    second = library.install(config, other_bundle(tmp_path / "new"))

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ddib_fed.node.running.switching.choose", full)
    with pytest.raises(OSError, match="No space"):
        models.activate(second)
    assert models.node.active_digest != second
    lines = [json.loads(line) for line in config.paths.audit.read_text().splitlines()]
    assert [(line["act"], line.get("what"), line["sha256"]) for line in lines] == [
        ("model_activated", None, second),
        ("not_done", "model_activated", second),
    ]


def test_a_model_that_is_being_switched_to_is_not_closed(
    models: Models, config: NodeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback takes the model of before, still warm and used by nothing, when the periodic check comes by."""
    first = models.node.active_digest
    second = library.install(config, other_bundle(tmp_path / "new"))
    models.activate(second)
    prepare = NodeContext.prepare

    def meanwhile(node: NodeContext, engine: ServingParty) -> LoadedModel:
        models.retire()
        return prepare(node, engine)

    monkeypatch.setattr(NodeContext, "prepare", meanwhile)
    assert models.activate(first) == second
    works(models.node)
    models.retire()
    assert not models.node.is_warm(second), "a later check closes what nothing needs"
    works(models.node)


def works(node: NodeContext) -> None:
    """What everybody asks of the active model."""
    latent = Latent.from_array(gaussian(3))
    found = node.running_engine.decode(ToDecode(0, latent), Leg(SolverSettings(evaluations=1)))
    assert found.samples.shape == (3, 2)


@pytest.mark.slow
def test_work_goes_on_while_models_are_switched_retired_and_the_policy_is_read(
    models: Models, config: NodeConfig, tmp_path: Path, amount
) -> None:
    """There and back, beside the periodic check, reloads and work: no piece of work meets a closed model."""
    digests = [library.install(config, other_bundle(tmp_path / "new")), models.node.active_digest]
    ended, failures = threading.Event(), []

    def again(act: Callable[[], object]) -> None:
        try:
            while not ended.wait(0.0005):
                act()
        except Exception as error:  # noqa: BLE001 - told below, whatever it is
            failures.append(error)

    def work() -> None:
        with models.node.serving_first() as own:
            assert own.side().model_sha256.hex() == own.active_digest
            works(own)

    def reload() -> None:
        with models.settled():
            PolicyFile(models.node).reload()

    threads = [threading.Thread(target=again, args=(act,)) for act in (models.retire, work, work, reload)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(amount(6, 200)):
            models.activate(digests[turn % 2])
            works(models.node)
            if turn % 3:  # both are warm, or one was closed: the next switch finds either
                models.retire()
    finally:
        ended.set()
        for thread in threads:
            thread.join(20)
    assert not failures
    models.retire()
    assert len(models.node.all_models()) == 1


def test_a_side_of_a_contract_is_of_one_model(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another becomes active while it is put together: its digest does not stand over the terms of the one before."""
    engines = [models.node.running_engine, tiny_engine("other", schedule=ScheduleConfig(name="cosine"))]
    expected = {
        (engine.model.bundle.schedule.lambda_min, bytes.fromhex(engine.model.bundle.digest))
        for engine in engines
    }
    turns = itertools.cycle(engines)
    monkeypatch.setattr(NodeContext, "running_engine", property(lambda _: next(turns)))
    for _ in range(4):
        side = models.node.side()
        assert (side.terminal_lambda, side.model_sha256) in expected
    engines[1].close()


def test_what_is_chosen_stays_from_the_choice_on(models: Models, config: NodeConfig, tmp_path: Path) -> None:
    """The first that is loaded, or else the active one; neither a switch nor the periodic check takes it away."""
    first = models.node.active_digest
    second = library.install(config, other_bundle(tmp_path / "new"))
    with models.node.serving_first(["0" * 64, ""]) as own:
        assert own.active_digest == first
        models.activate(second)
        models.retire()
        with models.node.serving_first(["0" * 64, first]) as other:
            assert other.active_digest == first
        models.retire()
        works(own)
    models.retire()
    with models.node.serving_first([first]) as own:
        assert own.active_digest == second


def test_a_model_of_other_samples_is_not_switched_to(
    models: Models, config: NodeConfig, tmp_path: Path
) -> None:
    """Accepted jobs were checked for the one before; nothing has changed, on the disk neither."""
    first = models.node.active_digest
    weights = ResidualMLP(dim=3, width=16, blocks=1, embedding=16, features=8).state_dict()
    network = NETWORK.model_copy(update={"dim": 3})
    save_bundle(tmp_path / "wide", manifest("wide", sample_shape=(3,), network=network), weights)
    wide = library.install(config, tmp_path / "wide")
    with pytest.raises(StateConflict, match="shape"):
        models.activate(wide)
    assert (models.node.active_digest, library.active_digest(config)) == (first, first)
    assert not models.node.is_warm(wide)


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(
    models: Models, config: NodeConfig, tmp_path: Path
) -> None:
    """Its file was damaged since it was installed."""
    first = models.node.active_digest
    second = library.install(config, other_bundle(tmp_path / "new"))
    weights = library.place_of(config, second) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleInvalid):
        models.activate(second)
    assert (models.node.active_digest, library.active_digest(config)) == (first, first)


def test_a_model_that_the_policy_does_not_let_serve_is_not_chosen(
    models: Models, config: NodeConfig, tmp_path: Path
) -> None:
    """It has no index of its training pictures: the next start would fail as well, so the choice stays."""
    first = models.node.active_digest
    second = library.install(config, other_bundle(tmp_path / "new"))
    policy = config.policy.model_copy(update={"memorised": "indexes"})
    models.node.config = config.with_policy(policy).with_roles(("target",))
    with pytest.raises(ConfigError, match="memorised"):
        models.activate(second)
    assert (models.node.active_digest, library.active_digest(config)) == (first, first)
    assert not models.node.is_warm(second)


def test_a_start_loads_what_accepted_jobs_began_with(
    models: Models, config: NodeConfig, tmp_path: Path
) -> None:
    """If it is still installed."""
    second = library.install(config, other_bundle(tmp_path / "new"))
    models.role.needed = {second, "0" * 64}
    models.begin(models.node.running_engine)
    assert models.node.is_warm(second)
    assert models.node.active_digest != second
