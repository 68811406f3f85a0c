"""Samples of a text-to-image model asked with known prompts, and what a detector for each domain sees in them.

Sample i of (seed, prompts) is asked with prompt i mod P, from noise that depends on the seed and i only: two models
that are asked with as many prompts are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vdu.backbone import Backbone, placed
from vdu.concept_prompts import DOMAINS, ConceptPrompt
from vdu.detector.contract import Detector
from vdu.diffusion.sampling import SAMPLER, sample
from vdu.errors import VduError, nearest
from vdu.precision import resolve_precision
from vdu.prompts import DEFAULT_GUIDANCE_SCALE, Prompts

__all__ = ["ConceptJudge", "ConceptSampler", "Drawn"]


@dataclass(frozen=True)
class ConceptSampler:
    """How samples are made; the solver is `vdu.diffusion.sampling`'s."""

    per_prompt: int = 4
    steps: int = 25
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE
    seed: int = 1000
    precision: str = "auto"
    device: str = "cpu"

    def record(self) -> dict[str, Any]:
        """What a result file says of it, with the precision that ``auto`` stands for."""
        return {"name": SAMPLER} | asdict(self) | {"precision": resolve_precision(self.precision, self.device)}

    def draw(self, backbone: Backbone, texts: Sequence[str]) -> Tensor:
        """Pictures ``(per_prompt · P, C, H, W)`` in [-1, 1] on the CPU; sample i is asked with prompt i mod P."""
        usual, network = backbone.prompts, backbone.network
        backbone.sample_from(Prompts(neutral=tuple(texts), guidance_scale=self.guidance_scale))
        count = self.per_prompt * len(texts)
        try:
            with placed(network, self.device):
                x_0 = sample(backbone, network, count, self.seed, steps=self.steps, precision=self.precision)
                return backbone.decode(x_0)
        finally:
            if usual is not None:
                backbone.sample_from(usual)


@dataclass(frozen=True)
class Drawn:
    """Pictures of some prompts, in turn, and their class indices in each domain; features for distances."""

    prompts: tuple[ConceptPrompt, ...]
    pictures: Tensor
    seen: dict[str, Tensor]
    features: Tensor | None


@dataclass(frozen=True)
class ConceptJudge:
    """A detector for each domain. No class name may be in both."""

    detectors: dict[str, Detector]

    def domain(self, target: str) -> str:
        """The domain that has the class ``target``. Raises `VduError` with the nearest names for an unknown one."""
        for domain in DOMAINS:
            if target in self.detectors[domain].class_names:
                return domain
        known = [name for detector in self.detectors.values() for name in detector.class_names]
        raise VduError(f"no detector has a class {target!r}: {nearest(target, known)}")

    def asked(self, drawn: Drawn, domain: str) -> Tensor:
        """Class indices ``(N,)`` that the prompts of ``drawn`` name in ``domain``; −1: none."""
        names = self.detectors[domain].class_names
        of_prompt = [names.index(p.asks(domain)) if p.asks(domain) else -1 for p in drawn.prompts]
        return torch.tensor(of_prompt, dtype=torch.long).repeat(len(drawn.pictures) // len(drawn.prompts))

    def draw(
        self, backbone: Backbone, prompts: Sequence[ConceptPrompt], sampler: ConceptSampler, before: str = ""
    ) -> Drawn:
        """Sample and look; ``before``: words that are put before each prompt."""
        pictures = sampler.draw(backbone, [f"{before} {p.text}".strip() for p in prompts])
        found = {domain: detector(pictures) for domain, detector in self.detectors.items()}
        seen = {domain: detection.predicted for domain, detection in found.items()}
        return Drawn(tuple(prompts), pictures, seen, found["object"].features)
