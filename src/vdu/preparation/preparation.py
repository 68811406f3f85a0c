"""What a method may ask for before it starts, made only on demand: own samples, banks, c and π, ρ, ε_f, prompts.

Own samples of a model with text are asked as `vdu.text.asking` says; else by turns with neutral and forget prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.noised_bank import BANK_ITEMS, FEWEST_DRAWS, NoisedBank, spread
from vdu.diffusion.noising import Clean
from vdu.diffusion.sampling import DEFAULT_STEPS, sample
from vdu.posterior import Posterior
from vdu.preparation.banks import Banks
from vdu.preparation.discriminator import Discriminator, fit_head, fit_prompted_head
from vdu.preparation.early_banks import EarlyBanks
from vdu.preparation.forget_score import fit_forget_score
from vdu.preparation.members import NamedMembers, name_members
from vdu.preparation.responsibility import responsibilities
from vdu.preparation.retained_samples import RetainedSamples
from vdu.seeding import generator
from vdu.text.asking import OWN_OF_TRIED, SHARE_OF_FORGET, SHARE_OF_OTHERS, AskedPrompts, Asking
from vdu.text.closed_form import ClosedForm
from vdu.text.search import find_asking
from vdu.text.vocabulary import gains_on_some
from vdu.weights.kept_parts import KeptParts

__all__ = ["OWN_SAMPLES", "SCORE_STEPS", "Preparation"]

OWN_SAMPLES = 512
SCORE_STEPS = 100
SHARE_OF_ONE = 0.05
FEWEST_RETAINED = 16


@dataclass
class Preparation:
    """Everything is derived from the original model, the forget images (x_0 and prompts) and the seed.

    ``own_count``, ``bank_items`` and ``score_steps`` say how much work that may be; ``inversion_steps``, which a method
    that learns at prompts sets before it asks for anything, whether and how long prompts are sought;
    ``lora_rank`` and ``gradient_checkpointing`` how the forget score is fitted. ``on_stage`` is told what is made, and
    ``parts`` keep it.
    """

    backbone: Backbone
    forget: Clean
    seed: int
    precision: str = "fp32"
    own_count: int = OWN_SAMPLES
    bank_items: int = BANK_ITEMS
    score_steps: int = SCORE_STEPS
    inversion_steps: int = 0
    own_sampler_steps: int = DEFAULT_STEPS
    given_share: float | None = None
    given_posterior: Posterior | None = None
    given_retain: Clean | None = None
    given_teacher: nn.Module | None = None
    lora_rank: int | None = None
    gradient_checkpointing: bool = False
    on_stage: Callable[[str], None] | None = None
    parts: KeptParts = field(default_factory=KeptParts)
    members: NamedMembers | None = field(default=None, init=False)

    @property
    def banks(self) -> Banks:
        """Makes banks of the original."""
        return Banks(self.backbone, self.seed, self.precision, self.parts)

    def begin(self, stage: str) -> None:
        """Tell ``on_stage`` what is made next."""
        if self.on_stage is not None:
            self.on_stage(stage)

    @cached_property
    def asking(self) -> Asking | None:
        """Asks for the undesired, in words that were given or with prompts found from the images; None: nobody does."""
        return find_asking(
            self.backbone,
            self.forget.x_0,
            self.seed,
            inversion_steps=self.inversion_steps,
            most_words=self.own_count // OWN_OF_TRIED,
            precision=self.precision,
            gradient_checkpointing=self.gradient_checkpointing,
            begin=self.begin,
            parts=self.parts,
        )

    @cached_property
    def own_prompts(self) -> AskedPrompts | None:
        """What the own samples are asked with; None where nobody knows how to ask for the undesired."""
        return self.asking.of_own(self.own_count) if self.asking else None

    @cached_property
    def told_words(self) -> Sequence[str]:
        """What asks for the undesired, in words: as given, or told by what is made of prompts, or none."""
        asking, prompts = self.asking, self.own_prompts
        if not asking or not prompts or asking.concepts:
            return asking.concepts if asking else ()
        c = self.responsibilities  # finds members too
        return self.members.words if self.members else asking.telling_words(prompts, c)

    @property
    def _told(self) -> Asking | None:
        """Asks with the words that were found; None where there are none."""
        words = self.told_words if self.asking and not self.asking.concepts else ()
        return Asking(self.asking.backbone, words) if self.asking and words else None

    @cached_property
    def taught_prompts(self) -> AskedPrompts | None:
        """``own_prompts`` as they are trained with: with the words that were found."""
        asking, prompts = self.asking, self.own_prompts
        return asking.told(self.told_words, prompts) if self._told and asking and prompts else prompts

    def own_conditions(self, count: int) -> Tensor | None:
        """``c`` ``(count,)`` of own samples: a quarter of them asks for the undesired where it is known how."""
        return self.asking.of_own(count).sampled if self.asking else self.backbone.sample_conditions(count)

    def _sampled(self, asked: Tensor | None, count: int, purpose: str) -> Clean:
        of_original = partial(sample, self.backbone, self.backbone.network, count, self.seed, purpose=purpose)
        made = partial(of_original, steps=self.own_sampler_steps, precision=self.precision, conditions=asked)
        return Clean(self.parts(f"samples-{purpose}", lambda: {"x_0": made()})["x_0"], asked)

    @cached_property
    def own_samples(self) -> Clean:
        """M samples of the original model."""
        asked = self.own_conditions(self.own_count)
        self.begin(f"sampling the original, {self.own_count} images")
        return self._sampled(asked, self.own_count, "own")

    @property
    def concepts(self) -> tuple[str, ...]:
        """What to forget in words, each once; `vdu.objective.needs` has seen to it that there are some."""
        return self.backbone.prompts.concepts if self.backbone.prompts else ()

    @property
    def kept_prompts(self) -> tuple[str, ...]:
        """Neutral prompts that do not name a concept."""
        return self.backbone.prompts.kept if self.backbone.prompts else ("",)

    @property
    def closed_form(self) -> ClosedForm | None:
        """What gives the concept's words the keys and values of the empty prompt, where words are known."""
        words, asking = self.told_words, self.asking
        frozen = self.lora_rank is not None  # a LoRA leaves these matrices as they are
        return ClosedForm.among_neutral(asking.backbone, words) if asking and words and not frozen else None

    def numbers_of(self, texts: Sequence[str]) -> Tensor:
        """``c`` ``(N,)`` of ``texts``, for a model that takes text."""
        numbers = self.backbone.condition(texts)
        assert numbers is not None
        return numbers

    def samples_of(self, texts: Sequence[str], count: int) -> Clean:
        """``count`` samples of the original model, asked with ``texts`` in turn; not kept."""
        return self._sampled(self.numbers_of([texts[i % len(texts)] for i in range(count)]), count, "asked")

    def _bank(self, images: Clean, stream: str, prompts: AskedPrompts | None, share: float) -> NoisedBank:
        self.begin(f"asking the original about noised {stream} images")
        images = Clean(images.x_0, prompts.base) if prompts else images
        bank = self.banks.fill(images, stream, items=self.bank_items)
        return self._taught(bank, stream, prompts, share) if prompts else bank

    def _taught(self, bank: NoisedBank, stream: str, prompts: AskedPrompts, share: float) -> NoisedBank:
        asked = prompts.in_training(bank.draws, share, generator(self.seed, "asked", stream))
        return replace(bank, asked=asked.to(bank.t.device))

    @cached_property
    def forget_bank(self) -> NoisedBank:
        """Noised forget images; of those that nobody asks for no more than have their draws in ``bank_items``."""
        if self.asking:
            return self._bank(self.forget, "forget", self.asking.of_forget(len(self.forget)), SHARE_OF_FORGET)
        return self._bank(spread(self.forget, max(1, self.bank_items // FEWEST_DRAWS)), "forget", None, 0.0)

    @cached_property
    def taught_forget_bank(self) -> NoisedBank:
        """``forget_bank`` as it is trained with: with the words that were found in place of found prompts."""
        if not self._told:
            return self.forget_bank
        prompts = self._told.of_forget(len(self.forget))
        return self._taught(self.forget_bank.without_prompts(), "forget", prompts, SHARE_OF_FORGET)

    @cached_property
    def own_bank(self) -> NoisedBank:
        """Noised own samples."""
        return self._bank(self.own_samples, "own", self.taught_prompts, SHARE_OF_OTHERS)

    @property
    def sought(self) -> Tensor | None:
        """Which own samples ``(M,)`` were asked for with what brings the undesired; None where nobody knows how."""
        known = self.members or self.own_prompts
        return known.sought if known else None

    @cached_property
    def responsibilities(self) -> Tensor:
        """c ``(M,)``: how far each own sample is of the undesired kind, judged by noised pictures of its own bank.

        π, given or not, is the share of what is made without being asked for it.
        """
        training, own, share, asking = self.forget_bank, self.own_samples.x_0, self._known_share, self.asking
        self.begin("finding the undesired part of its images")
        early = EarlyBanks(self.banks)
        forget = early.bank_of_forget(spread(self.forget, training.images).x_0, training, self.bank_items)
        judged, prompts = early.bank(own, "judged"), self.own_prompts
        of_pictures = partial(responsibilities, forget, judged, made_of=prompts.found_from if prompts else None)

        def weigh(**known: Any) -> Tensor:
            return self.parts("responsibilities", lambda: {"c": of_pictures(self.seed, **known)})["c"]

        def ask(texts: Sequence[str]) -> NoisedBank:
            self.begin(f"asking for words that may name it, {len(texts)} images")
            return early.bank(self.samples_of(texts, len(texts)).x_0, "asked")

        c = weigh(share=share, sought=self.sought)
        if asking and prompts and not asking.concepts:
            judge = partial(early.judge, forget=forget, own=judged)
            self.members = name_members(asking, prompts, c, share, ask=ask, judge=judge, again=weigh, gains=self._gains)
        return self.members.c if self.members else c

    def _gains(self, words: Sequence[str]) -> Tensor:
        gains = partial(gains_on_some, self.backbone, self.forget.x_0, words, seed=self.seed, precision=self.precision)
        return self.parts("gains", lambda: {"gains": gains()})["gains"]

    @property
    def _known_share(self) -> float | None:
        """π where it need not be estimated: as given; that of a single image, which cannot be held out, is assumed."""
        return SHARE_OF_ONE if self.given_share is None and len(self.forget) == 1 else self.given_share

    @property
    def found_words(self) -> Sequence[str]:
        """What was found that it is called; empty where it was given or the method has not asked for it."""
        return self.__dict__.get("told_words", ()) if self.asking and not self.asking.concepts else ()

    @property
    def share_source(self) -> str | None:
        """``given``, ``assumed`` or ``estimated``; None where the method has not asked for it."""
        if "responsibilities" not in self.__dict__:
            return None
        if self.given_share is not None:
            return "given"
        return "estimated" if self._known_share is None else "assumed"

    @property
    def share(self) -> float:
        """π, the undesired share of what the model makes without being asked for it."""
        if self._known_share is not None:
            return self._known_share
        c, sought = self.responsibilities, self.sought
        return float((c if sought is None else c[~sought]).mean())

    @cached_property
    def discriminator(self) -> Discriminator:
        """logit ρ at every time."""
        return fit_head(self.forget_bank, self.own_bank, self.responsibilities, self.seed)

    @cached_property
    def prompted_discriminator(self) -> Discriminator | None:
        """logit ρ(x_t, c) of what is made of a prompt; None where nothing is asked."""
        if self.own_bank.c is None or not self.own_bank.c.any():
            return None
        made_of_another = (prompts.sampled != prompts.base) if (prompts := self.taught_prompts) else None
        return fit_prompted_head(self.own_bank, self.responsibilities, self.seed, made_of_another)

    @property
    def retained_samples(self) -> RetainedSamples | None:
        """The own samples and what of them should remain; None where hardly any would."""
        retained = RetainedSamples(self.backbone, self.own_samples.x_0, self.responsibilities)
        return retained if len(retained) >= FEWEST_RETAINED else None

    def forget_score(self, until: float = 1.0) -> nn.Module:
        """The network fine-tuned on the forget images at ``t / T`` < ``until``; not kept."""
        self.begin(f"fitting the score of the forget images, {self.score_steps} steps")
        fit = partial(fit_forget_score, self.backbone, self.forget, self.seed, until=until, parts=self.parts)
        fit = partial(fit, steps=self.score_steps, precision=self.precision, lora_rank=self.lora_rank)
        return fit(gradient_checkpointing=self.gradient_checkpointing)

    @property
    def undesired_score(self) -> nn.Module:
        """A network whose output is the undesired content's: the teacher where one was given, else ε_f."""
        return self.forget_score() if self.given_teacher is None else self.given_teacher

    @property
    def retain(self) -> Clean:
        """D_r."""
        assert self.given_retain is not None
        return self.given_retain

    @property
    def posterior(self) -> Posterior:
        """p(θ|D)."""
        assert self.given_posterior is not None
        return self.given_posterior
