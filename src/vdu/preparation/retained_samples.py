"""What the model's own samples say of a noised picture, without a network: the undesired part, and what should remain.

Of own samples x_i, c_i says how far each is undesired (`vdu.preparation.responsibility`). Where they are all there is,

    v_i(x_t) ∝ exp(−‖x_t − √ᾱ x_i‖² / 2(1 − ᾱ)),   x̂_0(x_t) = Σ_i v_i x_i,   ε = (x_t − √ᾱ x̂_0) / √(1 − ᾱ)

is the optimal denoiser of finitely many images (Karras et al., arXiv 2206.00364, appendix B.3). The model draws them
itself, so nobody needs to give images to keep, as for ReTrack's related target (`vdu.methods.retrack`). Two things of
that are better than what networks say:

*Where noise leaves many of them possible* (1/Σ v_i², Kish's effective number), the undesired share ``ρ = Σ v_i c_i``
and the way from all to those that should remain, with ``x̂_r = Σ v_i (1 − c_i) x_i / (1 − ρ)``,

    x̂_r − x̂_0 = ρ/(1 − ρ) (x̂_0 − x̂_f)

There heads see little in a picture, and a network that was fitted on a few images briefly knows less of them than the
original.

*Where x_t shows the undesired plainly*, what remains: ``v_i ∝ (1 − c_i) exp(…)`` for c_i < ½, else 0. It is coarse,
since it knows no other image, but it leads out: there ``f_*`` is what ``f_f`` is, and no multiple of their difference
(`vdu.objective.bayes_target`) does. A sample with c ≥ ½ has no weight at all, since without noise the nearest takes
everything, however little it weighs.

For models without text: it knows nothing of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdu.backbone import Backbone

__all__ = ["RetainedSamples"]

SMALLEST = 1e-12


class RetainedSamples:
    """``own_samples`` ``(M, *latent_shape)`` of which ``c`` ``(M,)`` says how far each is undesired."""

    def __init__(self, backbone: Backbone, own_samples: Tensor, c: Tensor) -> None:
        self.backbone, self.c = backbone, c.cpu().double()
        self.x_0 = own_samples.cpu().double()
        self.squared_norm = self.x_0.flatten(1).square().sum(1)
        self.log_remaining = (1 - self.c).clamp(min=SMALLEST).log()
        self.log_weight = torch.where(self.c < 0.5, self.log_remaining, -torch.inf)

    def __len__(self) -> int:
        """How many remain."""
        return int((self.c < 0.5).sum())

    def _log_likelihoods(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Of each sample ``(B, M)``, up to ‖x_t‖², which is the same for all."""
        alpha_bar = self.backbone.alpha_bar.double()[t.cpu()].unsqueeze(1)
        # without a division by ᾱ, which may be next to 0
        near = alpha_bar.sqrt() * (x_t.cpu().double().flatten(1) @ self.x_0.flatten(1).T)
        return (near - alpha_bar / 2 * self.squared_norm) / (1 - alpha_bar)

    def _mean(self, weight: Tensor) -> Tensor:
        return (weight @ self.x_0.flatten(1)).view(-1, *self.x_0.shape[1:])

    def _output(self, x_t: Tensor, t: Tensor, x_0_hat: Tensor) -> Tensor:
        return self.backbone.from_eps(self.backbone.noise_from(x_t, x_0_hat.to(x_t), t), x_t, t)

    def x_0_hat(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The image ``(B, *latent_shape)``, float64, that remains to be expected of ``x_t`` at times ``t`` ``(B,)``."""
        return self._mean((self._log_likelihoods(x_t, t) + self.log_weight).softmax(1))

    def output(self, x_t: Tensor, t: Tensor) -> Tensor:
        """That score as what the network would predict (ε, v or x_0), on ``x_t``'s device."""
        return self._output(x_t, t, self.x_0_hat(x_t, t))

    def guidance(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How many samples are possible ``(B,)``, from 1 to M; ρ ``(B,)``; what that adds to the network's output."""
        log_likelihoods = self._log_likelihoods(x_t, t)
        v, remaining = log_likelihoods.softmax(1), (log_likelihoods + self.log_remaining).softmax(1)
        # an output is affine in x_t and x_0: the difference of two at one x_t is that of the difference at x_t = 0
        way = self._output(torch.zeros_like(x_t), t, self._mean(remaining - v))
        return (1 / v.square().sum(1)).to(x_t), (v @ self.c).to(x_t), way
