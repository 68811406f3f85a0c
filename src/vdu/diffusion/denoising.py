"""The loss of diffusion training on a set of images: what fine-tuning, a retain loss and replay have in common.

    L = E_{x ~ images, t, ε} ‖y − f_θ(x_t, t)‖²      mean over batch and dimensions

``f`` is what the network itself predicts (ε, v or x_0), ``y`` its regression target. Ho et al., arXiv 2006.11239.
With another target than ``y`` the same error is a regression on what another network says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.noising import Clean, Noised, draw

__all__ = ["Denoising", "prediction_error", "regression_error"]


def regression_error(backbone: Backbone, network: nn.Module, noised: Noised, target: Tensor) -> Tensor:
    """‖f_θ(x_t, t, c) − target‖² of each image, mean over dimensions, shape ``(B,)``."""
    return (backbone.output(network, noised.x_t, noised.t, noised.c) - target).pow(2).mean(dim=(1, 2, 3))


def prediction_error(backbone: Backbone, network: nn.Module, noised: Noised) -> Tensor:
    """The same with the target ``y``."""
    return regression_error(backbone, network, noised, backbone.from_eps(noised.eps, noised.x_t, noised.t))


class Denoising:
    """The training loss on ``images``: D_r (retain loss), or own samples (replay); at ``t / T`` < ``until``."""

    def __init__(self, backbone: Backbone, images: Clean | Tensor, until: float = 1.0) -> None:
        self.backbone, self.images, self.until = backbone, images, until

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """The loss on a random batch; a scalar."""
        batch = draw(self.backbone, self.images, batch_size, g, self.until)
        return prediction_error(self.backbone, network, batch).mean()
