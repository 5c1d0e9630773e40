"""Configurations of a MONAI bundle from elsewhere: what would never end is refused by its name."""

import json
import re
from pathlib import Path

import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode

SCHEDULER = "monai.networks.schedulers.DDPMScheduler"


def laughs() -> str:
    """Lists of ten references each to the list before."""
    lists = {f"a{number}": [f"@a{number - 1}"] * 10 for number in range(1, 12)}
    network = {"_target_": "DiffusionModelUNet", "spatial_dims": 2, "channels": "@a11"}
    return json.dumps({"a0": [1] * 10, **lists, "network_def": network})


def sums() -> str:
    """Texts of twice the length of the text before."""
    texts = {f"a{number}": f"$@a{number - 1} + @a{number - 1}" for number in range(1, 30)}
    network = {"_target_": "DiffusionModelUNet", "spatial_dims": 2, "channels": "@a29"}
    return json.dumps({"a0": "x" * 100_000, **texts, "network_def": network})


def aliases(form: str) -> str:
    lines = [f"a{number}: &a{number} {form.format(number - 1)}" for number in range(1, 31)]
    return "\n".join(["a0: &a0 {x: 1}", *lines])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("inference.json", laughs(), "more than 100,000 values, references and aliases expanded"),
        ("inference.json", sums(), "a29 is .* code, and only arithmetic|go round in a circle"),
        ("inference.yaml", aliases("[*a{0}, *a{0}]"), "more than 100,000 values, references and aliases expanded"),
        ("inference.yaml", aliases("{{<<: [*a{0}, *a{0}]}}"), "inference.yaml: it is not YAML that is read: .*merge"),
        ("inference.yaml", "a: &a [*a]", "more than 32 values in each other"),
        ("inference.json", f'{{"a": {"[" * 900}{"]" * 900}}}', "more than 32 values in each other"),
        ("inference.json", f'{{"a": "{"x" * (1 << 20)}"}}', "larger than 1048576 bytes"),
    ],
    ids=["references", "sums", "aliases", "merges", "circle", "depth", "size"],
)  # fmt: skip
def test_a_configuration_without_an_end_is_refused_by_its_name(name, text, said, tmp_path, refusal):
    (tmp_path / name).write_text(text)
    refusal(tmp_path, said)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("&n {_target_: X, a: *n}", "more than 32 values in each other"),
        ("{_target_: X, a: *a30}", "more than 100,000 values, references and aliases expanded"),
    ],
    ids=["circle", "aliases"],
)
def test_two_files_that_define_a_network_without_an_end_are_refused(network, said, tmp_path, refusal):
    for name in ("config_a.yaml", "config_b.yaml"):
        (tmp_path / name).write_text(f"{aliases('[*a{0}, *a{0}]')}\nnet: {network}")
    refusal(tmp_path, said)


@pytest.mark.parametrize("name", ["inference.json", "model.pt"])
def test_a_file_that_is_linked_to_an_endless_one_is_refused(name, tmp_path, refusal):
    scheduler = {"_target_": SCHEDULER}
    network = {"_target_": "DiffusionModelUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 1}
    (tmp_path / "train.json").write_text(json.dumps({"network_def": network, "noise_scheduler": scheduler}))
    (tmp_path / name).symlink_to("/dev/zero")
    refusal(tmp_path, f"{name}:? .*no regular file")


@pytest.fixture
def refusal(capsys):
    """Imports a folder by the command, which refuses it with these words and a next step."""

    def look(folder: Path, said: str) -> None:
        out = folder.with_name("out")
        assert run(["model", "import", str(folder), "--out", str(out)]) == ExitCode.BAD_INPUT
        assert not out.exists()
        shown = " ".join(capsys.readouterr().err.split())
        assert re.search(said, shown), shown
        assert "try: " in shown

    return look
