"""The texts that a text-to-image model is asked with: neutral ones for its own samples, those of the forget images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdu.errors import VduError

__all__ = ["DEFAULT_GUIDANCE_SCALE", "Prompts", "quoted_prompts", "read_prompts", "without"]

DEFAULT_GUIDANCE_SCALE = 7.5
QUOTED = 5


@dataclass(frozen=True)
class Prompts:
    """``neutral``: what the model must go on making; ``forget``: one for all forget images, or one for each.

    Own samples take turns between the two, or are asked as `vdu.text.asking` says.
    ``guidance_scale``: of classifier-free guidance when sampling (Ho & Salimans, arXiv 2207.12598); 1 is without.
    Raises `VduError` for a scale under 1 or where there is no neutral prompt (the empty one is a prompt).
    """

    neutral: tuple[str, ...] = ("",)
    forget: tuple[str, ...] = ()
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE

    def __post_init__(self) -> None:
        if not 1 <= self.guidance_scale < float("inf"):
            raise VduError(
                f"the guidance scale must be a number of at least 1 (no guidance), not {self.guidance_scale}"
            )
        if not self.neutral:
            raise VduError("no neutral prompt: give at least one, or leave them out for the empty prompt")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Those to forget that say something, each once."""
        return tuple(dict.fromkeys(text for text in self.forget if text.strip()))

    @property
    def kept(self) -> tuple[str, ...]:
        """Neutral prompts that name none of those to forget, in whole words; the empty one where none is left."""
        names = [_pattern(concept, r"\w") for concept in self.concepts]
        return tuple(p for p in self.neutral if not any(name.search(p) for name in names)) or ("",)

    def of_sample(self, number: int) -> str:
        """The prompt of sample ``number``: it depends on the number only, so that models can be paired."""
        if not self.forget:
            return self.neutral[number % len(self.neutral)]
        turn = self.forget if number % 2 else self.neutral
        return turn[number // 2 % len(turn)]


def _pattern(concept: str, beside: str) -> re.Pattern[str]:
    words = r"\s+".join(map(re.escape, concept.split()))
    return re.compile(rf"(?<!{beside}){words}(?!{beside})", re.IGNORECASE)


def without(concept: str, text: str) -> str:
    """``text`` without ``concept``, where that stands for itself; empty where nothing but marks is left. Else as it is.

    Not "noto-style" without "style", nor "a cat's house" without "a cat".
    """
    rest, count = _pattern(concept, r"[\w'’-]").subn(" ", text)
    if not count:
        return text
    rest = " ".join(rest.split())
    return rest if re.search(r"\w", rest) else ""


def quoted_prompts(prompts: Sequence[str]) -> str:
    """The first few prompts in quotation marks, for reports."""
    quoted = ", ".join(f"“{prompt}”" if prompt else "the empty prompt" for prompt in prompts[:QUOTED])
    return f"{quoted} and {len(prompts) - QUOTED} more" if len(prompts) > QUOTED else quoted


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a text file, without empty ones. Raises `VduError` where it cannot be read or holds none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VduError(f"cannot read the prompts {path} ({type(error).__name__}): give a text file") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise VduError(f"{path} has no prompts: write one a line")
    return prompts
