"""Options that commands on models of this process share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.names import size_from

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.record import Calibration


THREADS = click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Threads of torch; more may be slower.",
)
DEPTH = click.option(
    "--depth",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Stop encoding, and start decoding, at this fraction of the schedule's angle. Less than 1 keeps more "
    "structure, and the latent then contains some of the picture.",
)
SOFTEN = click.option(
    "--soften-sigma",
    "--soften",
    "soften",
    type=click.FloatRange(0, 1),
    metavar="SIGMA",
    help="Pictures: noise level of softening before encoding; default: each model's own.",
)


class SceneSize(click.ParamType[tuple[int, int]]):
    """HEIGHTxWIDTH as (height, width)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return size_from(value)
        except ValueError as error:
            return self.fail(str(error), param, ctx)


SCENE = click.option(
    "--scene",
    type=SceneSize(),
    metavar="SIZE",
    help="Pictures: bring all to this size, HEIGHTxWIDTH, and translate them so in overlapping tiles by one ODE.",
)
BATCH = click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    help="Pictures: batch size.",
)
CALIBRATION = click.option(
    "--calibration",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Pictures: translate under this calibration (`ddib calibrate --local` makes one), or that of a shipped "
    "model, by its name.",
)
DTYPE = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Pictures: dtype of the networks; the integrated state stays float32. At 48 evaluations of the shipped "
    "satellite model the solver's own error is 4e-3 in a decoded picture and 3e-4 in a latent (root mean square, of "
    "deviation 1); bfloat16 adds 5e-3 and 1e-2, float16 1e-4 and 7e-4. On a CPU with instructions for it bfloat16 is "
    "faster from about 4 pictures at once; float16 is for GPUs.",
)
DEVICE = click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="Pictures: cpu, cuda or cuda:1."
)
CLASSIFIER = click.option(
    "--classifier", metavar="MODEL", help="Pictures: bundle of the classifier for guidance to a class."
)
GUIDING = (
    CLASSIFIER,
    click.option(
        "--classifier-scale",
        type=float,
        metavar="SCALE",
        help="Pictures: weight of --classifier, without which it is refused.  [default: 1]",
    ),
    click.option(
        "--guidance",
        type=float,
        metavar="SCALE",
        help="Pictures: classifier-free guidance towards a class, for models trained with dropped labels; 1 is none.",
    ),
)
SAMPLING = (
    click.option(
        "--class", "class_", metavar="CLASS", help="Pictures: class of the samples, by number or name."
    ),
    *GUIDING,
    BATCH,
    DTYPE,
    DEVICE,
)


def read_given(path: Path | None) -> Calibration | None:
    """The calibration in the file of --calibration; None without."""
    from ddib_fed.bridge.calibration.files import read_calibration

    return None if path is None else read_calibration(path)
