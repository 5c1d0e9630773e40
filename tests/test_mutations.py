"""The list of mutations fits the code: each can be applied, and has tests that are there."""

from __future__ import annotations

from collections import Counter

from benchmarks.mutations import ROOT, Mutation, mutations


def missing_tests(mutation: Mutation) -> list[str]:
    """Of a mutation's tests those that are not there."""
    missing = []
    for test in mutation.tests:
        file, _, name = test.partition("::")
        path = ROOT / file
        if not path.exists() or (name and f"def {name.partition('[')[0]}(" not in path.read_text()):
            missing.append(test)
    return missing


def test_each_mutation_can_be_applied() -> None:
    """Its file is there, and the text that it replaces stands there once: code that moves takes its mutations along."""
    stale = []
    for mutation in mutations():
        try:
            changed = mutation.applied(before := (ROOT / mutation.file).read_text())
        except (OSError, ValueError) as error:
            stale.append(str(error))
        else:
            if changed == before:
                stale.append(f"{mutation.name}: nothing is changed in {mutation.file}")
    assert not stale, "\n".join(stale)


def test_each_mutation_has_tests_that_are_there() -> None:
    """Renamed ones are renamed in the list too."""
    missing = {each.name: missing_tests(each) for each in mutations()}
    assert not {name: tests for name, tests in missing.items() if tests}
    assert all(each.tests for each in mutations())


def test_no_two_mutations_of_a_file_have_one_name() -> None:
    """A report of one that survived says which it was."""
    counts = Counter((each.file, each.name) for each in mutations())
    assert not [which for which, count in counts.items() if count > 1]
