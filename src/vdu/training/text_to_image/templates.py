"""How an object in a style is put into words: training draws from several forms, evaluation keeps some to itself.

A part of the captions names the object alone or the style alone, and a part is empty: the network must know each half
of a prompt, and what it makes unasked (classifier-free guidance, Ho & Salimans, arXiv 2207.12598).
"""

from __future__ import annotations

import torch

__all__ = ["PARAPHRASES", "PLAIN", "caption", "style_words", "written"]

PLAIN = "a {object} in {style} style"
FORMS = (PLAIN, PLAIN, "{style} style {object}", "a {style} emoji of a {object}", "{object}, {style}")
PARAPHRASES = ("the {style} version of a {object}", "{object} the way {style} does it", "a {object} icon from {style}")
OBJECT_ALONE, STYLE_ALONE = "a {object}", "something in {style} style"
EMPTY_SHARE, OBJECT_SHARE, STYLE_SHARE = 0.1, 0.1, 0.05


def style_words(style: str) -> str:
    """A style's class name as it is written in prompts."""
    return style.replace("-", " ")


def written(template: str, thing: str, style: str) -> str:
    """``template`` with its words put in."""
    return template.format(object=thing, style=style_words(style))


def caption(thing: str, style: str, g: torch.Generator) -> str:
    """One of the training forms, drawn with ``g``."""
    kind = float(torch.rand((), generator=g))
    form = FORMS[int(torch.randint(len(FORMS), (), generator=g))]
    if kind < EMPTY_SHARE:
        return ""
    if kind < EMPTY_SHARE + OBJECT_SHARE:
        form = OBJECT_ALONE
    elif kind < EMPTY_SHARE + OBJECT_SHARE + STYLE_SHARE:
        form = STYLE_ALONE
    return written(form, thing, style)
