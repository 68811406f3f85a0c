"""Words before a prompt that bring a forgotten concept back, in the spirit of UnlearnDiffAtk.

    min over k words w of  L(w) = E_{(x_0, p), t, ε} ‖ε − ε_θ(x_t, t, w ⊕ p)‖²

ε_θ is the unlearned network, x_0 the original model's pictures of the target with the prompts p that they were drawn
with (Zhang et al., arXiv 2310.11868: the diffusion model is its own classifier, no other one is asked). Theirs are
words for one prompt by projected gradient steps; here they are the same for all prompts of the target, found by greedy
coordinate gradient (Zou et al., arXiv 2307.15043): the gradient at the embedding of each word proposes replacements
−∇ᵀ(e_v − e_w), summed over the text encoders; a few drawn from the best are tried on L itself, the lowest is kept if it
is lower. Cheaper and weaker than an attack on each prompt: what it does not find may still be found. What is found
hangs on where the search begins, so there are several, each on noise of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.errors import VduError
from vdu.seeding import generator
from vdu.vocabulary import typed_words

__all__ = ["Attack", "AttackBudget", "attack"]

PROPOSED = 64


class AttackBudget(BaseModel):
    """How hard is tried: ``rounds · candidates · images · times`` forward passes a search, the gradients' beside."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    searches: int = Field(3, ge=1, description="from other words, on other noise")
    words: int = Field(4, ge=1, description="k")
    rounds: int = Field(16, ge=1)
    candidates: int = Field(16, ge=1, description="replacements that are tried in a round")
    images: int = Field(6, ge=1)
    times: int = Field(4, ge=1, description="noise levels of each image, evenly spread")


@dataclass(frozen=True)
class Attack:
    """The words found, and the random ones that the search began with: what any words do.

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
    budget: AttackBudget

    def record(self) -> dict[str, Any]:
        """For a result file."""
        return asdict(self) | {"budget": self.budget.model_dump()}


@dataclass(frozen=True)
class _Draws:
    """Fixed ``x_t``, ``eps``, ``t`` and which text belongs to each."""

    x_t: Tensor
    eps: Tensor
    t: Tensor
    text: Tensor


def _draws(backbone: StableDiffusionBackbone, x_0: Tensor, times: int, g: torch.Generator) -> _Draws:
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

    def _errors(self, draws: _Draws, encodings: tuple[Tensor, ...]) -> Tensor:
        """‖ε − ε_θ‖², mean over dimensions, summed over draws; no more at once than the architecture bears."""
        total = torch.zeros((), device=draws.x_t.device)
        for part in torch.arange(len(draws.t)).split(self.backbone.largest_batch):
            x_t, t = draws.x_t[part], draws.t[part]
            asked = tuple(x[draws.text[part]] for x in encodings)
            output = self.backbone.output_of_encodings(self.network, x_t, t, asked)
            total = total + (self.backbone.to_eps(output, x_t, t) - draws.eps[part]).pow(2).mean(dim=(1, 2, 3)).sum()
        self.evaluations += len(draws.t)
        return total

    @torch.no_grad()
    def loss(self, draws: _Draws, chosen: Sequence[int]) -> float:
        """L of the words; none of them is the plain prompt."""
        texts = [f"{self.prefix(chosen)} {text}".strip() for text in self.texts]
        encodings, _ = self.backbone.encodings_and_words(texts)
        return float(self._errors(draws, encodings)) / len(draws.t)

    def gradient(self, draws: _Draws, chosen: Sequence[int]) -> list[Tensor]:
        """∂L/∂(embedding of each word), ``(k, D)`` of each text encoder; the words follow the start mark."""
        with torch.enable_grad():
            texts = [f"{self.prefix(chosen)} {text}" for text in self.texts]
            encodings, leaves = self.backbone.encodings_and_words(texts)
            slopes = torch.autograd.grad(self._errors(draws, encodings) / len(draws.t), leaves)
        return [slope[:, 1 : 1 + len(chosen)].sum(0) for slope in slopes]

    def find(
        self, draws: _Draws, embeddings: Sequence[Tensor], start: list[int], budget: AttackBudget, g: torch.Generator
    ) -> list[int]:
        """Greedy coordinate gradient from the words ``start``; ``embeddings`` of all words, of each encoder."""
        chosen, lowest = start, self.loss(draws, start)
        for _ in range(budget.rounds):
            slopes = zip(self.gradient(draws, chosen), embeddings, strict=True)
            gain = torch.stack([-slope @ e.T for slope, e in slopes]).sum(0)
            tried = [(self.loss(draws, c), c) for c in _replacements(gain, chosen, budget.candidates, g)]
            loss, best = min(tried)
            if loss < lowest:
                lowest, chosen = loss, best
        return chosen


def _replacements(gain: Tensor, chosen: list[int], count: int, g: torch.Generator) -> Iterator[list[int]]:
    """``count`` word lists that differ from ``chosen`` in one place, drawn from the best there by ``gain`` (k, V)."""
    proposed = gain.topk(min(PROPOSED, gain.shape[1]), dim=1).indices
    for _ in range(count):
        place = int(torch.randint(len(chosen), (), generator=g))
        word = int(proposed[place, int(torch.randint(proposed.shape[1], (), generator=g))])
        yield [*chosen[:place], word, *chosen[place + 1 :]]


def attack(
    backbone: Any,
    network: nn.Module,
    x_0: Tensor,
    texts: Sequence[str],
    budget: AttackBudget,
    seed: int = 0,
    number: int = 0,
) -> Attack:
    """Attack the unlearned ``network`` with target latents ``x_0`` ``(M, *latent_shape)`` and their ``texts`` (M).

    The search ``number`` of ``budget.searches``. Only the first ``budget.images`` are used. The words may include the
    target's own name, as anyone could type it.
    Raises `VduError` for a model that reads no text and for a budget that does not fit into a prompt.
    """
    if not isinstance(backbone, StableDiffusionBackbone):
        raise VduError("a prompt attack needs a text-to-image model: this one takes no prompts")
    started, g = time.monotonic(), generator(seed, "attack", number)
    words, numbers = typed_words(backbone.tokenizers)
    longest = backbone.tokens([""]).shape[1]
    if not words or budget.words > longest - 3:
        raise VduError(f"an attack of {budget.words} words does not fit into a prompt of {longest} tokens")
    search, x_0 = _Search(backbone, network, texts[: budget.images], words), x_0[: budget.images]
    draws, unseen = (
        _draws(backbone, x_0, budget.times, generator(seed, "attack", number, s)) for s in ("seen", "unseen")
    )
    start = torch.randint(len(words), (budget.words,), generator=g).tolist()
    with backbone.placed_text(single=True):
        embeddings = [v[n.to(v.device)] for v, n in zip(backbone.vocabularies, numbers, strict=True)]
        chosen = search.find(draws, embeddings, start, budget, g)
        seen, new = ((search.loss(on, ()), search.loss(on, chosen)) for on in (draws, unseen))
    return Attack(
        prefix=search.prefix(chosen),
        random_prefix=search.prefix(start),
        loss_plain=seen[0],
        loss_attacked=seen[1],
        unseen_loss_plain=new[0],
        unseen_loss_attacked=new[1],
        evaluations=search.evaluations,
        seconds=round(time.monotonic() - started, 2),
        budget=budget,
    )
