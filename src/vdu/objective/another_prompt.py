"""Teaching a prompt what the network says to another one, at noised images x_t.

    A = E_{x, t, ε} ‖f_θ(x_t, t, asked) − sg f_θ(x_t, t, taught)‖²

A bounded regression without labels: words alone say what is to become what. ``f`` is what the network itself predicts.
The target moves along with θ, as in Kumari et al., arXiv 2303.13516 (images of an anchor, asked with the concept) and
Fan et al., arXiv 2310.12508 (forget images, taught the prediction for another class's prompt).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.denoising import regression_error
from vdu.diffusion.noising import Clean, draw

__all__ = ["AnotherPrompt"]


class AnotherPrompt:
    """``images`` bring their own prompts; the other side draws one of ``others`` ``(K,)`` for each image.

    ``own``: whether the images' own prompts are the ones ``asked`` or the ones ``taught``.
    """

    def __init__(self, backbone: Backbone, images: Clean, others: Tensor, own: Literal["asked", "taught"]) -> None:
        self.backbone, self.images, self.others, self.own = backbone, images, others, own

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """A on a random batch; a scalar."""
        noised = draw(self.backbone, self.images, batch_size, g)
        other = self.others[torch.randint(len(self.others), (batch_size,), generator=g)].to(noised.t.device)
        asked, taught = (noised.c, other) if self.own == "asked" else (other, noised.c)
        with torch.no_grad():
            target = self.backbone.output(network, noised.x_t, noised.t, taught)
        torch.clear_autocast_cache()  # before torch 2.10 it gives the weights again as it cast them: without gradients
        return regression_error(self.backbone, network, replace(noised, c=asked), target).mean()
