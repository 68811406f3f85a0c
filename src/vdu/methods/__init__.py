"""Every method by name. A new method is one file here with settings and `build`, and one line below.

One of a user's own needs neither: `find_method` takes it as ``module:METHOD``.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from vdu.errors import VduError, nearest
from vdu.hashing import source_sha256
from vdu.methods import (
    capped_ascent,
    concept_ablation,
    erasediff,
    esd,
    esd_prompt,
    finetune,
    gradient_ascent,
    guided,
    retrack,
    salun,
    selective_amnesia,
    siss,
    uce,
    vdu_bayes,
    vdu_paper,
    vdu_quick,
)
from vdu.named_object import named_object
from vdu.objective.contract import Method, MethodSettings
from vdu.weights.parameters import LORA

__all__ = ["METHODS", "find_method", "make_settings", "own_source_sha256"]

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        vdu_bayes.METHOD,
        vdu_quick.METHOD,
        vdu_paper.METHOD,
        guided.METHOD,
        capped_ascent.METHOD,
        gradient_ascent.METHOD,
        esd.METHOD,
        selective_amnesia.METHOD,
        finetune.METHOD,
        salun.METHOD,
        erasediff.METHOD,
        siss.METHOD,
        retrack.METHOD,
        esd_prompt.METHOD,
        uce.METHOD,
        concept_ablation.METHOD,
    )
}


def find_method(name: str | Method) -> Method:
    """The method of that name, or a `Method` of one's own, as it is or named ``module:METHOD``.

    Raises `VduError` with the nearest names for an unknown one.
    """
    if isinstance(name, Method):
        return name
    if ":" in name:
        wanted = f"no method {name}: give an importable module:METHOD, a vdu.objective.contract.Method"
        if not isinstance(method := named_object(name, wanted), Method):
            raise VduError(wanted)
        return method
    if name not in METHODS:
        raise VduError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name]


def own_source_sha256(method: Method) -> str | None:
    """Of the file of a user's own method; None for one of vdu's, which the version tells."""
    return None if method in METHODS.values() else source_sha256(method.build)


def make_settings(method: Method, values: dict[str, Any]) -> MethodSettings:
    """The method's settings with ``values`` over the defaults. Raises `VduError` for unknown names and bad values."""
    known = method.settings.model_fields
    for name in map(str, values):
        if name not in known:
            raise VduError(f"method {method.name} has no setting {name!r}: {nearest(name, known)}")
    try:
        settings = method.settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise VduError(f"setting {'.'.join(map(str, first['loc']))}={first['input']!r}: {first['msg']}") from error
    if settings.parameters == LORA and settings.holds_weights:
        raise VduError(f"method {method.name} holds weights of the network itself: a LoRA cannot be trained with it")
    return settings
