"""Plasticity inducer A: what lowers the likelihood of D_f. Errors are means over batch and dimensions.

    ascent   A = −E_{x ~ D_f, t, ε} [ w_t ‖y − f_θ(x_t, t)‖² ]           w_t = 1 (simple) or the ELBO's weights
    capped   A = −E [ min(‖y − f_θ(x_t, t)‖², c) ]                        no gradient once an image's error reaches c
    guided   A =  E ‖f_θ − [f_* + η (f_* − f_f)](x_t, t)‖²                bounded, with a fixed point

``f`` is what the network itself predicts (ε, v or x_0) and ``y`` its regression target; all three are affine in ε for
a given ``x_t``, so combinations with coefficients that sum to one mean the same in each. The ELBO's weights are of the
error in ε, ``‖ε − ε_θ‖²``, whatever the network predicts. ``f_*`` is the frozen original, ``f_f`` the score of the
forget set. Panda et al., arXiv 2510.04058 (ascent); the guided form has ESD's fixed
point (Gandikota et al., arXiv 2303.07345) with a score in place of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.denoising import prediction_error, regression_error
from vdu.diffusion.noising import Clean, draw

__all__ = ["Ascent", "Guided", "Term", "elbo_weight"]

Term = Callable[[nn.Module, int, torch.Generator], Tensor]


def elbo_weight(alpha_bar: Tensor) -> Tensor:
    """``β_t² / (2 σ_t² α_t (1 − ᾱ_t))`` with ``σ_t² = β_t``, scaled to mean 1; shape ``(T,)``.

    At most 1 before: at the end of a cosine schedule α is next to 0, and one time would have nearly all the weight.
    """
    alpha = alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
    weight = ((1 - alpha) / (2 * alpha * (1 - alpha_bar))).clamp(max=1.0)
    return weight / weight.mean()


class Ascent:
    """Raise the prediction error on the forget images; with ``cap``, no further than ``cap`` per image."""

    def __init__(
        self, backbone: Backbone, forget: Clean | Tensor, weighting: str = "simple", cap: float = float("inf")
    ) -> None:
        self.backbone, self.forget, self.cap = backbone, forget, cap
        self.weight = elbo_weight(backbone.alpha_bar) if weighting == "elbo" else None

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """A on a random batch; a scalar."""
        noised = draw(self.backbone, self.forget, batch_size, g)
        if self.weight is None:
            return -prediction_error(self.backbone, network, noised).clamp(max=self.cap).mean()
        predicted = self.backbone.predict_eps(network, noised.x_t, noised.t, noised.c)
        error = (predicted - noised.eps).pow(2).mean(dim=(1, 2, 3)).clamp(max=self.cap)
        return -(self.weight.to(noised.t.device)[noised.t] * error).mean()


class Guided:
    """Regress on the original's output moved away from the forget score by a constant ``eta``."""

    def __init__(self, backbone: Backbone, forget: Clean | Tensor, forget_score: nn.Module, eta: float) -> None:
        self.backbone, self.forget, self.forget_score, self.eta = backbone, forget, forget_score, eta

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """A on a random batch; a scalar."""
        noised = draw(self.backbone, self.forget, batch_size, g)
        with torch.no_grad():
            original = self.backbone.output(self.backbone.network, noised.x_t, noised.t, noised.c)
            undesired = self.backbone.output(self.forget_score, noised.x_t, noised.t, noised.c)
        target = original + self.eta * (original - undesired)
        return regression_error(self.backbone, network, noised, target).mean()
