"""Records of the first release, which had one layout for nodes and one for `ddib bridge`, in today's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any


def upgraded(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values in the layout of this version, copied; None for what is no record."""
    values: dict[str, Any] = json.loads(json.dumps(raw))
    if "format" in values:
        return values
    if "translated" in values:
        return _of_bridge(values)
    known = {"latent_sha256", "job_id", "picture", "cycle", "input_sha256"}
    return _of_nodes(values) if known & values.keys() else None


def _of_nodes(values: dict[str, Any]) -> dict[str, Any]:
    """Of `ddib translate`, or of a node's job database."""
    picture = values.get("picture")
    if isinstance(picture, dict):
        # In the database the terms were a mapping of their own.
        picture |= _mapping(picture.pop("terms", None))
        picture.setdefault("size_rule", values.get("size_rule", ""))
    elif values.get("size_rule", "none") != "none":
        values["picture"] = {"size_rule": values["size_rule"]}  # encoded, and not yet decoded
    return values


def _of_bridge(old: Mapping[str, Any]) -> dict[str, Any]:
    """Of `ddib bridge`."""
    models, ranges, classes = (_mapping(old.get(key)) for key in ("models", "ranges", "classes"))
    settings, used, structure = (_mapping(old.get(key)) for key in ("settings", "range", "structure"))
    source, target = (_mapping(models.get(side)) for side in ("source", "target"))
    scale, back = _mapping(old.get("output_scale")), _mapping(old.get("back_scale"))
    said = old.get("size")
    size = said if isinstance(said, list) and len(said) == 2 else [0, 0]
    marked = structure.get("doubtful")
    return {
        "input": old.get("source"),
        "files": _old_files(old),
        "source_domain": source.get("domain", ""),
        "target_domain": target.get("domain", ""),
        "source_model_sha256": source.get("digest", ""),
        "target_model_sha256": target.get("digest", ""),
        "solver": settings,
        "source_class": _class(classes.get("source")),
        "target_class": _class(classes.get("target")),
        "latent": _mapping(old.get("latent")),
        "soften_sigma": settings.get("soften") or 0.0,
        "picture": {
            "height": size[0],
            "width": size[-1],
            **_ends(ranges.get("target"), "low", "high"),
            **_ends(ranges.get("source"), "source_low", "source_high"),
            **scale,
            **{f"back_{key}": back[key] for key in ("slope", "intercept") if key in back},
            **{key: old[key] for key in ("cycle_mse", "cycle_psnr") if key in old},
            **{key: structure.get(key) for key in ("edge_correlation", "mutual_information")},
            "structure_doubtful": marked,
            **used,
        },
        "doubtful": marked,
        "doubts": None if marked is None else ["structure"] * bool(marked),
        "run": {
            "request": old.get("request", ""),
            "pixels_sha256": old.get("picture_digest", ""),
            "settings": settings,
            "chance": old.get("chance"),
            "uncertainty": old.get("uncertainty"),
        },
    }


def _old_files(old: Mapping[str, Any]) -> dict[str, Any]:
    """The files of a record of `ddib bridge` by their kinds; all lay in the record's folder."""
    ends = {"_back.png": "returned", "_latent.npy": "latent", "_uncertainty.png": "uncertainty"}
    digests, found = _mapping(old.get("files")), dict[str, Any]()
    for name in [*digests, old.get("translated"), old.get("back")]:
        if not isinstance(name, str):
            continue
        kind = next((kind for end, kind in ends.items() if name.endswith(end)), "source")
        kind = {old.get("translated"): "translation", old.get("back"): "returned"}.get(name, kind)
        found[kind] = {"file": PurePosixPath(name).name, "sha256": digests.get(name, "")}
    return found


def _ends(said: object, low: str, high: str) -> dict[str, Any]:
    return {low: said[0], high: said[1]} if isinstance(said, list) and len(said) == 2 else {}


def _class(said: object) -> str:
    return "" if said is None else str(said)


def _mapping(said: object) -> dict[str, Any]:
    return said if isinstance(said, dict) else {}
