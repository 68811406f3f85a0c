"""Words before a prompt that bring a forgotten concept back, in the spirit of UnlearnDiffAtk.

    min over k words w of  L(w) = E_{(x_0, p), t, ε} ‖ε − ε_θ(x_t, t, w ⊕ p)‖²

ε_θ is the unlearned network, x_0 the original model's pictures of the target with the prompts p that they were drawn
with (Zhang et al., arXiv 2310.11868: the diffusion model is its own classifier, no other one is asked). Theirs are
words for one prompt by projected gradient steps; here they are the same for all prompts of the target, found by greedy
coordinate gradient (Zou et al., arXiv 2307.15043): the gradient at the embedding of each word proposes replacements
−∇ᵀ(e_v − e_w), summed over the text encoders; a few drawn from the best are tried on L itself, the lowest is kept if it
is lower. It begins with the best of as many random lists. Cheaper and weaker than an attack on each prompt: what it
does not find may still be found. What is found hangs on where a search begins, so there are several, each on noise of
its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor, nn

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.errors import VduError
from vdu.seeding import generator
from vdu.text.vocabulary import typed_words, words_of

__all__ = ["Attack", "AttackBudget", "attack", "require_room"]

PROPOSED = 64


class AttackBudget(BaseModel):
    """How hard is tried: ``(rounds + 1) · candidates · images · times`` passes a search, the gradients' beside."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    searches: int = Field(3, ge=1, description="from other words, on other noise")
    words: int = Field(4, ge=1, description="k")
    rounds: int = Field(16, ge=1)
    candidates: int = Field(16, ge=1, description="lists to begin with, then replacements, tried a round")
    images: int = Field(6, ge=1)
    times: int = Field(4, ge=1, description="noise levels of each image, evenly spread")


@dataclass(frozen=True)
class Attack:
    """The words found, and as many random ones that nothing was asked of: what any words do.

    Losses without and with the words found, on the draws of the search and on noise that it never saw.
    """

    prefix: str
    random_prefix: str
    loss_plain: float
    loss_attacked: float
    unseen_loss_plain: float
    unseen_loss_attacked: float
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class _Draws:
    """Fixed ``x_t``, ``eps``, ``t`` and which text belongs to each."""

    x_t: Tensor
    eps: Tensor
    t: Tensor
    text: Tensor


def _draws(backbone: StableDiffusionBackbone, x_0: Tensor, times: int, g: Generator) -> _Draws:
    at = ((torch.arange(times) + 0.5) / times * backbone.timesteps).long()
    t, clean = at.repeat(len(x_0)).to(backbone.device), x_0.repeat_interleave(times, 0).to(backbone.device)
    eps = torch.randn(clean.shape, generator=g).to(backbone.device)
    return _Draws(backbone.add_noise(clean, eps, t), eps, t, torch.arange(len(x_0)).repeat_interleave(times))


class _Search:
    """The objective L and what it has cost so far."""

    def __init__(
        self, backbone: StableDiffusionBackbone, network: nn.Module, texts: Sequence[str], words: list[str]
    ) -> None:
        self.backbone, self.network, self.texts, self.words = backbone, network, tuple(texts), words
        self.evaluations = 0

    def prefix(self, chosen: Sequence[int]) -> str:
        return " ".join(self.words[i] for i in chosen)

    def _errors(self, draws: _Draws, part: Tensor, encodings: tuple[Tensor, ...]) -> Tensor:
        """‖ε − ε_θ‖², mean over dimensions, of the draws ``part``, summed and divided by the number of all."""
        x_t, t = draws.x_t[part], draws.t[part]
        asked = tuple(x[draws.text[part]] for x in encodings)
        output = self.backbone.output_of_encodings(self.network, x_t, t, asked)
        self.evaluations += len(part)
        errors = (self.backbone.to_eps(output, x_t, t) - draws.eps[part]).pow(2).mean(dim=(1, 2, 3))
        return errors.sum() / len(draws.t)

    def _parts(self, draws: _Draws) -> Sequence[Tensor]:
        """Numbers of the draws, no more at once than the architecture bears."""
        return torch.arange(len(draws.t)).split(self.backbone.largest_batch)

    @torch.no_grad()
    def loss(self, draws: _Draws, chosen: Sequence[int]) -> float:
        """L of the words; none of them is the plain prompt."""
        texts = [f"{self.prefix(chosen)} {text}".strip() for text in self.texts]
        encodings, _ = self.backbone.encodings_and_words(texts)
        return sum(float(self._errors(draws, part, encodings)) for part in self._parts(draws))

    @torch.enable_grad()
    def gradient(self, draws: _Draws, chosen: Sequence[int]) -> list[Tensor]:
        """∂L/∂(embedding of each word), ``(k, D)`` of each text encoder; the words follow the start mark."""
        encodings, leaves = self.backbone.encodings_and_words([f"{self.prefix(chosen)} {text}" for text in self.texts])
        # Part by part up to the encodings, then once through the encoders: one part's graph is there at a time.
        ends = tuple(x.detach().requires_grad_() for x in encodings)
        of_ends = [torch.autograd.grad(self._errors(draws, part, ends), ends) for part in self._parts(draws)]
        summed = [torch.stack(slopes).sum(0) for slopes in zip(*of_ends, strict=True)]
        slopes = torch.autograd.grad(encodings, leaves, summed)
        return [slope[:, 1 : 1 + len(chosen)].sum(0) for slope in slopes]

    def find(
        self, draws: _Draws, embeddings: Sequence[Tensor], starts: list[list[int]], budget: AttackBudget, g: Generator
    ) -> list[int]:
        """Greedy coordinate gradient from the best of ``starts``; ``embeddings`` of all words, of each encoder."""
        lowest, chosen = min((self.loss(draws, start), start) for start in starts)
        for _ in range(budget.rounds):
            slopes = zip(self.gradient(draws, chosen), embeddings, strict=True)
            gain = torch.stack([-slope @ e.T for slope, e in slopes]).sum(0)
            tried = [(self.loss(draws, c), c) for c in _replacements(gain, chosen, budget.candidates, g)]
            lowest, chosen = min([(lowest, chosen), *tried])
        return chosen


def _replacements(gain: Tensor, chosen: list[int], count: int, g: Generator) -> Iterator[list[int]]:
    """``count`` word lists that differ from ``chosen`` in one place, drawn from the best there by ``gain`` (k, V)."""
    proposed = gain.topk(min(PROPOSED, gain.shape[1]), dim=1).indices
    for _ in range(count):
        place = int(torch.randint(len(chosen), (), generator=g))
        word = int(proposed[place, int(torch.randint(proposed.shape[1], (), generator=g))])
        yield [*chosen[:place], word, *chosen[place + 1 :]]


def require_room(backbone: Any, prompts: Sequence[str], budget: AttackBudget) -> None:
    """Raises `VduError` where ``budget.words`` do not fit before each of ``prompts``, or nobody reads them."""
    if not isinstance(backbone, StableDiffusionBackbone):
        raise VduError("a prompt attack needs a text-to-image model: this one takes no prompts")
    longest = backbone.tokens([""]).shape[1]
    used = max(len(ids) for tokenizer in backbone.tokenizers for ids in tokenizer(list(prompts)).input_ids)
    if budget.words + used > longest:
        said = f"an attack of {budget.words} words does not fit before a prompt of {used} tokens"
        raise VduError(f"{said} where the model reads {longest}: attack with fewer words, or shorten the prompt")


def attack(
    backbone: Any,
    x_0: Tensor,
    texts: Sequence[str],
    budget: AttackBudget,
    *,
    prompts: Sequence[str],
    seed: int = 0,
    number: int = 0,
) -> Attack:
    """Attack the unlearned model with target latents ``x_0`` ``(M, *latent_shape)`` and their ``texts`` (M).

    The search ``number`` of ``budget.searches``. Only the first ``budget.images`` are used. ``prompts``: before which
    the words are to stand. Random words are none of theirs; the search may come to the target's own name, as anyone
    could type it. Raises `VduError` as `require_room`, and for a model whose tokenizer has no words.
    """
    require_room(backbone, prompts, budget)
    started = time.monotonic()
    stream: tuple[int | str, ...] = ("attack", *texts, number)
    words, numbers = typed_words(backbone.tokenizers)
    said = set(words_of(prompts))
    unsaid = [i for i, word in enumerate(words) if word.lower() not in said]
    if not unsaid:
        raise VduError("the tokenizer has no word that is one token: there is nothing to attack with")
    search, x_0 = _Search(backbone, backbone.network, texts[: budget.images], words), x_0[: budget.images]
    draws, unseen = (_draws(backbone, x_0, budget.times, generator(seed, *stream, s)) for s in ("seen", "unseen"))
    g = generator(seed, *stream)
    drawn = torch.randint(len(unsaid), (budget.candidates + 1, budget.words), generator=g).tolist()
    random, *starts = [[unsaid[i] for i in row] for row in drawn]
    with backbone.placed_text(single=True):
        embeddings = [v[n.to(v.device)] for v, n in zip(backbone.vocabularies, numbers, strict=True)]
        chosen = search.find(draws, embeddings, starts, budget, g)
        seen, new = ((search.loss(on, ()), search.loss(on, chosen)) for on in (draws, unseen))
    return Attack(
        prefix=search.prefix(chosen),
        random_prefix=search.prefix(random),
        loss_plain=seen[0],
        loss_attacked=seen[1],
        unseen_loss_plain=new[0],
        unseen_loss_attacked=new[1],
        evaluations=search.evaluations,
        seconds=round(time.monotonic() - started, 2),
    )
