"""The README's own commands, from empty folders to pictures that are translated, as a stranger types them."""

import contextlib
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement

import ddib_fed
from ddib_fed.calibration import aggregate
from ddib_fed.cli.main import cli
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.datasets import load_shipped
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.metrics import psnr
from ddib_fed.node.command import node_command
from ddib_fed.testing import NodeProcess, free_port
from tests.e2e.harness import find_any, raw_windows, wait_until, weight_windows
from tests.e2e.processes import fork_node

pytestmark = [pytest.mark.e2e]

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
# What is left out of a command so that it ends in seconds.
SHORTER = {
    "--time 2h": "--steps 2 --batch 4 --size 16 --pictures 2 --evaluations 6",
    "--size 32 --time 1h": "--size 16 --steps 2 --batch 4",
    "--n 16": "--n 2 --evaluations 6",
    "--out there-and-back": "--evaluations 6 --out there-and-back",
    "--out painted": "--evaluations 12 --out painted",
    "--out drawn": "--n 500 --out drawn",
    "calibrate publish": "calibrate publish --yes",
    "calibrate --peer": "calibrate --yes --peer",
    "calibrate accept": "calibrate accept --yes",
    "calibrate dial": "calibrate dial --yes --limit 4",
}


def blocks(page: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands(page: str) -> list[tuple[str, str]]:
    """(who, command) for every line `who$ command`, with continuation lines joined; who is empty for `$ command`."""
    lines = "".join(blocks(page)).replace("\\\n", " ").splitlines()
    found = [re.fullmatch(r"([a-z]*)\$ (.+)", line) for line in lines if line]
    assert all(found), lines
    return [(match[1], match[2]) for match in found if match]


@dataclass
class Machines:
    """Two institutions' machines, each a folder, where somebody types what the page says."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    codes: list[str] = field(default_factory=list)

    def machine(self, who: str) -> Path:
        """The folder of a machine, beside the checkout."""
        place = self.folder / (who or "local")
        place.mkdir(exist_ok=True)
        if not (self.folder / "ddib-fed").exists():
            (self.folder / "ddib-fed").symlink_to(ROOT)
        return place

    def type(self, who: str, line: str) -> None:
        """Type one line; whoever translates waits until every node serves."""
        line = re.sub(r"\w+\.example:(\d+)", lambda match: f"localhost:{self._port(match[1])}", line)
        for old, new in SHORTER.items():
            line = line.replace(old, new)
        with contextlib.chdir(self.machine(who)):
            if " && " in line:  # Debian's Python takes packages into a virtual environment alone
                made, entered, installed = map(shlex.split, line.split(" && "))
                assert (made, entered) == (["python3", "-m", "venv", ".venv"], [".", ".venv/bin/activate"])
                assert installed == ["pip", "install", "../ddib-fed[node]"]
                assert Path("../ddib-fed/pyproject.toml").exists()
                return
            words = [found for word in shlex.split(line) for found in self._expanded(word)]
            if words[1] == "serve":
                self._serve(who, words)
            else:
                if words[1] in {"translate", "calibrate"}:
                    for node in self.nodes.values():
                        node.wait_serving()
                self.shown[f"{who} {words[1]}"] = in_process(words)

    def _port(self, port: str) -> int:
        return self.ports.setdefault(port, free_port())

    def _expanded(self, word: str) -> list[str]:
        found = sorted(map(str, Path().glob(word))) if "*" in word else [word]
        assert found, word
        return found

    def _serve(self, who: str, words: list[str]) -> None:
        """Start the node; one that waits for the other side shows a code, which goes from one to the other by hand."""
        if who in self.nodes:
            self.nodes[who].kill()
        words = [self.codes[-1] if word == "CODE" else word for word in words]
        node = NodeProcess(Path.cwd(), launch=fork_node)
        node.start(*words[2:], wait=False)
        self.nodes[who] = node
        if "--pair" in words:
            wait_until(lambda: bool(self._codes(node)), what="a code")
            self.codes += self._codes(node)

    def _codes(self, node: NodeProcess) -> list[str]:
        return re.findall(r"^ {4}(\d{3}-\d{3}-\d{3})$", node.log.read_text(), re.MULTILINE)

    def stop(self) -> None:
        for node in self.nodes.values():
            node.kill()


def in_process(words: Sequence[str]) -> str:
    """Run a command of the package without a Python of its own; what it showed."""
    program: click.Command = (
        cli if words[0] == "ddib" else node_command("source" if "source" in words[0] else "target")
    )
    done = CliRunner().invoke(program, list(words[1:]), catch_exceptions=False)
    assert done.exit_code == 0, (words, done.output)
    return done.output


def write_pictures(folder: Path, domain: str, count: int) -> None:
    folder.mkdir(parents=True)
    for number, pixels in enumerate(to_pixels(load_shipped(domain).train[:count])):
        (folder / f"{domain}-{number:02}.png").write_bytes(encode_png(pixels))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """After the seven commands; east and west serve."""
    machines = Machines(tmp_path_factory.mktemp("pair"))
    try:
        for who, line in commands(section("Two institutions, seven commands")):
            machines.type(who, line)
        yield machines
    finally:
        machines.stop()


def test_both_nodes_show_both_fingerprints(pair: Machines) -> None:
    """Those that `init` printed; nothing went from one machine to the other but the code."""
    assert len(pair.codes) == 1
    for who, other in (("east", "west"), ("west", "east")):
        for label, owner in (("ours", who), ("theirs", other)):
            (printed,) = re.findall(r"SHA256:\S+", pair.shown[f"{owner} init"])
            assert f"{label}         {printed}".split() in [
                line.split() for line in pair.nodes[who].log.read_text().splitlines()
            ]


def test_pictures_are_translated_and_come_back(pair: Machines) -> None:
    """A translation, a return and a record of each; neither side has the other's weights."""
    out = pair.machine("east") / "relief"
    pictures = sorted((ROOT / "docs/images/satellite").glob("*.png"))
    assert len(pictures) == 3
    for path in pictures:
        record = json.loads((out / f"{path.stem}.json").read_text())
        assert record["input"] == path.name
        pixels, translated, returned = (
            read_image(place).pixels for place in (path, out / path.name, out / f"{path.stem}.returned.png")
        )
        assert translated.shape == returned.shape == pixels.shape
        assert not np.array_equal(translated, pixels)
        assert psnr(unit(returned), unit(pixels))[0] > 30
    for mine, other in (("east", "west"), ("west", "east")):
        assert not find_any(weight_windows(pair.machine(other) / "model"), pair.machine(mine))


def base_packages() -> set[str]:
    """What `pip install ../ddib-fed` installs, by name: the dependencies in pyproject.toml and theirs."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found: set[str] = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = requirement.name.lower().replace("_", "-")
        if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(name)
            wanted += importlib.metadata.requires(name) or []
    return found


BASE = """
import sys
from importlib.abc import MetaPathFinder
absent = set(sys.argv.pop(1).split(","))
class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
"""In front of a program: a Python in which these packages are not installed."""


def test_a_client_needs_no_extra(pair: Machines) -> None:
    """After `pip install ../ddib-fed` alone: the command with its page, Python, and what reads volumes and serves
    the page in the browser. What needs more says so once, with the command that installs it."""
    base = base_packages()
    absent = {
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if not {"ddib-fed", "ddib-fed-models", *base}
        & {package.lower().replace("_", "-") for package in packages}
    }
    assert {"torch", "scipy", "matplotlib"} <= absent
    east = pair.machine("east")
    for node in pair.nodes.values():
        node.wait_serving()
    code = BASE + (
        "from pathlib import Path; import ddib_fed; from ddib_fed.cli.main import run;"
        "pictures = sorted(Path('../ddib-fed/docs/images/satellite').glob('*.png'));"
        "to = ['--to', 'west.example/relief', '--out'];"
        "assert run(['translate', *map(str, pictures), *to, 'bare', '--cycle']) == 0;"
        "client = ddib_fed.Client.from_profile('client/client.toml');"
        "[result] = ddib_fed.translate(str(pictures[0]), client, 'west.example/relief');"
        "result.picture.save('bare.png'); client.close();"
        "import ddib_fed.formats.dicom, ddib_fed.formats.nifti, ddib_fed.web.researcher, nibabel, pydicom;"
        "sys.exit(run(['model', 'sample', 'satellite', '--out', 'bare-samples']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(absent)], cwd=east, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("EXTRA_MISSING") == 1
    assert "-m pip install" in done.stderr.partition("EXTRA_MISSING")[2]
    assert (east / "bare" / "report.html").exists()
    assert read_image(east / "bare.png").pixels.shape == (32, 32, 3)


def unit(pixels: np.ndarray) -> np.ndarray:
    return np.float32(pixels.transpose(2, 0, 1)[None] / 127.5 - 1.0)


def test_the_python_of_the_page_runs(pair: Machines) -> None:
    """Each block by itself, in a checkout or, with a client, where east typed; the translations are the command's."""
    examples = blocks(README, "python")
    assert examples
    for code in examples:
        with contextlib.chdir(pair.machine("east" if "Client" in code else "")):
            exec(compile(code, "README.md", "exec"), {})
    with contextlib.chdir(pair.machine("east")):
        for number in (0, 1, 2):
            mine, commands_ = (
                read_image(Path(f"from-python/coast-{number}.png")), read_image(Path(f"relief/coast-{number + 1}.png"))
            )  # fmt: skip
            assert np.abs(mine.pixels.astype(int) - commands_.pixels).max() <= 2


def test_a_calibration_is_agreed_on_and_used(pair: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the page's lines; the records name it, and the translations are others than without it."""
    # Of some hundred draws of the noise one is refused: this one is not.
    monkeypatch.setattr(aggregate, "secure_normal", np.random.default_rng(0).standard_normal)
    page = section("Calibrate")
    for who in ("east", "west"):
        NodeProcess(pair.machine(who)).configure(tomllib.loads(blocks(page, "toml")[0])["policy"])
    for who, command in commands(page):
        digest = re.findall(r"^sha256 +([0-9a-f]{64})$", pair.shown.get("east calibrate", ""), re.MULTILINE)
        pair.type(who, command.replace("DIGEST", digest[-1] if digest else "DIGEST"))
    out = pair.machine("east") / "calibrated"
    for path in sorted((ROOT / "docs/images/satellite").glob("*.png")):
        record = json.loads((out / f"{path.stem}.json").read_text())
        assert record["calibration_kind"] == "rotation"
        assert record["solver"]["share"] == 0.75
        assert record["calibration_sha256"] in pair.shown["west calibrate"] + pair.shown["east calibrate"]
        plain = pair.machine("east") / "relief" / path.name
        assert not np.array_equal(read_image(plain).pixels, read_image(out / path.name).pixels)


def test_own_pictures_are_trained_on_and_translated(tmp_path: Path) -> None:
    """From folders to translations by `train` at both nodes; nothing of north's data or weights is at south."""
    machines = Machines(tmp_path)
    page = section("Your own pictures")
    for who, domain in (("north", "satellite"), ("south", "relief")):
        write_pictures(machines.machine(who) / "pictures", domain, 12)
    table = re.sub(r'time = "2h".*', "steps = 4\nbatch = 4", blocks(page, "toml")[0])
    table = table.replace("size = 32", "size = 16")
    try:
        for who, line in commands(page):
            machines.type(who, line)
            if " init node " in line:
                config = machines.machine(who) / "node.toml"
                text, found = re.subn(r"(?ms)^\[train\].*?(?=^\[)", f"{table}\n", config.read_text())
                assert found == 1
                config.write_text(text)
    finally:
        machines.stop()
    painted = machines.machine("north") / "painted"
    translated = [*painted.glob("*.png")]
    assert len(translated) == 12
    assert read_image(translated[0]).pixels.shape == (32, 32, 3)
    north, south = (machines.machine(who) for who in ("north", "south"))
    assert not find_any(weight_windows(north / "model"), south)
    assert not find_any(weight_windows(south / "model"), north)
    pixels = [read_image(path).pixels.tobytes() for path in (north / "pictures").glob("*.png")]
    manifest = json.loads((north / "model" / "manifest.json").read_text())
    secrets = [window for data in pixels for window in raw_windows(data)] + [manifest["digest"].encode()]
    assert not find_any(secrets, south)


def test_the_commands_without_nodes_run(tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    here = machines.machine("")
    write_pictures(here / "A", "satellite", 12)
    write_pictures(here / "B", "relief", 12)
    for who, line in commands(section("Without nodes")):
        machines.type(who, line)
    assert (here / "try" / "index.html").exists()
    assert (here / "there-and-back" / "coast-1.returned.png").exists()
    assert (here / "model-a" / "model.safetensors").exists()
    assert len(list((here / "samples").glob("sample_*.png"))) == 2
    assert np.load(here / "points" / "samples.npy").shape == (500, 2)


def test_a_copy_of_a_node_by_the_page_can_be_restored(tmp_path: Path) -> None:
    """By the line of docs/operating.md, where the node was and in another folder; the model is in it."""
    (line,) = re.findall(r"`(umask 077 && tar czf [^`]+)`", (ROOT / "docs/operating.md").read_text())
    made, other = tmp_path / "west", tmp_path / "other"
    made.mkdir()
    other.mkdir()
    with contextlib.chdir(made):
        words = ["ddib", "init", "node", "--role", "target", "--model", "relief", "--listen"]
        in_process([*words, f"127.0.0.1:{free_port()}"])
        subprocess.run(line, shell=True, check=True)
    (archive,) = made.glob("*.tar.gz")
    subprocess.run(["tar", "xpzf", archive], cwd=other, check=True)
    with contextlib.chdir(other):
        assert "relief: picture 3x32x32" in in_process(["ddib-target-node", "check"])


def test_the_citation_is_of_this_release() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (ddib_fed.__version__, project["license"])
    assert cited["authors"] == project["authors"]


def test_no_command_of_the_page_is_left_out() -> None:
    """Every block of commands is in a section that a test types, but for make's, whose goals are there."""
    typed = [title for title in re.findall(r"^## (.+)$", README, re.MULTILINE) if commands(section(title))]
    assert len(commands(section("Two institutions, seven commands"))) == 7  # on both machines together
    assert typed == ["Two institutions, seven commands", "Calibrate", "Your own pictures", "Without nodes"]
    goals = re.findall(r"^make (\S+)", README.split("\n## ")[0], re.MULTILINE)
    assert goals == ["demo", "test"]
    assert all(re.search(rf"^{goal}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for goal in goals)
