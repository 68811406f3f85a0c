"""What the memory benchmark measures: a network of a known geometry with random weights, and one step of each kind.

    held = (4 [weights] + 4 [gradient] + 8 [Adam] + 4 [average]) T + activations

bytes for T trained parameters (Kingma & Ba, arXiv 1412.6980: two moments). The frozen original (4 P for P parameters)
and the posterior (2 P in bfloat16) are files, as those of a user's model in float32 are: they are mapped, so that what
has been read of them can be taken back by the system at any time. The geometry is that of Stable Diffusion 1.5
(Rombach et al., arXiv 2112.10752); cost does not depend on the weights' values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.denoising import Denoising
from vdu.diffusion.noised_bank import NoisedBank
from vdu.objective.bayes_target import BayesTarget
from vdu.objective.contract import MethodSettings, Objective
from vdu.objective.plasticity import Ascent
from vdu.objective.stability import WeightStability
from vdu.posterior import Posterior, load_posterior
from vdu.preparation.discriminator import Discriminator

__all__ = [
    "MODES",
    "SIZES",
    "Mode",
    "RandomBackbone",
    "make_objective",
    "make_settings",
    "random_network",
    "write_model",
]

SIZES: dict[str, dict[str, Any]] = {
    "sd15": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "tiny": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    },
}
TEXT_TOKENS = 77
PROGRAM = 5 * 10**8
ACTIVATIONS = 13 * 10**8  # of one image at the size of SD 1.5, with gradient checkpointing
VARIANCE = 1e-6
POSTERIOR = "posterior.safetensors"


@dataclass(frozen=True)
class Mode:
    """``step``: plain (fine-tuning), vdu (Bayes target) or proximal (ascent and the posterior's proximal step)."""

    step: str
    parameters: str = "*"
    precision: str = "fp32"
    ema_decay: float = 0.0

    @property
    def images(self) -> int:
        """Seen in one step: a forget image, and with vdu an own sample."""
        return 2 if self.step == "vdu" else 1

    def estimate(self, count: int, trained: int) -> int:
        """Bytes held: the formula above, and autocast's bfloat16 weights."""
        own, cast = 16 + (4 if self.ema_decay else 0), 2 if self.precision == "bf16" else 0
        return own * trained + cast * count + PROGRAM + ACTIVATIONS * self.images


MODES = {
    "plain": Mode("plain"),
    "vdu-lora": Mode("vdu", "lora", ema_decay=0.9),
    "vdu-cross-attention": Mode("vdu", "cross-attention", ema_decay=0.9),
    "proximal-cross-attention": Mode("proximal", "cross-attention"),
    "proximal": Mode("proximal"),
    "vdu-without-average": Mode("vdu"),
    "vdu": Mode("vdu", ema_decay=0.9),
    "vdu-lora-bf16": Mode("vdu", "lora", "bf16", ema_decay=0.9),
    "proximal-bf16": Mode("proximal", precision="bf16"),
    "plain-bf16": Mode("plain", precision="bf16"),
}


def random_network(size: str) -> UNet2DConditionModel:
    """A network of one of `SIZES`."""
    torch.manual_seed(0)
    return UNet2DConditionModel(**SIZES[size])


def write_model(size: str, folder: Path) -> Path:
    """The network and an isotropic posterior over it, as files in ``folder``, which it returns."""
    network = random_network(size)
    network.save_pretrained(folder)
    variance = {n: torch.full_like(p, VARIANCE, dtype=torch.bfloat16) for n, p in network.named_parameters()}
    Posterior(None, variance, "isotropic", 1, "", VARIANCE, 0.0).save(folder / POSTERIOR, torch.bfloat16)
    return folder


class RandomBackbone(Backbone):
    """A U-Net with random weights that is asked with one random text, and no other part of a pipeline."""

    def __init__(self, network: UNet2DConditionModel) -> None:
        super().__init__(SimpleNamespace(unet=network, scheduler=DDPMScheduler()))
        edge = network.config.sample_size
        self.shape = self.latent_shape = (network.config.in_channels, edge, edge)
        self.text = torch.randn(1, TEXT_TOKENS, network.config.cross_attention_dim)

    @classmethod
    def check(cls, pipeline: Any) -> None:
        """Nothing to refuse: it is made here."""

    def _output(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        return network(x_t, t, encoder_hidden_states=self.text.expand(len(x_t), -1, -1)).sample.float()

    def with_network(self, network: nn.Module) -> Any:
        return SimpleNamespace(unet=self._clean(network), scheduler=self.pipeline.scheduler)


def _bayes(backbone: Backbone) -> BayesTarget:
    """The regression on one noised image; nothing counts as undesired, so the target needs no pass of its own."""
    x_t, features = torch.randn(1, *backbone.latent_shape), torch.zeros(1, 8)
    head = Discriminator(features.shape[1]).eval().requires_grad_(False)
    list(head.parameters())[-1].data.fill_(-20.0)  # the bias of the logit
    output = torch.randn_like(x_t).half()
    bank = NoisedBank(1, 1, x_t, torch.tensor([500]), torch.tensor([0.5]), output, output, features, features)
    return BayesTarget(backbone, bank, head, None).guide(backbone.network)


def make_objective(mode: Mode, backbone: Backbone, network: nn.Module, folder: Path) -> Objective:
    """What the mode's step descends, with the posterior that is in ``folder``."""
    images = torch.randn(1, *backbone.latent_shape)
    if mode.step == "plain":
        return Objective(0.0, Denoising(backbone, images))
    if mode.step == "vdu":
        return Objective(0.6, _bayes(backbone), _bayes(backbone))
    posterior = load_posterior(folder / POSTERIOR)
    return Objective(0.5, Ascent(backbone, images), None, WeightStability(network, posterior, backbone.network))


def make_settings(mode: Mode, rounds: int) -> MethodSettings:
    """One image per term, nobody looks, and a rate that leaves the weights nearly as they are."""
    values = {"steps": rounds, "batch_size": 1, "learning_rate": 1e-6, "guard_every_steps": 0}
    own = {"parameters": mode.parameters, "ema_decay": mode.ema_decay, "gradient_checkpointing": True}
    return MethodSettings.model_validate(values | own)
