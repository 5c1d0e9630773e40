"""Options that would be ignored, several processes for one command, and the public code's numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.trust.soundness import nodes
from benchmarks.trust.soundness.attack import Result, attack, ddib
from benchmarks.trust.soundness.samples import photograph, written
from tests.samples.picture_examples import png_of

ROOT = Path(__file__).parents[3]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@attack(
    4,
    "`--classifier-scale` and `--guidance` without what they need, at 0 and at their defaults too, in each command",
    before="ignored with exit 0: unguided pictures",
    test="tests/cli/models/test_idle_options.py::test_guidance_without_what_it_needs_is_refused",
)
def guidance(folder: Path, result: Result) -> None:
    written(folder / "in", {"a.png": png_of(photograph())})
    both = ("--source", "satellite", "--target", "relief")
    commands: dict[str, tuple[object, ...]] = {
        "sample": ("model", "sample", "satellite", "--n", 1),
        "translate": ("bridge", "translate", folder / "in", *both),
        "cycle": ("bridge", "cycle", folder / "in", *both),
        "points": ("bridge", "translate", "--source", "moons", "--target", "checkerboards", "--n", 9),
        "sample points": ("model", "sample", "moons", "--n", 9),
    }
    for name, words in commands.items():
        for option in (
            ("--classifier-scale", 3),
            ("--classifier-scale", 1),
            ("--classifier-scale", 0),
            ("--guidance", 2),
        ):
            said = ddib(*words, *option, "--evaluations", 8, "--out", folder / "out")
            result.refused(
                f"{name} {option[0]} {option[1]}",
                said,
                "guidance" if option[0] == "--guidance" else option[0],
                codes=(2, 3),
            )
    pair = nodes.pictures()
    for command in ("translate", "job submit"):
        out = ("--out", folder / "n") if command == "translate" else ()
        for option in (("--classifier-scale", 3), ("--guidance", 2)):
            said = ddib(*command.split(), folder / "in" / "a.png", "--to", nodes.SATELLITE, *option, "--evaluations", 8,
                        *out, "--profile", pair.profile)  # fmt: skip
            result.refused(f"{command} to a node {option[0]}", said, codes=(2, 3, 4, 5))
    result.add("nothing was written", not (folder / "out").exists())


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@attack(
    5,
    "`torchrun --nproc-per-node 2` in front of every kind of command that does not share its work",
    before="the ranks raced, or each did everything and both wrote one folder",
    test="tests/cli/test_processes.py::test_what_is_not_shared_is_refused_under_torchrun_and_nothing_is_written",
)
def torchrun(folder: Path, result: Result) -> None:
    out = ["--out", str(folder / "out")]
    lines = [
        ["model", "distil", "moons", *out],
        ["model", "tune", str(folder / "out")],
        ["model", "gate", str(folder / "out")],
        ["model", "sample", "moons", "--n", "5", *out],
        ["privacy", "report", "--model", "moons", *out],
        ["calibrate", "--local", "satellite", "relief", *out],
        ["bridge", "translate", "--source", "moons", "--target", "moons", "--n", "5", *out],
        ["demo", *out],
        ["init", "node", "--institution", "north.example", "--role", "source", "--domain", "moons", *out],
    ]
    done = subprocess.run(
        [*TORCHRUN, "-m", "tests.cli.torchrun_lines", json.dumps(lines)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip
    codes = [json.loads(line) for line in done.stdout.splitlines()]
    for number, words in enumerate(lines):
        ended = {rank[number] for rank in codes}
        result.add(" ".join(words[:2]), len(codes) == 2 and ended == {2}, min(ended, default=None))
    named = done.stderr.count("torchrun started 2")
    result.add("each refusal names torchrun", named == 2 * len(lines), 2, f"{named} refusals name it")
    result.add("nothing was written", not (folder / "out").exists())


@attack(
    5,
    "`torchrun ... ddib model train --domain moons`",
    before="two processes trained the whole run each, and both wrote one folder",
    test="tests/cli/test_processes.py::test_training_is_shared",
)
def trained_by_two(folder: Path, result: Result) -> None:
    words = ("model", "train", "--domain", "moons", "--steps", "20", "--batch", "64", "--width", "16")
    script = "from ddib_fed.cli.main import main; main()"
    (folder / "run.py").write_text(script)
    done = subprocess.run(
        [*TORCHRUN, str(folder / "run.py"), *words, "--out", str(folder / "two")],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip
    one = ddib(*words, "--out", folder / "one")
    made = [json.loads((folder / name / "manifest.json").read_text()) for name in ("one", "two")]
    processes = made[1]["training"]["figures"]["processes"]
    said = "" if done.returncode == 0 else done.stderr[-150:]
    result.add("two share one run", done.returncode == 0 and processes == 2, done.returncode, said)
    result.add("one alone trains as before", one.code == 0, one.code)


@attack(
    5,
    "other starters than torchrun: Open MPI, MPICH, Slurm's srun, MVAPICH",
    before="not looked at",
    test="tests/cli/test_processes.py::test_functions_refuse_too_whoever_started_the_processes",
)
def starters(folder: Path, result: Result) -> None:
    told = {
        "mpirun": {"OMPI_COMM_WORLD_SIZE": "2"},
        "mpiexec": {"PMI_SIZE": "2"},
        "srun": {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
        "mpirun_rsh": {"MV2_COMM_WORLD_SIZE": "2"},
    }
    for name, values in told.items():
        for words in (
            ("model", "train", "--domain", "moons", "--steps", 1),
            ("model", "sample", "moons", "--n", 5),
        ):
            with _environment(**values):
                said = ddib(*words, "--out", folder / name)
            result.refused(f"{name}: {words[1]}", said, name, codes=(2,))
    result.add("nothing was written", not any(folder.iterdir()))
    with _environment(SLURM_STEP_NUM_TASKS="1", SLURM_NTASKS="4", SLURM_PROCID="0"):
        said = ddib("model", "sample", "moons", "--n", 5, "--evaluations", 2, "--out", folder / "alone")
    result.add("one task of an allocation of four is alone", said.code == 0, said.code, said.error)


@attack(
    6,
    "whole translations of the public code in float64, and files of them altered in the eighth digit",
    before="errors up to 1e-2 were hidden by float32 with random weights",
    test="tests/test_golden_float64.py::test_ends_one_when_a_translation_is_off_in_the_eighth_digit",
)
def float64(folder: Path, result: Result) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    files = sorted((ROOT / "tests" / "data").glob("*_float64.safetensors"))
    for path in files:
        code = subprocess.run(
            [sys.executable, "-m", "tests.golden", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        worst = code.stdout.strip().splitlines()[-1] if code.stdout.strip() else code.stderr[-150:]
        result.add(path.name, code.returncode == 0, code.returncode, worst)
    for path in files[:1]:
        with safe_open(path, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            about = opened.metadata()
        name = next(n for n, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > 20)
        tensors[name] = tensors[name] * (1 + 1e-8)
        changed = folder / path.name
        save_file(tensors, changed, about)
        for beside in (ROOT / "tests" / "data").glob("*.safetensors"):
            if not (folder / beside.name).exists():
                (folder / beside.name).symlink_to(beside)
        code = subprocess.run(
            [sys.executable, "-m", "tests.golden", str(changed)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        result.add(f"{name} off by 1e-8 is found", code.returncode == 1, code.returncode)


@attack(
    6,
    "both schedules, respacings, eta, clipping without `--compat`, the public network; contradictions",
    before="missing",
    test="tests/cli/models/test_public_code.py::test_what_contradicts_the_model_or_itself_is_refused",
)
def public_options(folder: Path, result: Result) -> None:
    compat = ("--compat", "ddib", "--solver", "ddim")
    linear = (*compat, "--noise-schedule", "linear", "--diffusion-steps", 1000)
    good: dict[str, tuple[object, ...]] = {
        "linear, ddim50": (*linear, "--timestep-respacing", "ddim50"),
        "linear, sections": (*linear, "--timestep-respacing", "5,10,5"),
        "eta": (*compat, "--timestep-respacing", "ddim25", "--diffusion-steps", 1000, "--eta", 0.5),
        "clip alone": ("--clip", "--evaluations", 8),
    }  # fmt: skip
    drawn = {}
    for name, words in good.items():
        said = ddib("model", "sample", "moons", "--n", 200, *words, "--out", folder / name)
        result.add(name, said.code == 0, said.code, said.error if said.code else "")
        drawn[name] = np.load(folder / name / "samples.npy")
    result.add("each gives other points", len({each.tobytes() for each in drawn.values()}) == len(good))
    cosine = ("--noise-schedule", "cosine", "--diffusion-steps", 300)
    bad: dict[str, tuple[object, ...]] = {
        "another schedule than it was trained on": (*compat, *cosine),
        "eta without ddim": ("--eta", 0.5),
        "eta of a higher order": ("--solver", "unipc", "--eta", 0.1),
        "a respacing without compat": ("--timestep-respacing", "ddim50"),
        "steps without compat": ("--diffusion-steps", 100),
        "a schedule without compat": ("--noise-schedule", "cosine"),
        "ddpm without compat": ("--ddpm",),
        "more of them than there are": (*compat, "--diffusion-steps", 10, "--timestep-respacing", "ddim50"),
        "a stride that does not exist": (
            *compat,
            "--diffusion-steps",
            1000,
            "--timestep-respacing",
            "ddim999",
        ),
        "evaluations against a respacing": (*compat, "--timestep-respacing", "ddim50", "--evaluations", 20),
        "eta nan": (*compat, "--eta", "nan"),
    }
    for name, words in bad.items():
        result.refused(
            name, ddib("model", "sample", "moons", "--n", 9, *words, "--out", folder / "bad"), codes=(2, 3)
        )
    result.add("nothing was written", not (folder / "bad").exists())
    public = (
        "--domain",
        0,
        "--network",
        "public",
        "--network",
        "num_res_blocks=1",
        "--steps",
        2,
        "--batch",
        32,
        "--out",
        folder / "public",
    )
    said = ddib("model", "train", *public, *cosine)
    result.add("the public network is trained", said.code == 0, said.code, said.error if said.code else "")
    words = (*compat, "--timestep-respacing", "5,10,5", "--eta", 1.0, "--clip", "--out", folder / "drawn")
    said = ddib("model", "sample", folder / "public", "--n", 50, *words)
    result.add("and sampled on its cosine steps", said.code == 0, said.code, said.error if said.code else "")
