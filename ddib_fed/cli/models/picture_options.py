"""Options that commands on pictures share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

Command = Callable[..., None]
_FOLDER = click.Path(file_okay=False, path_type=Path)

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
    "structure, and the latent then holds some of the picture.",
)
SOFTEN = click.option(
    "--soften-sigma",
    "--soften",
    "soften",
    type=click.FloatRange(0, 1),
    metavar="SIGMA",
    help="Pictures: noise level to which they are diffused before encoding; without it each model's own.",
)
BATCH = click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    help="Pictures: how many are computed together.",
)
DTYPE = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Pictures: of the networks; what is integrated stays float32.",
)
DEVICES = click.option(
    "--devices",
    default="cpu",
    show_default=True,
    metavar="LIST",
    help="Pictures: all (every GPU, else a worker a core), cpu:4, or cuda:0,cuda:1; the files are the same.",
)
DEVICE = click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="Pictures: cpu, cuda or cuda:1."
)
GUIDING = (
    click.option(
        "--classifier", metavar="MODEL", help="Pictures: the classifier's bundle that guides to a class."
    ),
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
TRANSLATING = (
    DEPTH,
    SOFTEN,
    click.option(
        "--source-class", metavar="CLASS", help="Pictures: class of all of them, by number or name."
    ),
    click.option("--target-class", metavar="CLASS", help="Pictures: class that all of them are to get."),
    click.option(
        "--pairs",
        metavar="FROM:TO,...",
        help="Pictures: translate classes to classes (260:261,282:283) under the public code's names.",
    ),
    click.option(
        "--labels",
        type=_FOLDER,
        metavar="DIR",
        help="Pictures: ImageNet's development kit, where --pairs needs it to tell classes.",
    ),
    *GUIDING,
    click.option(
        "--guide",
        type=click.Choice(["decode", "both"]),
        default="decode",
        show_default=True,
        help="Pictures: guide decoding alone, as the public code, or encoding too, so that a cycle closes; with "
        "--classifier or --guidance.",
    ),
    click.option(
        "--limit", type=click.IntRange(1), metavar="N", help="Pictures: only the first N (of each class)."
    ),
    click.option(
        "--skip-bad", is_flag=True, help="Pictures: name those that cannot be read or are refused, and go on."
    ),
    click.option(
        "--uncertainty",
        type=click.IntRange(2),
        metavar="N",
        help="Pictures: translate with N fresh softenings and write a map of the deviation.",
    ),
    click.option(
        "--keep-latents", is_flag=True, help="Pictures: write latents too. Treat a latent as the picture."
    ),
    click.option(
        "--thresholds",
        type=click.Path(path_type=Path),
        metavar="REPORT",
        help="Pictures: report.json of a run over held-out pictures, or a model's folder; a picture with less "
        "structure is doubtful. Without it the source model's own thresholds count.",
    ),
    BATCH,
    DTYPE,
    DEVICES,
)
SAMPLING = (
    click.option("--class", "class_", metavar="CLASS", help="Pictures: class to draw, by number or name."),
    *GUIDING,
    BATCH,
    DTYPE,
    DEVICE,
)
