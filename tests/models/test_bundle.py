"""Bundles: what is saved is what is loaded, and each way of being damaged is refused with file and field."""

import hashlib
import json
import math
import os

import pytest
import safetensors.torch
import torch

from ddib_fed.errors import BundleInvalid
from ddib_fed.files import copy_folder
from ddib_fed.model import Model
from ddib_fed.models import bundle
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.catalogue import STEPS_FILE
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.sidecars import Tuned
from ddib_fed.networks.config import SyntheticConfig
from tests.models.examples import SMALL, manifest, state, tuned_leg


@pytest.fixture
def saved(tmp_path):
    save_bundle(tmp_path / "model", manifest(), state())
    return tmp_path / "model"


def modes(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]
    }


def rewrite(folder, change, *, sign=True):
    """Edit manifest.json; with `sign` its digest is made right again."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    if sign:
        fields.pop("digest")
        fields["digest"] = Manifest.model_validate(fields).digest()
    path.write_text(json.dumps(fields))


def reweigh(folder, tensors):
    """Other weights, with digests that fit them."""
    data = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(data)
    rewrite(folder, lambda fields: fields.update(weights_sha256=hashlib.sha256(data).hexdigest()))


@pytest.mark.parametrize("network", [SMALL, SyntheticConfig(num_channels=32, num_res_blocks=1)])
def test_round_trip(network, tmp_path):
    """Weights, manifest and digest come back, and the network computes."""
    written = save_bundle(tmp_path / "deep" / "model", manifest(network), state(network))
    read = load_bundle(tmp_path / "deep" / "model")
    assert read.digest == written.digest
    assert read.manifest == written.manifest
    assert read.manifest.parameters == sum(t.numel() for t in state(network).values())
    assert all(torch.equal(read.state[key], value) for key, value in state(network).items())
    denoiser = read.denoiser(torch.float64)
    assert denoiser(torch.zeros(3, 2, dtype=torch.float64), read.schedule.level(0.0)).shape == (3, 2)


def test_weights_are_their_owners_alone(tmp_path):
    """Folder 0700, files 0600, whatever the umask, and whatever a bundle that is replaced was; parents are as usual."""
    path = tmp_path / "models" / "model"
    before = os.umask(0)
    try:
        save_bundle(path, manifest(), state())
        path.chmod(0o755)
        (path / "model.safetensors").chmod(0o644)
        save_bundle(path, manifest(), state(), overwrite=True)
        copy_folder(path, tmp_path / "copy")
    finally:
        os.umask(before)
    for folder in (path, tmp_path / "copy"):
        assert modes(folder) == {".": 0o700, "manifest.json": 0o600, "model.safetensors": 0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o777


def test_a_failed_save_keeps_what_was_there(saved, monkeypatch):
    """Overwriting that fails leaves the old bundle whole."""
    before = load_bundle(saved).digest

    def fail(path, data, *, private):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "write_file", fail)
    with pytest.raises(OSError, match="No space"):
        save_bundle(saved, manifest(), state(seed=1), overwrite=True)
    assert load_bundle(saved).digest == before


DAMAGE = {
    "edited manifest": (lambda f: rewrite(f, lambda m: m.update(domain="rings"), sign=False), "digest"),
    "unknown field": (lambda f: rewrite(f, lambda m: m.update(extra=1), sign=False), "extra"),
    "huge network": (lambda f: rewrite(f, lambda m: m["network"].update(width=10**9), sign=False), "width"),
    "path for a domain": (lambda f: rewrite(f, lambda m: m.update(domain="../x"), sign=False), "domain"),
    "not JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "truncated weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-4]),
        "weights_sha256",
    ),
    "missing tensor": (lambda f: reweigh(f, {k: v for k, v in state().items() if k != "leave.bias"}), "leave.bias"),
    "other tensor shape": (lambda f: reweigh(f, {**state(), "leave.bias": torch.zeros(3)}), "leave.bias"),
    "not finite": (lambda f: reweigh(f, {**state(), "leave.bias": torch.full((2,), math.nan)}), "leave.bias"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "named"), DAMAGE.values(), ids=DAMAGE)
def test_refuses_damage_by_file_and_field(saved, damage, named):
    """The detail names what is wrong, and there is a next step."""
    damage(saved)
    with pytest.raises(BundleInvalid) as caught:
        load_bundle(saved)
    assert named in caught.value.detail
    assert str(saved) in caught.value.detail
    assert caught.value.hint


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_file_that_cannot_be_read_is_no_damage(saved, name):
    """Weights are their owner's alone: a service of another user gets a hint about the modes, not to train again."""
    (saved / name).unlink()
    (saved / name).mkdir()  # root may read every file
    with pytest.raises(BundleInvalid, match="cannot be read") as failed:
        load_bundle(saved)
    assert failed.value.hint.startswith(f"namei -l {saved / name} ")


# steps.json: its numbers are bounded, and the model's digest does not know of it


def put_legs(folder, legs, command=""):
    Model.open(folder).put_steps([leg.model_dump() for leg in legs], command=command)


def damaged(folder, change):
    """The message of loading a bundle whose steps.json was changed."""
    put_legs(folder, [tuned_leg()])
    path = folder / STEPS_FILE
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(BundleInvalid) as refused:
        load_bundle(folder)
    assert "ddib model tune" in str(refused.value.hint)
    return refused.value.detail


def test_steps_are_kept_beside_the_weights_and_change_no_digest(saved):
    """Contracts and calibrations name the digest; tuning must not void them."""
    before = load_bundle(saved)
    assert before.tuned is None
    put_legs(saved, [tuned_leg(), tuned_leg("encode")], command="c")
    after = load_bundle(saved)
    assert after.digest == before.digest
    assert after.tuned.evaluations == (4,)
    assert after.tuned.command == "c"
    assert after.learned.find("decode", 4).lams == tuned_leg().lams


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda leg: leg["lams"].__setitem__(1, leg["lams"][0]), "must fall"),
        (lambda leg: leg["lams"].__setitem__(0, 1e9), "less than or equal to 30"),
        (lambda leg: leg.update(evaluations=10_000), "less than or equal to 64"),
        (lambda leg: leg.update(run="rm"), "Extra inputs"),
    ],
)
def test_numbers_out_of_range_are_refused(saved, change, words):
    assert words in damaged(saved, lambda fields: change(fields["legs"][0]))


def test_too_many_legs_and_too_large_a_file_are_refused(saved, monkeypatch):
    """A file from elsewhere cannot fill memory."""
    assert "two legs" in damaged(saved, lambda f: f.update(legs=f["legs"] * 2))
    (saved / STEPS_FILE).unlink()
    assert "at most 64 items" in damaged(saved, lambda f: f.update(legs=f["legs"] * 65))
    (saved / STEPS_FILE).write_bytes(b" " * (Tuned.max_bytes + 1))
    with pytest.raises(BundleInvalid, match="larger than"):
        load_bundle(saved)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_file_without_an_end_is_refused_before_it_is_read(name, tmp_path):
    save_bundle(tmp_path / "m", manifest(), state())
    (tmp_path / "m" / name).unlink()
    (tmp_path / "m" / name).symlink_to("/dev/zero")
    with pytest.raises(BundleInvalid, match="no regular file"):
        load_bundle(tmp_path / "m")
