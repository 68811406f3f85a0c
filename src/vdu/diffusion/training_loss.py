"""The loss of training from nothing, for a network that predicts y = ε, v or x_0.

    L = E_{x, t, ε} [ w_t ‖y − f_θ(√ᾱ_t x + √(1 − ᾱ_t) ε, t)‖² ],   v = √ᾱ ε − √(1 − ᾱ) x,   SNR = ᾱ / (1 − ᾱ)

    y = ε: w = min(SNR, γ) / SNR      y = v: w = min(SNR, γ) / (SNR + 1)      y = x_0: w = min(SNR, γ)

Ho et al., arXiv 2006.11239; v: Salimans & Ho, arXiv 2202.00512; the weight is min-SNR (Hang et al., arXiv 2303.09556),
the same loss in x_0 for all three.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from vdu.diffusion.stratified_times import stratified_shares, times_at

__all__ = ["min_snr_weight", "training_loss"]


def min_snr_weight(alpha_bar: Tensor, gamma: float, prediction_type: str = "epsilon") -> Tensor:
    """``w`` for a network of that ``prediction_type``; same shape as ``alpha_bar``, 0 where that is 0."""
    snr = alpha_bar / (1 - alpha_bar)
    capped = snr.clamp(max=gamma)
    if prediction_type == "sample":
        return capped
    weight = capped / snr.clamp(min=torch.finfo(snr.dtype).tiny)
    return weight * alpha_bar if prediction_type == "v_prediction" else weight  # SNR / (SNR + 1) = ᾱ


def _regressed(scheduler: DDPMScheduler, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """``y`` of the scheduler's prediction type."""
    if scheduler.config.prediction_type == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(x, eps, t)
        return velocity
    return x if scheduler.config.prediction_type == "sample" else eps


def training_loss(
    predict: Callable[[Tensor, Tensor], Tensor], scheduler: DDPMScheduler, x: Tensor, gamma: float, g: torch.Generator
) -> Tensor:
    """A scalar for clean ``x`` ``(B, C, H, W)``, each at a time of its own; ``predict(x_t, t)`` is the network."""
    t = times_at(stratified_shares(len(x), g), scheduler.config.num_train_timesteps)
    eps = torch.randn(x.shape, generator=g)
    error = predict(scheduler.add_noise(x, eps, t), t).float() - _regressed(scheduler, x, eps, t)
    weight = min_snr_weight(scheduler.alphas_cumprod[t], gamma, scheduler.config.prediction_type)
    return (weight * error.pow(2).mean(dim=(1, 2, 3))).mean()
