"""What an architecture gives the rest of the library: what is noised, how, what the network predicts, how it samples.

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε

``x_0`` lives in the diffusion space: pixels, or a VAE's latents (`encode`, `decode`). ``c`` is what the network is
conditioned on: numbers ``(B,)`` of prompts that the backbone knows (`condition`); None is the empty prompt, and all
that an unconditional model has. The rest of the library speaks ε. A network that predicts v or x_0 is converted:

    v   = √ᾱ ε − √(1 − ᾱ) x_0     ε = √ᾱ v + √(1 − ᾱ) x_t           (Salimans & Ho, arXiv 2202.00512)
    x_0 = (x_t − √(1 − ᾱ) ε) / √ᾱ  ε = (x_t − √ᾱ x_0) / √(1 − ᾱ)
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from vdu.backbone.features import features_taken
from vdu.backbone.low_rank import merged_state
from vdu.backbone.rounding import rounded
from vdu.errors import VduError, with_kind
from vdu.hashing import tensors_sha256
from vdu.prompts import Prompts
from vdu.seeding import generator

__all__ = ["SOLVER", "Backbone", "float32_copy", "placed", "weights_sha256"]

SOLVER = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "timestep_spacing": "trailing"}
ZERO_ALPHA_BAR = 2.0**-24  # stands for a zero terminal ᾱ, at which v and x_0 say nothing of each other
SMALLEST_ALPHA_BAR = 2.0**-30  # below it, v and x_0 of an ε are float32's rounding and no more
LARGEST_ALPHA_BAR = 1 - 2.0**-24  # stands for 1, of a first β of 0, at which ε has no part in x_t


def weights_sha256(network: nn.Module) -> str:
    """Hash of all named weights; the identity of a model in posteriors and results."""
    return tensors_sha256(network.state_dict())


@contextmanager
def placed(module: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Have ``module`` on ``device`` inside the block and where it was after it."""
    home = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


def float32_copy(module: nn.Module) -> Any:
    """``module`` frozen, in float32, apart from the user's own: its mode, flags, device and precision stay.

    Where that is in float32 already, both share their weights' memory until one of them is moved.
    """
    shared: dict[int, Any] = {id(b): b for b in module.buffers()}
    shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, shared).float().eval().requires_grad_(False)


def _contiguous_where_frozen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """torch 2.13 crashes in GroupNorm's CPU backward on channels-last inputs that need no gradient."""
    return tuple(x if x.requires_grad else x.contiguous() for x in inputs)


class Backbone(ABC):
    """A diffusion pipeline, seen as a network on ``x_t``.

    Attributes: ``network`` (frozen original), ``shape`` of its pictures ``(C, H, W)``, ``latent_shape`` of ``x_0``,
    ``alpha_bar`` ``(T,)``, ``prediction_type``, ``prompts`` (None: it takes no text), ``largest_batch`` (the most that
    is put through the network at once where the batch does not matter), ``largest_features`` (whether features hold the
    largest values of inner maps beside their means), ``passes`` (what any network was asked through it, in passes of
    one image; a backward pass is two).
    """

    passes: int = 0

    largest_batch: int = 256
    largest_features: bool = False
    shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    prompts: Prompts | None = None

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.network: Any = float32_copy(pipeline.unet)
        schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction_type: str = schedule.config.prediction_type
        alpha_bar: Tensor = schedule.alphas_cumprod
        last = min(ZERO_ALPHA_BAR, float(alpha_bar[alpha_bar > 0].min()) / 2)
        self.alpha_bar = alpha_bar.masked_fill(alpha_bar == 0, last).clamp(SMALLEST_ALPHA_BAR, LARGEST_ALPHA_BAR)
        self.timesteps: int = len(self.alpha_bar)

    @classmethod
    @abstractmethod
    def check(cls, pipeline: Any) -> None:
        """Raises `VduError` for a pipeline of the right class whose parts this architecture cannot work with."""

    @property
    def beside_sha256(self) -> list[str]:
        """Hashes of what stands beside the network: what its output means at each time, and how it is sampled."""
        meaning = hashlib.sha256(self.prediction_type.encode())
        meaning.update(self.alpha_bar.numpy().tobytes())
        scheduler = self.pipeline.scheduler
        # What begins with _ is diffusers' own account of the file, in an order that differs by process.
        config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        sampled = json.dumps([type(scheduler).__name__, config], sort_keys=True, default=str)
        return [meaning.hexdigest(), hashlib.sha256(sampled.encode()).hexdigest()]

    @property
    def size_bytes(self) -> int:
        """Of the network's weights in memory."""
        return sum(p.numel() * p.element_size() for p in self.network.parameters())

    @property
    def device(self) -> torch.device:
        """Where the frozen network is."""
        return next(self.network.parameters()).device

    def trainable_copy(self, gradient_checkpointing: bool = False, trained: Collection[str] | None = None) -> nn.Module:
        """A copy of the network in training mode whose ``trained`` parameters (None: all) require gradients.

        The others stay frozen and are the original's own, not copied. Nothing is dropped out: a step depends on its own
        draws alone. With ``gradient_checkpointing`` activations are computed again in the backward pass: less memory,
        more time.
        """
        own = {n for n, _ in self.network.named_parameters()} if trained is None else set(trained)
        shared = {id(p): p for n, p in self.network.named_parameters() if n not in own}
        network = copy.deepcopy(self.network, shared).train()
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in own)
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_contiguous_where_frozen)
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # whatever mode the network is put into later
        return network

    def encode(self, images: Tensor) -> Tensor:
        """``x_0`` ``(N, *latent_shape)`` on the CPU of pictures ``(N, C, H, W)`` in [-1, 1]."""
        return images

    def decode(self, x_0: Tensor) -> Tensor:
        """Pictures ``(N, C, H, W)`` in [-1, 1] on the CPU of ``x_0``."""
        return x_0

    def condition(self, texts: Sequence[str]) -> Tensor | None:
        """``c`` ``(N,)`` for ``texts``; None for a model that takes no text. Raises `VduError` for unknown words."""
        return None

    def sample_from(self, prompts: Prompts) -> None:
        """Ask samples with ``prompts`` from here on. Raises `VduError` for prompts that the model cannot take."""
        raise VduError(f"a {type(self.pipeline).__name__} takes no prompts: leave the prompt options out")

    def sample_conditions(self, count: int, first: int = 0) -> Tensor | None:
        """``c`` ``(count,)`` of the samples ``first … first + count − 1``: their prompts depend on the number only."""
        if self.prompts is None:
            return None
        return self.condition([self.prompts.of_sample(first + i) for i in range(count)])

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alpha_bar.to(t.device)[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """``x_t`` of shape ``(B, *latent_shape)`` for ``x_0``, noise and integer times ``(B,)``."""
        signal, noise = self._scales(t)
        return signal * x_0 + noise * eps

    def noise_from(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """The ε that leads from ``x_0`` to ``x_t``: the inverse of `add_noise`."""
        signal, noise = self._scales(t)
        return (x_t - signal * x_0) / noise

    @abstractmethod
    def _output(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        """What `output` returns, float32."""

    def output(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """What the network itself predicts (ε, v or x_0), of ``x_t``'s shape, float32. Counted in ``passes``."""
        output = self._output(network, x_t, t, c)
        self.passes += len(x_t) * (3 if output.requires_grad else 1)
        return output

    def sampling_output(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """What the sampler follows: `output`, guided where the architecture samples with guidance."""
        return self.output(network, x_t, t, c)

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

    def predict_eps(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """ε_θ(x_t, t, c), of ``x_t``'s shape."""
        return self.to_eps(self.output(network, x_t, t, c), x_t, t)

    def original_with_features(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The frozen network's output and what it knows of ``x_t`` (and the prompt), in one pass, no gradients.

        Features ``(B, D)`` are those of `vdu.backbone.features`.
        """
        with features_taken(self.network, largest=self.largest_features) as taken, torch.no_grad():
            output = self.output(self.network, x_t, t, c)
        return output, torch.cat(taken, dim=1)

    def original_features(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """The features ``(B, D)`` alone, in less time; counted as a whole pass."""
        with features_taken(self.network, alone=True, largest=self.largest_features) as taken, torch.no_grad():
            self._output(self.network, x_t, t, c)
        self.passes += len(x_t)
        return torch.cat(taken, dim=1)

    def probe(self) -> None:
        """Raises `VduError` where the network does not work, or gives no numbers, at its first or last time."""
        x_t = torch.linspace(-1, 1, 2 * math.prod(self.latent_shape), device=self.device).view(2, *self.latent_shape)
        asked = self.passes
        try:
            output, _ = self.original_with_features(x_t, torch.tensor([0, self.timesteps - 1], device=self.device))
        except Exception as error:  # a network may be put together in any way
            said = with_kind(error)
            raise VduError(f"the network cannot be asked about a picture of its size ({said}): give another") from error
        self.passes = asked
        for t, x in zip((0, self.timesteps - 1), output, strict=True):
            if not x.isfinite().all():
                raise VduError(f"the network's output at time {t} is not finite: give a model that works")

    def denoise(
        self, network: nn.Module, noise: Tensor, steps: int, generators: list[torch.Generator], c: Tensor | None = None
    ) -> Tensor:
        """From ``noise`` ``(B, *latent_shape)`` to ``x_0`` in ``steps`` solver steps.

        SDE-DPM-Solver++(2M) (Lu et al., arXiv 2211.01095): in so few steps its noise mends what the deterministic
        solvers leave broken. Each sample's noise comes from its own one of the ``generators``.
        """
        scheduler = DPMSolverMultistepScheduler.from_config(self.pipeline.scheduler.config, **SOLVER)
        scheduler.set_timesteps(min(steps, self.timesteps), device=noise.device)
        if scheduler.timesteps[-1] < 0:  # rounding gave it a time too many, after the last
            scheduler.timesteps = scheduler.timesteps[:-1]
            scheduler.sigmas = torch.cat([scheduler.sigmas[:-2], scheduler.sigmas[-1:]])
            scheduler.num_inference_steps = len(scheduler.timesteps)
        x_t = noise
        for t in scheduler.timesteps:
            output = self.sampling_output(network, x_t, t.expand(len(x_t)).to(noise.device), c)
            x_t = scheduler.step(output, t, x_t, generator=generators).prev_sample
        return x_t

    def _clean(self, network: nn.Module) -> Any:
        """A copy with the weights of ``network``, a LoRA merged in, where the pipeline's own is and each as precise."""
        clean, own = copy.deepcopy(self.network).cpu(), self.pipeline.unet
        clean.load_state_dict(merged_state(network))
        theirs = dict(own.named_parameters()) | dict(own.named_buffers())
        for name, tensor in [*clean.named_parameters(), *clean.named_buffers()]:
            tensor.requires_grad_(theirs[name].requires_grad)
            tensor.data = rounded(tensor.data, theirs[name].dtype, generator(0, "rounding", name))
        return nn.Module.to(clean, own.device)

    @abstractmethod
    def with_network(self, network: nn.Module) -> Any:
        """The same pipeline around other weights: what the user gets back."""
