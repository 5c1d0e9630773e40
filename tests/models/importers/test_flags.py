"""Lines of the public code's flags are read as a command line is; what is not known is refused by name."""

from __future__ import annotations

import pytest

from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.import_guided import parse_flags

LINE = "--attention_resolutions 32,16,8 --class_cond True --image_size 256 --channel_mult 0.5,1"


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        f'MODEL_FLAGS="{LINE}"',
        f'"{LINE}"',
        "--attention_resolutions=32,16,8 --class_cond=yes --image_size=256 --channel_mult=0.5,1",
        f"--image_size 64 {LINE}",
        f"{LINE} --num_res_blocks ''",
    ],
)
def test_a_line_is_read_however_it_was_copied(line):
    """Values have their kinds."""
    assert dict(parse_flags(line).given) == {
        "attention_resolutions": (32, 16, 8),
        "class_cond": True,
        "image_size": 256,
        "channel_mult": (0.5, 1.0),
    }


def test_flags_of_sampling_training_and_the_other_network_are_set_aside_with_a_reason():
    """Each has one."""
    flags = parse_flags("--batch_size 4 --use_fp16 True --lr 1e-4 --classifier_depth 4 --num_channels 64")
    assert dict(flags.given) == {"num_channels": 64}
    assert list(flags.ignored) == ["batch_size", "use_fp16", "lr", "classifier_depth"]
    assert all(flags.ignored.values())
    flags = parse_flags("--num_channels 64 --classifier_depth 4", classifier=True)
    assert (dict(flags.given), list(flags.ignored)) == ({"classifier_depth": 4}, ["num_channels"])


@pytest.mark.parametrize(
    ("line", "named", "hinted"),
    [
        ("--image_sizes 256", "--image_sizes", "--image_size?"),
        ("--image_size", "--image_size", ""),
        ("--image_size big", "--image_size", ""),
        ("--large_size 256 --small_size 64", "--large_size", "upsampler"),
        ("image_size 256", "'image_size'", ""),
        ("--image_size '256", "quotation mark", ""),
    ],
)
def test_what_is_no_flag_is_refused_by_name(line, named, hinted):
    """Unknown, without value, of another kind, of an upsampler, no flag at all."""
    with pytest.raises(SettingsInvalid) as caught:
        parse_flags(line)
    assert named in caught.value.detail
    assert hinted in caught.value.hint
