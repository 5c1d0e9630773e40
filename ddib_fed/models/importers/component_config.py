"""Reads the config.json of a network of diffusers into the configuration that this release builds it from.

A key that affects the computation and is unknown, or has a value that we cannot compute exactly, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ddib_fed.models.importers.scheduler_config import refused_key
from ddib_fed.networks.diffusers.config import DiffusersDiTConfig, DiffusersUNetConfig

AnyComponent = DiffusersUNetConfig | DiffusersDiTConfig
# Keys that are read only with these values.
ONLY: Mapping[type[AnyComponent], Mapping[str, tuple[Any, ...]]] = {
    DiffusersUNetConfig: {
        "time_embedding_type": ("positional",),
        "class_embed_type": (None,),
        "mid_block_type": ("UNetMidBlock2D", None),
    },
    DiffusersDiTConfig: {
        "norm_type": ("ada_norm_zero",),
        "upcast_attention": (False,),
        # Of Transformer2DModel, as which older transformers are saved.
        "attention_type": ("default",),
        "caption_channels": (None,),
        "cross_attention_dim": (None,),
        "double_self_attention": (False,),
        "interpolation_scale": (None,),
        "num_vector_embeds": (None,),
        "only_cross_attention": (False,),
        "use_additional_conditions": (None, False),
        "use_linear_projection": (False,),
    },
}
# Read separately, or without effect for these networks.
ELSEWHERE: Mapping[type[AnyComponent], tuple[str, ...]] = {
    DiffusersUNetConfig: ("sample_size", "num_train_timesteps"),
    DiffusersDiTConfig: ("sample_size", "norm_num_groups"),
}
KINDS: Mapping[str, type[AnyComponent]] = {
    "UNet2DModel": DiffusersUNetConfig,
    "DiTTransformer2DModel": DiffusersDiTConfig,
    "Transformer2DModel": DiffusersDiTConfig,
}
_DEFAULT_LEVELS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
}


def network_config(source: Mapping[str, Any], where: str) -> AnyComponent:
    """The arguments in a config.json, with the library's defaults for missing ones."""
    named = source.get("_class_name")
    if not isinstance(named, str) or named not in KINDS:
        raise refused_key(where, "_class_name", named, f"only {' or '.join(KINDS)} is read")
    kind = KINDS[named]
    fields = _fields(kind, source, where)
    fields["image_size"] = _size(source, kind, where)
    if kind is DiffusersUNetConfig:
        fields = {**_DEFAULT_LEVELS, **fields}
        fields["mid_block"] = source.get("mid_block_type", "UNetMidBlock2D") is not None
    else:
        if source.get("norm_type", "ada_norm_zero" if named.startswith("DiT") else None) is None:
            raise refused_key(where, "norm_type", None, 'only "ada_norm_zero" is read')
        fields["out_channels"] = source.get("out_channels") or source.get("in_channels", 4)
    try:
        config = kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise refused_key(where, key, source.get(key.partition(".")[0]), said) from error
    if config.in_channels not in (1, 3):
        raise refused_key(
            where, "in_channels", config.in_channels, "pictures have 1 or 3; latents have others"
        )
    if config.image_size % config.divisor:
        raise refused_key(where, "sample_size", config.image_size, f"it does not divide by {config.divisor}")
    return config


def _fields(kind: type[AnyComponent], source: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings that the file has under their own names."""
    same = kind.model_fields.keys() - {"kind", "image_size", "mid_block"}
    fields: dict[str, Any] = {}
    for key, value in source.items():
        if key in ONLY[kind]:
            if value not in ONLY[kind][key]:
                allowed = " or ".join(json.dumps(item) for item in ONLY[kind][key])
                raise refused_key(where, key, value, f"only {allowed} is read")
        elif key in same:
            fields[key] = _modern(key, value)
        elif not key.startswith("_") and key not in ELSEWHERE[kind]:
            raise refused_key(where, key, value, "this release does not know the key")
    return fields


def _modern(key: str, value: Any) -> Any:
    if key.endswith("block_types") and isinstance(value, list):
        return [kind.removeprefix("UNetRes") if isinstance(kind, str) else kind for kind in value]
    return "silu" if (key, value) == ("act_fn", "swish") else value


def _size(source: Mapping[str, Any], kind: type[AnyComponent], where: str) -> int:
    value = source.get("sample_size", 32 if kind is DiffusersDiTConfig else None)
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise refused_key(where, "sample_size", value, "one size for height and width is needed")
    return value
