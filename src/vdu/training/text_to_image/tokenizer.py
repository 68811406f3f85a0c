"""CLIP's byte-pair tokenizer, with the first of its merges only.

Vocabulary: 256 bytes, 256 bytes that end a word, one entry a merge, two marks; as in CLIP (Radford et al.,
arXiv 2103.00020). Merges are learned from frequent to rare, so the first few thousand keep common words whole and any
text can still be written; a small model then need not carry 49,408 embeddings.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from vdu.corpora.emoji import MERGES_FILE
from vdu.errors import VduError

__all__ = ["make_tokenizer"]

START, END = "<|startoftext|>", "<|endoftext|>"


def _merges(data: Path, count: int) -> list[tuple[str, str]]:
    path = data / MERGES_FILE
    if not path.is_file():
        raise VduError(f"{data} lacks CLIP's merges ({MERGES_FILE}): render the corpus with `vdu data emoji`")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()[1 : count + 1]
    return [(first, second) for first, second in (line.split() for line in lines)]


def make_tokenizer(data: Path, merges: int, longest: int) -> Any:
    """A `CLIPTokenizer` of ``merges`` merges that pads to ``longest`` tokens.

    Raises `VduError` where the merges are not in the corpus folder ``data``.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    pairs = _merges(data, merges)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in pairs), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=longest)
