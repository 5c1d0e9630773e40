"""Tries each parser of tests/fuzz/targets.py with atheris, and writes what came of it to docs/benchmarks/trust."""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.command import OUT, origin
from ddib_fed.files import write_json

SECONDS, MEMORY_MB, LONGEST = 20, 2_048, 1 << 16
INSTRUMENTED: Final = ["ddib_fed", "source_node", "tifffile", "numpy.lib", "PIL", "json"]
KEYS: Final = ("parser", "reads", "executions", "crashes", "a_second")


def main() -> int:
    """Every target, one behind the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0, help="of each target at most; 0 for no limit")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="for inputs that crash")
    parser.add_argument("--one", action="store_true", help="in this process")
    given = parser.parse_args()
    if given.one:
        fuzz(given.targets[0], given.runs, given.seconds, given.keep)
        return 0
    from tests.fuzz.targets import TARGETS

    given.keep.mkdir(parents=True, exist_ok=True)
    started, rows = time.monotonic(), []
    for name in given.targets or TARGETS:
        executions, crashes, seconds = child(name, given.runs, given.seconds, given.keep)
        rows.append(
            (name, (TARGETS[name].run.__doc__ or "").strip(), executions, crashes, executions / seconds)
        )
        sys.stdout.write(f"{name}: {executions:,} executions, {crashes} crashes, {seconds:.0f} s\n")
        sys.stdout.flush()
    if not given.targets:
        parsers = [dict(zip(KEYS, row, strict=True)) for row in rows]
        record = {**origin("tests.fuzz.run"), "seconds": round(time.monotonic() - started), "rows": parsers}
        write_json(OUT / "trust" / "fuzz.json", record)
    return int(any(row[3] for row in rows))


def child(name: str, runs: int, seconds: int, keep: Path) -> tuple[int, int, float]:
    """Executions, crashes and seconds of one target in a process of its own; what it said is shown if it crashed.

    The seconds are those of the executions; if it crashed, of the whole process.
    """
    started = time.monotonic()
    limits = ["--runs", str(runs), "--seconds", str(seconds), "--keep", str(keep)]
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--one", *limits]
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    executed = re.findall(r"stat::number_of_executed_units: +(\d+)", done.stderr)
    crashed = done.returncode != 0
    if crashed:
        sys.stderr.write(done.stdout[-3_000:] + done.stderr[-6_000:])
    took = re.findall(r"^Done \d+ runs in (\d+) second", done.stderr, re.MULTILINE)
    elapsed = max(1.0, float(took[-1])) if took else time.monotonic() - started
    return int(executed[-1]) if executed else 0, int(crashed), elapsed


def fuzz(name: str, runs: int, seconds: int, keep: Path) -> None:
    """One target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from ddib_fed.errors import DdibError
        from tests.fuzz.targets import TARGETS

    target = TARGETS[name]

    def once(data: bytes) -> None:
        try:
            target.run(data)
        except DdibError:
            return

    with tempfile.TemporaryDirectory(prefix="ddib-corpus-") as folder:
        for number, seed in enumerate(target.seeds()):
            (Path(folder) / f"seed{number}").write_bytes(seed)
        options = [
            f"-runs={runs}", f"-max_total_time={seconds}", f"-max_len={LONGEST}",
            f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY_MB}",
            "-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={keep}/{name}-",
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options, folder], once)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
