"""`executor = "processes"`: two worker processes beside one and beside the calling thread, and one that is killed.

python -m benchmarks.speed.workers [--short]
"""

from __future__ import annotations

from benchmarks.speed.shared.harness import Form, Report, main
from benchmarks.speed.shared.pools import DOMAIN, TOGETHER, measure_pools, recipe
from ddib_fed.engine.executors import process_pool


def measure(form: Form) -> Report:
    """Decode pictures with worker processes."""
    report = Report(
        f"Decoding pictures of 32 px with the shipped {DOMAIN}, 48 evaluations, in trajectories of {TOGETHER}, one "
        "thread a worker: pools of one and of two processes, and the calling thread."
    )
    measure_pools(
        form, report, "process", "processes", lambda workers: process_pool(recipe(), workers=workers)
    )
    return report


if __name__ == "__main__":
    raise SystemExit(main("workers", measure))
