"""What should remain, as a score that needs no network: that of the model's own samples without the undesired ones.

    p_r(x_0) ∝ Σ_i w_i δ(x_0 − x_i),   w_i = 1 − c_i where c_i < ½, else 0
    x̂_0(x_t) = Σ_i v_i x_i,   v_i ∝ w_i exp(−‖x_t − √ᾱ x_i‖² / 2(1 − ᾱ)),   ε = (x_t − √ᾱ x̂_0) / √(1 − ᾱ)

The optimal denoiser of finitely many images (Karras et al., arXiv 2206.00364, appendix B.3); here they are what the
model draws itself, so nobody needs to give images to keep, as for ReTrack's related target (`vdu.methods.retrack`). It
is coarse, since it knows no other image, but it leads out of where x_t shows the undesired plainly: there ``f_*`` is
what ``f_f`` is, and no multiple of their difference (`vdu.bayes_target`) does. A sample with c ≥ ½ has no weight at
all, since without noise the nearest takes everything, however little it weighs. For models without text: it knows
nothing of a prompt.
"""

from __future__ import annotations

from torch import Tensor

from vdu.backbone import Backbone

__all__ = ["RetainedSamples"]


class RetainedSamples:
    """``own_samples`` ``(M, *latent_shape)`` of which ``c`` ``(M,)`` says how far each is undesired."""

    def __init__(self, backbone: Backbone, own_samples: Tensor, c: Tensor) -> None:
        self.backbone, kept = backbone, c.cpu() < 0.5
        self.x_0 = own_samples.cpu()[kept].double()
        self.squared_norm = self.x_0.flatten(1).square().sum(1)
        self.log_weight = (1 - c.cpu()[kept].double()).log()

    def __len__(self) -> int:
        return len(self.x_0)

    def x_0_hat(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The expected image ``(B, *latent_shape)``, float64, given ``x_t`` at times ``t`` ``(B,)``."""
        alpha_bar = self.backbone.alpha_bar.double()[t.cpu()].unsqueeze(1)
        images = self.x_0.flatten(1)
        # ‖x_t‖² is the same for all; without a division by ᾱ, which a schedule may end at 0
        near = alpha_bar.sqrt() * (x_t.cpu().double().flatten(1) @ images.T) - alpha_bar / 2 * self.squared_norm
        weight = (near / (1 - alpha_bar) + self.log_weight).softmax(1)
        return (weight @ images).view(-1, *self.x_0.shape[1:])

    def output(self, x_t: Tensor, t: Tensor) -> Tensor:
        """That score as what the network would predict (ε, v or x_0), on ``x_t``'s device."""
        eps = self.backbone.noise_from(x_t, self.x_0_hat(x_t, t).to(x_t), t)
        return self.backbone.from_eps(eps, x_t, t)
