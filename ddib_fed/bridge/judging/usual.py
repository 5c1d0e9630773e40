"""Allowances of sets of points for whoever does not know the model that made them: usual_sets.json.

They are the widest of the models that ship; `python -m benchmarks.privacy.usual` writes them.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources

from ddib_fed.models.allowances import SetAllowances

FILE = "usual_sets.json"


@lru_cache(maxsize=1)
def usual_sets() -> tuple[SetAllowances, ...]:
    content = (resources.files("ddib_fed.bridge.judging") / FILE).read_bytes()
    return tuple(SetAllowances.model_validate(each) for each in json.loads(content))
