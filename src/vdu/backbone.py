"""The only file that knows diffusers' pipeline classes: what is noised, how, what the network predicts, how it samples.

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε

The rest of the library speaks ε. A network that predicts v or x_0 is converted both ways:

    v   = √ᾱ ε − √(1 − ᾱ) x_0     ε = √ᾱ v + √(1 − ᾱ) x_t           (Salimans & Ho, arXiv 2202.00512)
    x_0 = (x_t − √(1 − ᾱ) ε) / √ᾱ  ε = (x_t − √ᾱ x_0) / √(1 − ᾱ)
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from torch import Tensor, nn

from vdu.errors import VduError, nearest

__all__ = ["Backbone", "load_backbone", "weights_sha256"]

SOLVER = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "timestep_spacing": "trailing"}
SUPPORTED = {"DDPMPipeline": DDPMPipeline, "DDIMPipeline": DDIMPipeline}


def weights_sha256(network: nn.Module) -> str:
    """Hash of all named weights; the identity of a model in posteriors and results."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _contiguous_where_frozen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """torch 2.13 crashes in GroupNorm's CPU backward on channels-last inputs that need no gradient."""
    return tuple(x if x.requires_grad else x.contiguous() for x in inputs)


class Backbone:
    """An unconditional pixel-space diffusion pipeline (`UNet2DModel`).

    Attributes: ``network`` (frozen original), ``shape`` ``(C, H, W)``, ``alpha_bar`` ``(T,)``, ``prediction_type``.
    """

    def __init__(self, pipeline: DDPMPipeline | DDIMPipeline) -> None:
        self.pipeline = pipeline
        unet = pipeline.unet if pipeline.unet.dtype == torch.float32 else copy.deepcopy(pipeline.unet).float()
        self.network: UNet2DModel = unet.eval().requires_grad_(False)
        size = self.network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.shape: tuple[int, int, int] = (self.network.config.in_channels, height, width)
        schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction_type: str = schedule.config.prediction_type
        self.alpha_bar: Tensor = schedule.alphas_cumprod
        self.timesteps: int = len(self.alpha_bar)

    @property
    def size_bytes(self) -> int:
        """Of the network's weights in memory."""
        return sum(p.numel() * p.element_size() for p in self.network.parameters())

    def trainable_copy(self) -> nn.Module:
        """A copy of the network in training mode, all parameters requiring gradients."""
        network = copy.deepcopy(self.network).train().requires_grad_(True)
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_contiguous_where_frozen)
        return network

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alpha_bar.to(t.device)[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """``x_t`` of shape ``(B, C, H, W)`` for clean images, noise and integer times ``(B,)``."""
        signal, noise = self._scales(t)
        return signal * x_0 + noise * eps

    def noise_from(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """The ε that leads from ``x_0`` to ``x_t``: the inverse of `add_noise`."""
        signal, noise = self._scales(t)
        return (x_t - signal * x_0) / noise

    def output(self, network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network itself predicts (ε, v or x_0), shape ``(B, C, H, W)``, float32."""
        return network(x_t, t).sample.float()

    def to_eps(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's own prediction expressed as ε."""
        signal, noise = self._scales(t)
        if self.prediction_type == "v_prediction":
            return signal * output + noise * x_t
        return (x_t - signal * output) / noise if self.prediction_type == "sample" else output

    def from_eps(self, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """An ε expressed as what the network would have to predict: the inverse of `to_eps`."""
        signal, noise = self._scales(t)
        if self.prediction_type == "v_prediction":
            return (eps - noise * x_t) / signal
        return (x_t - noise * eps) / signal if self.prediction_type == "sample" else eps

    def predict_eps(self, network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
        """ε_θ(x_t, t), shape ``(B, C, H, W)``."""
        return self.to_eps(self.output(network, x_t, t), x_t, t)

    def original_with_features(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen network's output ``(B, C, H, W)`` and what it knows of ``x_t``, in one pass, no gradients.

        Features ``(B, D)`` are its inner blocks' outputs, pooled to at most 2×2. A diffusion U-Net's inner layers
        separate classes (Baranchuk et al., arXiv 2112.03126), so a discriminator on them generalises from few images.
        """
        taken: list[Tensor] = []

        def take(_: nn.Module, __: Any, out: Tensor | tuple[Tensor, ...]) -> None:
            tensor = (out[0] if isinstance(out, tuple) else out).float()
            taken.append(nn.functional.adaptive_avg_pool2d(tensor, 2).flatten(1))

        blocks = [*self.network.down_blocks[1:], self.network.mid_block, *self.network.up_blocks[:-1]]
        handles = [block.register_forward_hook(take) for block in blocks if block is not None]
        try:
            with torch.no_grad():
                output = self.output(self.network, x_t, t)
        finally:
            for handle in handles:
                handle.remove()
        return output, torch.cat(taken, dim=1)

    def denoise(self, network: nn.Module, noise: Tensor, steps: int, generators: list[torch.Generator]) -> Tensor:
        """From ``noise`` ``(B, C, H, W)`` to images in [-1, 1] in ``steps`` network evaluations.

        SDE-DPM-Solver++(2M) (Lu et al., arXiv 2211.01095): in so few steps its noise mends what the deterministic
        solvers leave broken. Each image's noise comes from its own one of the ``generators``.
        """
        scheduler = DPMSolverMultistepScheduler.from_config(self.pipeline.scheduler.config, **SOLVER)
        scheduler.set_timesteps(steps, device=noise.device)
        x_t = noise
        for t in scheduler.timesteps:
            output = self.output(network, x_t, t.expand(len(x_t)).to(noise.device))
            x_t = scheduler.step(output, t, x_t, generator=generators).prev_sample
        return x_t.clamp(-1, 1)

    def with_network(self, network: nn.Module) -> DDPMPipeline | DDIMPipeline:
        """The same pipeline around other weights: what the user gets back."""
        clean = copy.deepcopy(self.network).to("cpu")
        clean.load_state_dict(network.state_dict())
        return type(self.pipeline)(unet=clean, scheduler=self.pipeline.scheduler)


def _read_pipeline(path: str) -> Any:
    folder = Path(path)
    loader: Callable[..., Any] = DDPMPipeline.from_pretrained
    if folder.exists():
        index = folder / "model_index.json"
        if not index.is_file():
            raise VduError(f"{path} has no model_index.json: give a folder that diffusers' save_pretrained wrote")
        try:
            name = json.loads(index.read_text()).get("_class_name", "")
        except (ValueError, AttributeError) as error:
            raise VduError(f"{index} is not valid JSON: write the pipeline again with save_pretrained") from error
        if name not in SUPPORTED:
            raise VduError(f"pipeline class {name!r} is not supported: {nearest(str(name), SUPPORTED)}")
        loader = SUPPORTED[name].from_pretrained
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise VduError(f"no folder {path}: give a diffusers pipeline folder, a zoo name, or a hub id")
    try:
        return loader(path, use_safetensors=True)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise VduError(f"cannot load {path} as a diffusers pipeline ({said}): safetensors weights only") from error


def load_backbone(model: Any) -> Backbone:
    """A `Backbone` from a diffusers pipeline object, a pipeline folder, or a hub id.

    Raises `VduError` for a pipeline class, network, prediction type or noise schedule that is not supported.
    """
    pipeline = _read_pipeline(str(model)) if isinstance(model, (str, Path)) else model
    name = type(pipeline).__name__
    if name not in SUPPORTED:
        raise VduError(f"pipeline class {name!r} is not supported: {nearest(name, SUPPORTED)}")
    if not isinstance(pipeline.unet, UNet2DModel):
        raise VduError(f"network {type(pipeline.unet).__name__} is not supported: the pipeline needs a UNet2DModel")
    if pipeline.unet.config.num_class_embeds:
        raise VduError("a class-conditional UNet2DModel is not supported: give an unconditional one")
    known = ("epsilon", "v_prediction", "sample")
    if pipeline.scheduler.config.prediction_type not in known:
        raise VduError(f"prediction type {pipeline.scheduler.config.prediction_type!r}: {nearest('', known)}")
    config = pipeline.unet.config
    if not config.sample_size:
        raise VduError("the UNet2DModel has no sample_size: set the size of its images in unet/config.json")
    if config.in_channels != config.out_channels:
        raise VduError("a UNet2DModel that predicts a variance too (out_channels ≠ in_channels) is not supported")
    try:
        DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **SOLVER)
    except NotImplementedError as error:
        raise VduError(f"noise schedule {pipeline.scheduler.config.beta_schedule!r} is not supported") from error
    return Backbone(pipeline)
