"""Parses the public code's command-line flags (its README's MODEL_FLAGS).

A flag that does not change the weights or what they mean is listed as ignored; an unknown flag is
refused. The names and defaults are those of openai/guided-diffusion, guided_diffusion/script_util.py.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ddib_fed.errors import SettingsInvalid

Value = str | int | float | bool | tuple[int, ...] | tuple[float, ...]

# Defaults of the public code's flags.
DEFAULTS: Mapping[str, Value] = {
    "image_size": 64,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "dropout": 0.0,
    "use_new_attention_order": False,
    "resblock_updown": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
    "classifier_depth": 2,
    "classifier_resblock_updown": True,
}
# Classifiers are always built with heads of 64 channels.
CLASSIFIER_HEAD_CHANNELS = 64
# Default channel multipliers, by image size.
CHANNEL_MULT: Mapping[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}


def _flag(text: str) -> bool:
    word = text.lower()
    if word not in {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}:
        raise ValueError(text)
    return word in {"yes", "true", "t", "y", "1"}


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)


_Kinds = Mapping[str, Callable[[str], Value]]


BOTH: _Kinds = {
    "image_size": int,
    "diffusion_steps": int,
    "noise_schedule": str,
    "rescale_timesteps": _flag,
    "in_channels": int,
}
MODEL: _Kinds = {
    **dict.fromkeys(("num_channels", "num_res_blocks", "num_heads", "num_heads_upsample"), int),
    **dict.fromkeys(("num_head_channels", "num_classes"), int),
    "attention_resolutions": _whole_numbers,
    "channel_mult": _numbers,
    "dropout": float,
    **dict.fromkeys(("class_cond", "learn_sigma", "predict_xstart", "use_scale_shift_norm"), _flag),
    **dict.fromkeys(("resblock_updown", "use_new_attention_order"), _flag),
}
CLASSIFIER: _Kinds = {
    **dict.fromkeys(("out_channels", "classifier_width", "classifier_depth"), int),
    "classifier_attention_resolutions": _whole_numbers,
    **dict.fromkeys(("classifier_use_scale_shift_norm", "classifier_resblock_updown"), _flag),
    "classifier_pool": str,
}
SAMPLING: _Kinds = {
    "diffusion_steps": int,
    **dict.fromkeys(("noise_schedule", "timestep_respacing"), str),
    "eta": float,
    **dict.fromkeys(("use_ddpm", "use_ddim", "clip_denoised"), _flag),
}
ELSEWHERE: Mapping[str, str] = {
    key: subject
    for subject, keys in {
        "the precision is chosen when the model is used": "use_fp16 classifier_use_fp16",
        "of sampling": "batch_size num_samples use_ddim use_ddpm timestep_respacing clip_denoised eta classifier_scale "
        "source target base_samples",
        "a path": "model_path classifier_path val_dir data_dir val_data_dir",
        "of training": "use_checkpoint use_kl rescale_learned_sigmas schedule_sampler lr weight_decay lr_anneal_steps "
        "microbatch ema_rate log_interval save_interval resume_checkpoint fp16_scale_growth iterations anneal_lr "
        "noised eval_interval",
    }.items()
    for key in keys.split()
}
"""Flags of the public scripts that do not describe weights, and their subject."""
_UPSAMPLERS = ("large_size", "small_size")


@dataclass(frozen=True, slots=True)
class Flags:
    given: Mapping[str, Value]
    ignored: Mapping[str, str]
    line: str = ""

    def get(self, key: str) -> tuple[Value, str]:
        return (self.given[key], "--flags") if key in self.given else (DEFAULTS[key], "public default")


def parse_flags(line: str, *, classifier: bool = False) -> Flags:
    """Parse a line such as the README's MODEL_FLAGS, with or without the variable's name."""
    wanted = {**BOTH, **(CLASSIFIER if classifier else MODEL)}
    other, whose = (MODEL, "of the model that it guides") if classifier else (CLASSIFIER, "of the classifier")
    given: dict[str, Value] = {}
    ignored: dict[str, str] = {}
    for key, text in _pairs(line):
        if key in wanted and not text:
            # As --channel_mult "": the default.
            given.pop(key, None)
        elif key in wanted:
            # As on a command line, the last one counts.
            given.pop(key, None)
            given[key] = _value(key, text, wanted[key])
        elif key in other:
            ignored[key] = whose
        elif key in ELSEWHERE:
            ignored[key] = ELSEWHERE[key]
        else:
            raise _unknown(key, [*wanted, *other, *ELSEWHERE])
    return Flags(given, ignored, line.strip())


def parse_sampling(line: str) -> dict[str, Value]:
    """The flags of a line that say how to sample; the public code's others are passed over.

    Raises:
        SettingsInvalid: The line cannot be read, or the public code has no such flag or value.
    """
    given: dict[str, Value] = {}
    for key, text in _pairs(line):
        if key in SAMPLING:
            given[key] = _value(key, text, SAMPLING[key])
        elif key not in {**BOTH, **MODEL, **CLASSIFIER, **ELSEWHERE}:
            raise _unknown(key, [*SAMPLING, *BOTH, *MODEL, *CLASSIFIER, *ELSEWHERE])
    bounds = (
        ("eta", 0.0 <= float(str(given.get("eta", 0))) <= 1.0),
        ("diffusion_steps", 2 <= int(str(given.get("diffusion_steps", 2))) <= 10_000),
        ("noise_schedule", given.get("noise_schedule", "linear") in {"linear", "cosine"}),
    )
    for key, ok in bounds:
        if not ok:
            raise SettingsInvalid(f"the flag --{key} cannot be {given[key]!r}", facts={"field": key})
    return given


def written(value: Value) -> str:
    """A value as written in a line of flags."""
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    try:
        words = shlex.split(re.sub(r"^\s*[A-Z_]*FLAGS=", "", line))
        # A line quoted as a whole is one word.
        words = shlex.split(words[0]) if len(words) == 1 else words
    except ValueError as error:
        raise SettingsInvalid("the flags cannot be read: a quotation mark is not closed") from error
    rest = iter(words)
    for word in rest:
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise SettingsInvalid(
                f"the flags cannot be read at {word!r}", hint="write --key value, as in the public README"
            )
        value = text if equals else next(rest, None)
        if value is None or (not equals and value.startswith("--")):
            raise SettingsInvalid(f"the flag --{key} has no value", facts={"field": key[:40]})
        yield key.replace("-", "_"), value


def _value(key: str, text: str, parse: Callable[[str], Value]) -> Value:
    try:
        return parse(text)
    except ValueError as error:
        raise SettingsInvalid(
            f"the flag --{key} cannot be {text!r}",
            hint="write it as for the public code",
            facts={"field": key},
        ) from error


def _unknown(key: str, known: list[str]) -> SettingsInvalid:
    if key in _UPSAMPLERS:
        return SettingsInvalid(
            f"the flag --{key} belongs to an upsampler, which needs a small picture beside the noise",
            hint="import the model that makes pictures, not its upsampler",
            facts={"field": key},
        )
    near = difflib.get_close_matches(key, known, n=1)
    return SettingsInvalid(
        f"the public code has no flag --{key}",
        hint=f"did you mean --{near[0]}?" if near else "leave it out",
        facts={"field": key[:40]},
    )
