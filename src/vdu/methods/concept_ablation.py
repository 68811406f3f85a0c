"""`concept-ablation`: asked with the concept, the network learns to say what it says to a neutral prompt.

    L = E_{x ~ p_*(x | c), t, ε} ‖f_θ(x_t, t, c*) − sg f_θ(x_t, t, c)‖²

Kumari et al., arXiv 2303.13516, the model-based form. ``c*`` is the concept prompt; the anchor ``c`` is a prompt that
was chosen for it, as published, or else the neutral prompts that do not name it, in turn. The anchor images are made
once by the original. From words alone: only the guard, where it is wanted, looks at the forget images.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from vdu.objective.another_prompt import AnotherPrompt
from vdu.objective.contract import Count, Method, MethodSettings, Objective, Positive
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """Steps, batch and learning rate as published for Stable Diffusion; a small network needs a larger rate."""

    needs = ("forget", "prompt")
    steps: Count = 100
    batch_size: Count = 8
    learning_rate: Positive = 2e-6
    guard_every_steps: int = Field(0, ge=0)
    parameters: str = "cross-attention"
    anchor: str | None = Field(None, description="prompt of a broader concept; none: the neutral prompts")
    anchor_images: Count = Field(256, description="images that the original makes with anchor prompts; published: 1000")


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A = another prompt, γ = 0."""
    concepts = preparation.numbers_of(preparation.concepts)
    anchors = preparation.kept_prompts if settings.anchor is None else (settings.anchor,)
    images = preparation.samples_of(anchors, settings.anchor_images)
    return Objective(0.0, AnotherPrompt(preparation.backbone, images, concepts, own="taught"))


METHOD = Method("concept-ablation", Settings, build)
