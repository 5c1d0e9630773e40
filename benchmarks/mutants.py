"""Checks that the tests notice broken code: applies each mutation of mutants.toml to a copy and runs the tests near it.

    python -m benchmarks.mutants [--only WORDS ...]

Each mutation has a name (the fact that it breaks), a file, an old and a new text, and the tests that should fail. The
old text must occur exactly once in the file: when the code has changed, change the mutation with it. `harmless` says
why no test can notice a mutation. Ends with 1 when a mutation survives, with 2 when one cannot be applied or its tests
do not run. Runs one process at a time, about 3 seconds a mutation; the working tree is not touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NoReturn

# Slow to import and not mutated: the children inherit them. grpc is not among them, because it must not be forked.
import cryptography.x509
import hypothesis
import numpy as np
import pydantic
import pytest
import torch

from benchmarks.mutations import ROOT, Mutation, mutations

__all__ = ["cryptography", "np", "pydantic", "torch"]

# A mutation that breaks something is found by a few examples.
hypothesis.settings.register_profile("few", max_examples=25, database=None, deadline=None)
hypothesis.settings.load_profile("few")
PYTEST = (
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "--timeout=60",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
)


def copy_of_tree(folder: Path) -> Path:
    """A copy of every file that git knows or would take up, as it is in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return folder


class Workshop:
    """A copy of the tree in which one mutation at a time is applied."""

    def __init__(self, folder: Path) -> None:
        self._folder = copy_of_tree(folder)
        self._stamp = 1_000_000_000

    def failing(self, tests: tuple[str, ...]) -> str:
        """The first test that fails, "" when all pass; raises RuntimeError when pytest does not get to running them."""
        log = self._folder / "pytest.log"
        child = os.fork()
        if child == 0:
            _run_tests(self._folder, tests, log)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in {0, 1}:
            raise RuntimeError(f"pytest ended with {code}:\n{log.read_text()[-2000:]}")
        failed = [line for line in log.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
        return "".join(failed[:1]).partition(" - ")[0] if code else ""

    def killer(self, mutation: Mutation) -> str:
        """The first of the tests near the mutation that fails with it; "" when none does."""
        path = self._folder / mutation.file
        before = path.read_text()
        changed = mutation.applied(before)
        compile(changed, mutation.file, "exec")  # what is no Python fails every test, and proves nothing
        self._write(path, changed)
        try:
            return self.failing(mutation.tests)
        finally:
            self._write(path, before)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        self._stamp += 10
        os.utime(path, (self._stamp, self._stamp))


def _run_tests(folder: Path, tests: tuple[str, ...], log: Path) -> NoReturn:
    """In a child process: run the tests on the copy, and end with pytest's exit code."""
    code = 3
    try:
        with log.open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.chdir(folder)
        sys.path[:] = [str(folder), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
        os.environ["PYTHONPATH"] = str(folder)
        code = int(pytest.main([*PYTEST, *tests]))
    except BaseException:  # noqa: BLE001 - nobody else prints it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # whatever happened: the parent's clean-up is not the child's


def main() -> None:
    """Run the mutations and print what became of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="mutations whose name or file has one of these")
    only = parser.parse_args().only
    chosen = [m for m in mutations() if not only or any(word in m.name or word in m.file for word in only)]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        for mutation in chosen:
            started, by = time.monotonic(), ""
            try:
                by = workshop.killer(mutation)
                outcome = "killed" if by else "survived"
            except (ValueError, SyntaxError, RuntimeError, OSError) as error:
                outcome = "error"
                print(error)
            if outcome == "survived" and mutation.harmless:
                outcome = "harmless"
            counts[outcome] += 1
            seconds = time.monotonic() - started
            print(f"{outcome:9}{seconds:5.1f} s  {mutation.file}: {mutation.name}  {by}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    sys.exit(2 if counts["error"] else 1 if counts["survived"] else 0)


if __name__ == "__main__":
    main()
