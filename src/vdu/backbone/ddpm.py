"""Unconditional pixel-space pipelines: `DDPMPipeline` and `DDIMPipeline` around a `UNet2DModel`. x_0 is the picture."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from vdu.backbone.contract import Backbone
from vdu.errors import VduError

__all__ = ["DDPMBackbone"]

LARGEST_ERROR = 0.03  # root mean square, of an ε that is still believed
PIXELS_AT_ONCE = 128 * 64 * 64  # some 5 GB in a network of 256×256 as DDPM's


class DDPMBackbone(Backbone):
    """``shape`` and ``latent_shape`` are the same; ``c`` is always None."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        size = self.network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.shape = self.latent_shape = (self.network.config.in_channels, height, width)
        self.largest_batch = max(1, min(self.largest_batch, PIXELS_AT_ONCE // (height * width)))

    @classmethod
    def check(cls, pipeline: Any) -> None:
        """Refuses other networks, class conditions, a size that is not known, and a predicted variance."""
        if not isinstance(pipeline.unet, UNet2DModel):
            raise VduError(f"network {type(pipeline.unet).__name__} is not supported: the pipeline needs a UNet2DModel")
        config = pipeline.unet.config
        if config.num_class_embeds or config.class_embed_type:
            raise VduError("a class-conditional UNet2DModel is not supported: give an unconditional one")
        if not config.sample_size:
            raise VduError("the UNet2DModel has no sample_size: set the size of its images in unet/config.json")
        if config.in_channels != config.out_channels:
            raise VduError("a UNet2DModel that predicts a variance too (out_channels ≠ in_channels) is not supported")
        if config.in_channels not in (1, 3):
            raise VduError(f"a model of {config.in_channels}-channel images is not supported: give one with 1 or 3")
        sides = [config.sample_size] if isinstance(config.sample_size, int) else list(config.sample_size)
        halvings = len(config.down_block_types) - 1
        if any(side % 2**halvings for side in sides):
            raise VduError(f"the UNet2DModel halves its images {halvings} times: its sample_size {sides} is too odd")

    def _output(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        return network(x_t, t).sample.float()

    def sampling_output(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """What the sampler follows: `output`, or where it is surely wrong that of the nearest picture to its x̂_0.

        A picture's root mean square is at most 1, so where x̂_0 has more, ε is off by (rms − 1) √(ᾱ / (1 − ᾱ)) or more.
        The solver clips nothing: at the end of a cosine schedule, or with a network that was trained for minutes, such
        an error leads it out of all that the network knows. The pipelines' own samplers clip.
        """
        output = self.output(network, x_t, t, c)
        if self.prediction_type != "epsilon":
            return output
        signal, noise = self._scales(t)
        x_0 = (x_t - noise * output) / signal
        rms = x_0.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        wrong = (rms - 1) * signal > LARGEST_ERROR * noise
        return torch.where(wrong, self.noise_from(x_t, x_0.clamp(-1, 1), t), output)

    def denoise(
        self, network: nn.Module, noise: Tensor, steps: int, generators: list[torch.Generator], c: Tensor | None = None
    ) -> Tensor:
        """As for every backbone; pictures in [-1, 1]."""
        return super().denoise(network, noise, steps, generators, c).clamp(-1, 1)

    def with_network(self, network: nn.Module) -> Any:
        return type(self.pipeline)(unet=self._clean(network), scheduler=self.pipeline.scheduler)
