"""The host is at most a few calls ahead of the device."""

import torch

from ddib_fed.networks.placed.pacing import CALLS_AHEAD, Paced


def test_a_call_waits_for_the_one_queued_two_before_it_and_for_no_later_one():
    """Each mark is waited for once, in order, and the newest never: the device has work while the host waits."""
    log = []

    def run(x, times, rows, extra):
        log.append(f"call {len([entry for entry in log if entry.startswith('call')])}")
        return x

    marks = iter(range(100))

    def mark():
        number = next(marks)
        return lambda: log.append(f"wait {number}")

    paced = Paced(run, mark)
    for _ in range(5):
        paced(torch.zeros(1), torch.zeros(1), None, {})
    assert CALLS_AHEAD == 2
    assert log == ["call 0", "call 1", "wait 0", "call 2", "wait 1", "call 3", "wait 2", "call 4"]
