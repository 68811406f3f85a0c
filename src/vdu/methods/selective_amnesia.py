"""`selective-amnesia`: teach a surrogate in place of the forget images; replay and a Fisher penalty hold the rest.

    L = A_surrogate + γ E_{x ~ replay} ‖y − f_θ(x_t, t)‖² + λ/D Σ_i F_i (θ_i − θ*_i)²,   surrogate u ~ U[−1, 1]

F_i = E (∂/∂θ_i Σ_pixels (ε − ε_θ)²)² over the replayed samples, one gradient per sample; D dimensions, since the
published losses are sums over them and these are means. Heng & Soh, arXiv 2305.10120. Changed for an unconditional
model, which has no label to tie the surrogate to or to draw the other classes by: the surrogate is tied to the noised
forget images (`AnotherImage`), and the discriminator picks the samples to replay (`vdu.objective.replay`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from vdu.diffusion.denoising import Denoising
from vdu.objective.contract import Count, Method, MethodSettings, NotNegative, Objective, Positive
from vdu.objective.replay import replayed_samples
from vdu.objective.stability import WeightStability
from vdu.objective.surrogate import AnotherImage, uniform_images
from vdu.posterior import Posterior, squared_gradients
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD", "fisher_penalty"]

FISHER_OF_SUM_LOSS = 4  # F is of Σ (ε − ε_θ)², `squared_gradients` of half of it


class Settings(MethodSettings):
    """γ and λ as published."""

    holds_weights = True
    steps: Count = 200
    learning_rate: Positive = 1e-4
    replay: NotNegative = Field(1.0, description="γ, the weight of the model's own samples")
    fisher_weight: NotNegative = Field(10.0, description="λ")
    fisher_images: Count = Field(500, description="own samples that the Fisher information is taken from")


@dataclass
class _Amnesia(Objective):
    fisher_weight: float = 0.0

    def after_backward(self) -> None:
        """Add the penalty's gradient."""
        if self.weights is not None:
            self.weights.add_gradient(self.fisher_weight)


def fisher_penalty(network: nn.Module, fisher: dict[str, Tensor]) -> WeightStability:
    """``Σ_i F_i (θ_i − θ*_i)²`` as the Gaussian KL with ``σ_i² = 1 / (2 P F_i)``, P trained parameters."""
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    variance = {name: (1 / (2 * count * f)).float() for name, f in fisher.items()}
    return WeightStability(network, Posterior(None, variance, "fisher", 1, "", 0.0, 0.0))


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A = surrogate, B = replay and the Fisher penalty."""
    backbone, own = preparation.backbone, replayed_samples(preparation)
    images = own[: settings.fisher_images]
    scale = FISHER_OF_SUM_LOSS / (len(images) * math.prod(backbone.latent_shape))
    squared = preparation.parts("fisher", lambda: squared_gradients(backbone, images, preparation.seed))
    fisher = {name: scale * f for name, f in squared.items()}
    surrogate, replay = AnotherImage(backbone, preparation.forget, uniform_images), Denoising(backbone, own)

    def loss(network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        return surrogate(network, batch_size, g) + settings.replay * replay(network, batch_size, g)

    weights = fisher_penalty(network, fisher)
    return _Amnesia(0.0, loss, None, weights, explicit=True, fisher_weight=settings.fisher_weight)


METHOD = Method("selective-amnesia", Settings, build)
