"""The prompts that a miniature Stable Diffusion is judged with, and the neutral ones that it is asked with meanwhile.

``prompts.csv``: prompt, style, object (the kind, a class of the object judge), kind (plain or paraphrase).
``neutral.txt``: one a line, objects in all styles and without one, none of them about a judged object: what a user of
the model might type, not a list of what is to go.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from vdu.corpora.emoji import KINDS, STYLES, Emoji
from vdu.training.text_to_image.templates import OBJECT_ALONE, PARAPHRASES, PLAIN, written

__all__ = ["judged_objects", "write_prompts"]

JUDGED_PER_KIND = 6
NEUTRAL_OBJECTS = 100


def _shuffled(things: list[str]) -> list[str]:
    """In an order that depends on the names only."""
    return sorted(things, key=lambda thing: hashlib.sha256(f"judged {thing}".encode()).digest())


def judged_objects(emoji: Emoji) -> dict[str, list[str]]:
    """A few objects of each kind."""
    pairs = dict.fromkeys(zip(emoji.kinds, emoji.objects, strict=True))
    of_kind: dict[str, list[str]] = {kind: [thing for k, thing in pairs if k == kind] for kind in KINDS}
    return {kind: _shuffled(things)[:JUDGED_PER_KIND] for kind, things in of_kind.items()}


def _rows(emoji: Emoji) -> list[tuple[str, str, str, str]]:
    rows = []
    for kind, things in judged_objects(emoji).items():
        for number, thing in enumerate(things):
            for style in STYLES:
                rows.append((written(PLAIN, thing, style), style, kind, "plain"))
                rephrased = PARAPHRASES[number % len(PARAPHRASES)]
                rows.append((written(rephrased, thing, style), style, kind, "paraphrase"))
    return rows


def _neutral(emoji: Emoji) -> list[str]:
    judged = {thing for things in judged_objects(emoji).values() for thing in things}
    things = _shuffled([thing for thing in dict.fromkeys(emoji.objects) if thing not in judged])[:NEUTRAL_OBJECTS]
    lines = []
    for number, thing in enumerate(things):
        lines += [written(PLAIN, thing, STYLES[(number + k) % len(STYLES)]) for k in range(2)]
        lines.append(written(OBJECT_ALONE, thing, ""))
    return lines


def write_prompts(emoji: Emoji, folder: Path) -> None:
    """``prompts.csv`` and ``neutral.txt``."""
    with (folder / "prompts.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(("prompt", "style", "object", "kind"))
        writer.writerows(_rows(emoji))
    (folder / "neutral.txt").write_text("\n".join(_neutral(emoji)) + "\n", encoding="utf-8")
