"""docs/own-pictures.md: the public code's commands exist as written, and no option of its scripts is missing."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from ddib_fed.cli.main import cli

PAGE = (
    (Path(__file__).parents[3] / "docs" / "own-pictures.md")
    .read_text()
    .partition("## The public code's 2-D")[2]
)
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    ddib ")]
# Of synthetic_train.py, synthetic_sample.py, synthetic_translation.py and synthetic_cycle.py of the public code.
PUBLIC_OPTIONS = """
task schedule_sampler lr weight_decay lr_anneal_steps batch_size microbatch ema_rate log_interval save_interval
resume_checkpoint use_fp16 fp16_scale_growth num_channels num_res_blocks dropout use_checkpoint in_channels learn_sigma
diffusion_steps noise_schedule timestep_respacing use_kl predict_xstart rescale_timesteps rescale_learned_sigmas
num_samples model_path source target
"""


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_is_one(line):
    """It parses: every option is there, with a value that it takes."""
    words = shlex.split(line)[1:]
    context = click.Context(cli, info_name="ddib")
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command, context = found, click.Context(found, parent=context)
    parsed = command.make_context(command.name, words)
    assert parsed.params


def test_every_option_of_the_public_scripts_is_accounted_for():
    """It stands in the table, with what is said instead or that it is not offered."""
    table = " ".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| "))
    assert not [name for name in PUBLIC_OPTIONS.split() if f"`--{name}`" not in table]
