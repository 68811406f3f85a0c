"""Words of the model's own vocabulary that ask for the forget images, found from the images alone.

    L(w) = E_{i, t, ε} ‖y − f_*(x_t, t, τ(w))‖²,   x_t from the forget image x_i,   gain(w) = L(∅) − L(w)

The diffusion model is its own classifier (Li et al., arXiv 2303.16203), with every word that can be typed as a class.
All words meet the same noised images, so their difference is the words'. Most passes go to those in question: after
each round the best of them are judged anew on more noise that they have not met (successive halving, Jamieson &
Talwalkar, arXiv 1502.07943). Inner pseudo-words (`vdu.text.inversion`) ask for the images better, but nobody types
them.

Of a kind whose members have names no word fits all images, but each name some: what counts is the mean of the best
tenth of its gains.

A large vocabulary takes many passes. The few hundred words of the neutral prompts, what people ask this model with,
take few: the likeliest are tried on its own samples (`vdu.text.asking`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.diffusion.noised_bank import NETWORK_BATCH
from vdu.diffusion.noising import Noised
from vdu.diffusion.stratified_times import stratified_shares, times_at
from vdu.errors import VduError
from vdu.precision import autocast
from vdu.seeding import generator
from vdu.text.telling_words import MARKS

__all__ = [
    "ROUNDS",
    "AskingWord",
    "asking_words",
    "gains_on_some",
    "likely_asking",
    "refuse_wordless",
    "typed_words",
    "words_of",
]

ROUNDS = ((4, 512), (16, 64), (64, 64))  # noised images, and how many of the words stay
ROUNDS_OF_FEW = ((8, 64), (32, 16), (64, 16))
MOST_CANDIDATES = 512
NOISED_FOR_SOME, BEST_SHARE = 200, 0.1
EMPTY = ""


@dataclass(frozen=True)
class AskingWord:
    """``gain`` over the empty prompt in the last round, in units of the squared error per dimension, and the standard
    error of that difference over its noised images."""

    text: str
    gain: float
    standard_error: float


def _single_tokens(tokenizer: Any, words: list[str]) -> list[int | None]:
    """The number of each word that is one ordinary token."""
    special = set(tokenizer.all_special_ids)
    encoded = tokenizer([word or " " for word in words], add_special_tokens=False).input_ids
    return [ids[0] if len(ids) == 1 and ids[0] not in special else None for ids in encoded]


def typed_words(tokenizers: Sequence[Any]) -> tuple[list[str], list[Tensor]]:
    """Words that stand alone as one token of every tokenizer, and their numbers: what is found can be typed."""
    first = tokenizers[0]
    words = [first.decode([number]).strip() for number in range(len(first))]
    words = [words[n] for n, single in enumerate(_single_tokens(first, words)) if words[n].isalpha() and single == n]
    numbers = [_single_tokens(tokenizer, words) for tokenizer in tokenizers]
    kept = [i for i, of_word in enumerate(zip(*numbers, strict=True)) if None not in of_word]
    return [words[i] for i in kept], [torch.tensor([row[i] for i in kept], dtype=torch.long) for row in numbers]


def _noised_alike(backbone: StableDiffusionBackbone, x_0: Tensor, count: int, g: torch.Generator) -> Noised:
    """``count`` of ``x_0``, each as often as the others or once less, at stratified times."""
    i = torch.cat([torch.randperm(len(x_0), generator=g) for _ in range(0, count, len(x_0))])[:count]
    t = times_at(stratified_shares(count, g), backbone.timesteps)
    eps = torch.randn(x_0[i].shape, generator=g)
    x_t, device = backbone.add_noise(x_0[i], eps, t), backbone.device
    return Noised(x_t.to(device), eps.to(device), t.to(device))


@torch.no_grad()
def _errors(backbone: StableDiffusionBackbone, at: Noised, words: list[str], precision: str) -> Tensor:
    """‖y − f_*‖² ``(W, n)`` of each word at each noised image, mean over dimensions."""
    count, rows = len(at.t), []
    wanted = backbone.from_eps(at.eps, at.x_t, at.t)
    with backbone.placed_text(single=True):
        for part in torch.arange(len(words) * count).split(min(NETWORK_BATCH, backbone.largest_batch)):
            word, i = part // count, part % count
            first = int(word[0])
            encodings, _ = backbone.encodings_and_words(words[first : int(word[-1]) + 1])
            asked = tuple(x[word - first] for x in encodings)
            with autocast(backbone.network, precision):
                output = backbone.output_of_encodings(backbone.network, at.x_t[i], at.t[i], asked)
            rows.append((output - wanted[i]).pow(2).mean(dim=(1, 2, 3)).cpu())
            backbone.passes += len(part)
    return torch.cat(rows).view(len(words), count)


def refuse_wordless(backbone: Any) -> None:
    """Raises `VduError` for a model that reads no text."""
    if not isinstance(backbone, StableDiffusionBackbone):
        raise VduError("only a model that takes text has words: this one takes no prompts")


def asking_words(
    backbone: Any,
    x_0: Tensor,
    seed: int,
    *,
    words: Sequence[str] | None = None,
    rounds: Sequence[tuple[int, int]] = ROUNDS,
    precision: str = "fp32",
    on_round: Callable[[int, int], None] | None = None,
) -> list[AskingWord]:
    """The words that stay, the best first, for the latents ``x_0`` ``(N, *latent_shape)``. Deterministic for a seed.

    ``words``: which are tried, each once; all of the vocabulary unless given.
    ``on_round`` is told how many words meet how many noised images. Raises `VduError` for a model that reads no text.
    """
    refuse_wordless(backbone)
    words = list(typed_words(backbone.tokenizers)[0] if words is None else words)
    gains = torch.zeros(len(words), 1)
    for number, (images, stay) in enumerate(rounds):
        if on_round is not None:
            on_round(len(words), images)
        at = _noised_alike(backbone, x_0, images, generator(seed, "words", number))
        errors = _errors(backbone, at, [EMPTY, *words], precision)
        gains = errors[:1] - errors[1:]
        best = gains.mean(1).argsort(descending=True, stable=True)[:stay]
        words, gains = [words[i] for i in best.tolist()], gains[best]
    spread = gains.std(1) / gains.shape[1] ** 0.5
    return [AskingWord(*row) for row in zip(words, gains.mean(1).tolist(), spread.tolist(), strict=True)]


def words_of(texts: Sequence[str]) -> list[str]:
    """The words of ``texts``, each once, in lower case and without the marks around them."""
    words = (word.strip(MARKS) for text in texts for word in text.lower().split())
    return list(dict.fromkeys(word for word in words if word))


def likely_asking(
    backbone: Any, x_0: Tensor, texts: Sequence[str], seed: int, *, most: int, precision: str = "fp32"
) -> list[str]:
    """The words of ``texts`` that gain over the empty prompt, at ``most`` so many, the best first.

    Of many words the `MOST_CANDIDATES` that stand there first are looked at.
    """
    words = words_of(texts)[:MOST_CANDIDATES] if most else []
    found = asking_words(backbone, x_0, seed, words=words, rounds=ROUNDS_OF_FEW, precision=precision) if words else []
    return [word.text for word in found if word.gain > 0][:most]


def gains_on_some(backbone: Any, x_0: Tensor, words: Sequence[str], seed: int, precision: str = "fp32") -> Tensor:
    """How well each of ``words`` fits those of ``x_0`` that it fits best ``(W,)``: its mean gain there, in units of the
    squared error per dimension. All meet the same noised images."""
    at = _noised_alike(backbone, x_0, NOISED_FOR_SOME, generator(seed, "words", "some"))
    errors = _errors(backbone, at, [EMPTY, *words], precision)
    best = (errors[:1] - errors[1:]).sort(dim=1, descending=True).values
    return best[:, : int(BEST_SHARE * NOISED_FOR_SOME)].mean(1)
