"""Infers the arguments of a public picture network from the shapes of its tensors.

It reads only shapes and names; what they leave open is listed, not guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ddib_fed.errors import BundleInvalid

ENTER = "input_blocks.0.0.weight"
TIME = "time_embed.0.weight"
LABELS = "label_emb.weight"
POSITIONS = "out.2.positional_embedding"


@dataclass(frozen=True, slots=True)
class Block:
    """One block of the down or up path, as its tensors show it."""

    width: int = 0
    enters: int = 0
    attention: bool = False
    scale_shift: bool = False
    resamples: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """One grouping of the down path into levels."""

    levels: int
    num_res_blocks: int
    resblock_updown: bool | None
    conv_resample: bool = True


@dataclass(frozen=True, slots=True)
class Shapes:
    """Properties of a network inferred from its tensors."""

    classifier: bool
    in_channels: int
    out_channels: int
    model_channels: int
    num_classes: int | None
    pool: str
    places: int
    down: tuple[Block, ...]
    layouts: tuple[Layout, ...]

    def widths(self, layout: Layout) -> tuple[int, ...]:
        return tuple(self._first(layout, level).width for level in range(layout.levels))

    def channel_mult(self, layout: Layout) -> tuple[float, ...]:
        return tuple(multiplier(width, self.model_channels) for width in self.widths(layout))

    def attention(self, layout: Layout) -> tuple[int, ...]:
        return tuple(2**level for level in range(layout.levels) if self._first(layout, level).attention)

    @property
    def scale_shift(self) -> bool:
        return self.down[1].scale_shift

    def _first(self, layout: Layout, level: int) -> Block:
        return self.down[1 + level * (layout.num_res_blocks + 1)]


_PIXELS = "UNets of pixels are read: guided-diffusion's, or with --diffusers a UNet2DModel or DiT of pixels"
_FAMILIES = (
    (
        re.compile(r"adaLN_modulation"),
        "a diffusion transformer (DiT or SiT), which works on latents",
        _PIXELS,
    ),
    (
        re.compile(r"^(?:model\.diffusion_model|first_stage_model|cond_stage_model)\."),
        "a checkpoint of latent diffusion (Stable Diffusion or the like)",
        _PIXELS,
    ),
    (
        re.compile(r"^(?:single_)?transformer_blocks\."),
        "a transformer of the diffusers library (DiT, PixArt, Flux), which works on latents",
        _PIXELS,
    ),
    (re.compile(r"^double_blocks\."), "a transformer for flows of latents (Flux)", _PIXELS),
    (re.compile(r"\.lora_|^lora_"), "an adapter (LoRA), which needs the model that it changes", _PIXELS),
    (
        re.compile(r"^(?:down_blocks|mid_block|up_blocks)\."),
        "a network of the diffusers library",
        "ddib model import --diffusers DIR, with the folder that holds config.json and the scheduler",
    ),
)


def multiplier(width: int, channels: int) -> float:
    found = width / channels
    return found if int(found * channels) == width else math.nextafter(found, math.inf)


def look(state: Mapping[str, Tensor], source: str) -> Shapes:
    """Infer a network's properties from the shapes in `state`."""
    if ENTER in state and state[ENTER].ndim == 2:
        raise BundleInvalid(
            f"{source}: it is the public code's network for points",
            hint="import it with --synthetic",
            facts={"field": ENTER},
        )
    _refuse_other_families(state, source)
    for key, ndim in ((ENTER, 4), (TIME, 2)):
        if key not in state or state[key].ndim != ndim:
            raise refused(source, key, "the tensor is missing or has another number of dimensions")
    down, up = _blocks(state, "input_blocks"), _blocks(state, "output_blocks")
    if len(down) < 2 or not down[1].width:
        raise refused(source, "input_blocks.1.0.in_layers.2.weight", "the tensor is missing")
    classifier = not up
    out_channels, pool = _head(state, source) if classifier else (_leaving(state, source), "")
    layouts = tuple(layout for layout in _layouts(down, up) if _fits(down, layout))
    if not layouts:
        raise refused(source, "input_blocks", "its blocks are no levels of equally many residual blocks")
    return Shapes(
        classifier,
        state[ENTER].shape[1],
        out_channels,
        state[TIME].shape[1],
        len(state[LABELS]) if LABELS in state else None,
        pool,
        state[POSITIONS].shape[-1] - 1 if POSITIONS in state else 0,
        down,
        layouts,
    )


def _blocks(state: Mapping[str, Tensor], way: str) -> tuple[Block, ...]:
    """The blocks `way`.0, `way`.1, ...; one without tensors (pooling) is there, empty."""
    layers: dict[int, dict[int, set[str]]] = {}
    for key in state:
        name, _, rest = key.partition(".")
        parts = rest.split(".", 2)
        if name == way and len(parts) == 3 and parts[0].isdigit() and parts[1].isdigit():
            layers.setdefault(int(parts[0]), {}).setdefault(int(parts[1]), set()).add(parts[2])
    return tuple(_block(state, f"{way}.{i}", layers.get(i, {})) for i in range(max(layers, default=-1) + 1))


def _block(state: Mapping[str, Tensor], name: str, layers: Mapping[int, set[str]]) -> Block:
    residual = state.get(f"{name}.0.in_layers.2.weight")
    projection = state.get(f"{name}.0.emb_layers.1.weight")
    width, enters = residual.shape[:2] if residual is not None else (0, 0)
    resamples = ""
    if any(tensors & {"op.weight", "conv.weight"} for tensors in layers.values()):
        resamples = "convolution"
    if any("in_layers.2.weight" in tensors for index, tensors in layers.items() if index > 0):
        resamples = "residual"
    return Block(
        width,
        enters,
        any("qkv.weight" in tensors for tensors in layers.values()),
        projection is not None and len(projection) == 2 * width,
        resamples,
    )


def _layouts(down: tuple[Block, ...], up: tuple[Block, ...]) -> list[Layout]:
    """The ways in which n = levels x (residual blocks + 1) blocks can be levels."""
    count = len(down)
    residual = sum(block.resamples == "residual" for block in up)
    changes = [i for i, block in enumerate(down) if i and not block.width]
    if changes:
        learned = any(down[i].resamples for i in changes)
        return _of_levels(count, len(changes) + 1, updown=False, learned=learned)
    if up:
        return _of_levels(count, residual + 1, updown=True if residual else None)
    # Half a UNet in which residual blocks resample: they look like the others.
    some = [layout for levels in range(2, count) for layout in _of_levels(count, levels, updown=True)]
    return _of_levels(count, 1, updown=None) + some


def _of_levels(count: int, levels: int, *, updown: bool | None, learned: bool = True) -> list[Layout]:
    blocks, rest = divmod(count, levels)
    return [] if rest or blocks < 2 else [Layout(levels, blocks - 1, updown, learned)]


def _fits(down: tuple[Block, ...], layout: Layout) -> bool:
    """Whether each level has one width and attends in all of its blocks or in none, and nothing else does."""
    size = layout.num_res_blocks + 1
    for level in range(layout.levels):
        inside = down[1 + level * size : (level + 1) * size]
        if len({(block.width, block.attention) for block in inside}) != 1 or not inside[0].width:
            return False
        if level + 1 < layout.levels:
            change = down[(level + 1) * size]
            if change.attention or bool(change.width) != bool(layout.resblock_updown):
                return False
            if change.width and not change.width == change.enters == inside[0].width:
                return False
    return True


def _leaving(state: Mapping[str, Tensor], source: str) -> int:
    key = "out.2.weight"
    if key not in state or state[key].ndim != 4:
        raise refused(source, key, "the tensor is missing or has another number of dimensions")
    return len(state[key])


def _head(state: Mapping[str, Tensor], source: str) -> tuple[int, str]:
    """Number of classes, and how a classifier pools."""
    if POSITIONS in state:
        return _length(state, "out.2.c_proj.weight", source), "attention"
    first = state.get("out.0.weight")
    if first is not None and first.ndim == 1:
        return _length(state, "out.3.weight", source), "adaptive"
    if "out.1.weight" in state:
        return _length(state, "out.3.weight", source), "spatial_v2"
    return _length(state, "out.2.weight", source), "spatial"


def _length(state: Mapping[str, Tensor], key: str, source: str) -> int:
    if key not in state or state[key].ndim < 2:
        raise refused(source, key, "the tensor is missing or has another number of dimensions")
    return len(state[key])


def _refuse_other_families(state: Mapping[str, Tensor], source: str) -> None:
    """Name a model of another kind by a tensor that only such a model has."""
    for pattern, kind, hint in _FAMILIES:
        key = next((key for key in state if pattern.search(key)), None)
        if key is not None:
            raise BundleInvalid(
                f"{source}: by {key[:100]} it is {kind}", hint=hint, facts={"field": key[:100]}
            )


def refused(source: str, key: str, problem: str) -> BundleInvalid:
    """The error for a file that is not such a network."""
    return BundleInvalid(
        f"{source}: {key}: {problem}",
        hint="this importer reads the public code's UNet and noisy classifier; check that the file is one",
        facts={"field": key[:100]},
    )
