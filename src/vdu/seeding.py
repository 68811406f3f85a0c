"""Random numbers that depend on (seed, step, stream) only: a resumed run draws what an uninterrupted one would."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator"]


def generator(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU generator for one named stream, e.g. ``generator(seed, "noise", step)``.

    Streams with different names or numbers are independent; no state has to be saved to resume.
    """
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
