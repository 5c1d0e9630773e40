"""node.toml: strict, with suggestions."""

from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError, FileMissing
from ddib_fed.node.config import NodeConfig
from tests.node.tiny_nodes import node_toml


def write(folder: Path, **replace: str) -> Path:
    text = node_toml(listen="127.0.0.1:7443")
    for old, new in replace.items():
        text = text.replace(old.replace("__", " = "), new)
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_every_commented_setting_can_be_switched_on(tmp_path: Path) -> None:
    path = write(tmp_path)
    lines = []
    for line in path.read_text().splitlines():
        bare = line.removeprefix("# ")
        setting = line.startswith("# ") and " = " in bare and bare.split(" = ")[0].isidentifier()
        lines.append(bare.partition("#")[0] if setting else line)
    path.write_text("\n".join(lines))
    config = NodeConfig.load(path)
    assert config.http.listen == "127.0.0.1:9464"
    assert config.limits.max_open_jobs == 64


def test_a_misspelt_key_is_named_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.sede.*did you mean 'seed'"):
        NodeConfig.load(write(tmp_path, seed__="sede = "))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"north.example"', '"North"', "DNS name in lower case"),
        ("127.0.0.1:7443", "7443", "is not host:port"),
        ('"source"]', '"sauce"]', "source"),
        ('# listen = "127.0.0.1:9464"', 'listen = "0.0.0.0:9464"', "unencrypted"),
        ("seed = 0", 'seed = 0\ndata = "p.npy"', "give one of: domain, data"),
        ("seed = 0", "seed = 0\nflip = true", "train: --flip is for pictures"),
        (
            'domain = "moons"             # a b',
            'images = "scans"\nwidth = 8 # a b',
            "train: --set width is for points",
        ),
        ("seed = 0", 'seed = 0\ntime = "2 h"', "is no time"),
        ("[node]", "[node", "not valid TOML"),
    ],
)
def test_a_value_that_cannot_be_used_is_explained(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = write(tmp_path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        NodeConfig.load(path)


def test_a_table_that_is_pasted_below_the_others_is_to_be_merged(tmp_path: Path) -> None:
    """The block of a page, at the end of a file that has the table already: both lines are named."""
    path = write(tmp_path)
    lines = path.read_text().splitlines()
    first, second = lines.index("[policy]") + 1, len(lines) + 2
    path.write_text("\n".join([*lines, "", "[policy]  # of the page", 'calibration = ["rotation"]', ""]))
    with pytest.raises(
        ConfigError, match=rf"declares \[policy\] twice, in lines {first} and {second}"
    ) as caught:
        NodeConfig.load(path)
    assert "merge the [policy] tables" in caught.value.hint


def test_train_takes_options_and_fields_of_set_alike(tmp_path: Path) -> None:
    table = 'images = "scans"\nsize = 16\nskip_bad = true\ninit = "start"\nnetwork = {channel_mult = [1, 2]}'
    path = write(tmp_path, **{'domain = "moons"             # a b': table + " # a b", "seed = 0": ""})
    made = NodeConfig.load(path).train.config(tmp_path, "moons", name="hills", threads=1, command="")
    assert (made.name, made.images, made.init) == ("hills", tmp_path / "scans", tmp_path / "start")
    assert (made.size, made.skip_bad) == (16, True)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(FileMissing) as caught:
        NodeConfig.load(tmp_path / "node.toml")
    assert "ddib init node" in caught.value.hint
