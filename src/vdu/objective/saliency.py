"""The saliency mask: only the parameters that the forget set's loss feels most may move.

    m_i = 1[ |∂/∂θ_i Σ_{x ~ D_f} ‖y − f_θ(x_t, t)‖²| ≥ τ ]      at θ*, one pass over D_f, signs kept in the sum

τ is the value that leaves the wanted share of all trained parameters, counted over all layers together. The mask
multiplies the gradient before clipping. Fan et al., arXiv 2310.12508.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.denoising import prediction_error
from vdu.diffusion.noising import Clean, noised
from vdu.seeding import generator
from vdu.weights.gradients import gradients, trained

__all__ = ["SaliencyMask", "forget_gradient"]

PASS_BATCH = 64
THRESHOLD_OF = 2**24


def forget_gradient(backbone: Backbone, network: nn.Module, forget: Clean | Tensor, seed: int) -> list[Tensor]:
    """∇ of the loss summed over ``forget``, one tensor for each trained parameter."""
    parameters = trained(network)
    total = [torch.zeros_like(p) for p in parameters]
    for index, batch in enumerate(Clean.of(forget).split(min(PASS_BATCH, backbone.largest_batch))):
        loss = prediction_error(backbone, network, noised(backbone, batch, generator(seed, "saliency", index))).sum()
        torch._foreach_add_(total, gradients(loss, parameters))
    return total


def _threshold(gradient: list[Tensor], share: float) -> Tensor:
    """τ; of a large network that of every so manieth gradient, which is as good and takes no copy of all."""
    every = math.ceil(sum(g.numel() for g in gradient) / THRESHOLD_OF)
    size = torch.cat([g.flatten()[::every].abs() for g in gradient])
    kept = max(1, round(share * len(size)))
    return size.kthvalue(len(size) - kept + 1).values


class SaliencyMask:
    """The ``share`` (0 … 1] of ``network``'s trained parameters with the largest absolute ``gradient``."""

    def __init__(self, network: nn.Module, gradient: list[Tensor], share: float) -> None:
        self.parameters = trained(network)
        threshold = _threshold(gradient, share)
        self.masks = [g.abs() >= threshold for g in gradient]

    def apply(self) -> None:
        """Set the gradients of all other parameters to zero, in place."""
        for parameter, mask in zip(self.parameters, self.masks, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
