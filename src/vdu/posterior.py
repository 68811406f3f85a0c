"""The Gaussian posterior after training, p(θ|D) ≈ N(μ*, diag σ*²), and where it comes from.

    checkpoints   μ*, σ*² = mean and variance over K saved checkpoints, by Welford's update in float64:
                  δ = x_k − μ_{k−1},  μ_k = μ_{k−1} + δ / k,  M_k = M_{k−1} + δ (x_k − μ_k),  σ*² = M_K / (K − 1)
    fisher        σ*²_i = 1 / (N F_i + 1/s²),  F_i = E[(∂ℓ/∂θ_i)²] over images that the model generates itself
    isotropic     σ*²_i = s² for every parameter

The anchor μ* is the network that is sampled; the checkpoints' own mean is used only where it is asked for.
Panda et al., arXiv 2510.04058 (checkpoints); diagonal empirical Fisher of the simple DDPM loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vdu.backbone import Backbone, weights_sha256
from vdu.diffusion.noising import Clean, noised
from vdu.errors import VduError, nearest
from vdu.hashing import tensors_sha256
from vdu.seeding import generator
from vdu.weights.checkpoint import open_tensors, write_tensors

__all__ = [
    "Posterior",
    "Summary",
    "from_checkpoints",
    "from_fisher",
    "isotropic",
    "load_posterior",
    "squared_gradients",
    "summarise",
    "welford",
]

FLOOR_SHARE_OF_MEDIAN = 1e-2
SMALLEST_SCALE = 1e-18  # whose square is still a number in float32
MEDIAN_OF = 2**24  # values; of a larger network the median is that of every so manieth one


@dataclass(frozen=True)
class Posterior:
    """``mean`` (float32) and ``variance`` (in the file's precision) per parameter name, the source, K, the anchor's
    hash and the floor.

    ``mean`` is None where μ* is the model's own weights: the hash names them, so the file does not hold them twice.
    ``floor_share`` is the share of parameters whose variance was raised to ``floor``.
    """

    mean: dict[str, Tensor] | None
    variance: dict[str, Tensor]
    source: str
    count: int
    model_sha256: str
    floor: float
    floor_share: float

    @property
    def _tensors(self) -> dict[str, Tensor]:
        variance = {f"variance.{k}": v for k, v in self.variance.items()}
        return variance | {f"mean.{k}": v for k, v in (self.mean or {}).items()}

    @property
    def sha256(self) -> str:
        """Hash of all numbers in it."""
        return tensors_sha256(self._tensors)

    def save(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """One safetensors file: ``variance.*``, ``mean.*`` where it is not the model's weights, metadata as strings.

        ``dtype`` of the variances: bfloat16 keeps them to 0.4 %, far finer than what K checkpoints can tell.
        """
        tensors = {k: v.to(dtype) if k.startswith("variance.") else v for k, v in self._tensors.items()}
        metadata = {
            "source": self.source,
            "count": str(self.count),
            "model_sha256": self.model_sha256,
            "floor": repr(self.floor),
            "floor_share": repr(self.floor_share),
        }
        write_tensors(path, tensors, metadata)


@dataclass(frozen=True)
class Summary:
    """Standard deviations of one group of parameters: count, median, smallest, largest, share at the floor."""

    parameters: int
    median_sd: float
    smallest_sd: float
    largest_sd: float
    floor_share: float


def welford(values: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance (float64) of a stream of one or more tensors; memory does not grow with the count."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for value in values:
        count, x = count + 1, value.double()
        if count == 1:
            mean, squares = x.clone(), torch.zeros_like(x)
            continue
        delta = x - mean
        mean += delta / count
        squares += delta.mul_(x - mean)
    return mean, squares.div_(max(1, count - 1))


def _median(tensors: Sequence[Tensor], above: float = -math.inf) -> float:
    """Of the values ``above``, tensor by tensor: nothing as large as all of them is made."""
    every = math.ceil(sum(int((v > above).count_nonzero()) for v in tensors) / MEDIAN_OF)
    return float(torch.cat([v[v > above][::every].clone() for v in tensors]).median())


def _floored(variance: dict[str, Tensor]) -> tuple[dict[str, Tensor], float, float]:
    """Raise variances under 1 % of the median: a frozen parameter must not make 1/σ*² explode."""
    tensors = list(variance.values())
    if not all(torch.isfinite(v).all() for v in tensors) or not any((v > 0).any() for v in tensors):
        raise VduError("the posterior has no spread (all variances zero or not finite): give different checkpoints")
    floor = _median(tensors, above=0.0) * FLOOR_SHARE_OF_MEDIAN
    share = sum(int((v < floor).count_nonzero()) for v in tensors) / sum(v.numel() for v in tensors)
    return {k: v.clamp(min=floor).float() for k, v in variance.items()}, floor, share


def _parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().cpu() for name, p in network.named_parameters()}


def _checkpoint_file(path: Path) -> Path:
    if path.is_file():
        return path
    for candidate in (
        path / "unet" / "diffusion_pytorch_model.safetensors",
        path / "diffusion_pytorch_model.safetensors",
    ):
        if candidate.is_file():
            return candidate
    raise VduError(f"{path} is no checkpoint: give .safetensors files or pipeline folders")


def _open_checkpoint(path: Path, anchor: dict[str, Tensor]) -> Any:
    """The tensors of a checkpoint, none of them read yet. Raises `VduError` for names or shapes of another model."""
    file = open_tensors(_checkpoint_file(path))
    names = set(file.keys())
    for name, parameter in anchor.items():
        if name not in names:
            raise VduError(f"{path} has no parameter {name!r}: it is a checkpoint of another model")
        shape = tuple(file.get_slice(name).get_shape())
        if shape != parameter.shape:
            shapes = f"{shape}, the model has {tuple(parameter.shape)}"
            raise VduError(f"{path}: {name!r} has shape {shapes}: it is a checkpoint of another model")
    for name in sorted(names - set(anchor)):
        raise VduError(f"{path} has a parameter {name!r} that the model lacks: it is a checkpoint of another model")
    return file


def from_checkpoints(backbone: Backbone, paths: list[Path], *, anchor: str = "weights") -> Posterior:
    """Posterior from K ≥ 2 checkpoints (files or pipeline folders), streamed one parameter at a time.

    ``anchor``: ``weights`` centres on the model that is sampled, ``mean`` on the checkpoints' mean. Raises `VduError`
    naming the first parameter whose name or shape does not match.
    """
    if anchor not in ("weights", "mean"):
        raise VduError(f"unknown anchor {anchor!r}: {nearest(anchor, ('weights', 'mean'))}")
    if len(paths) < 2:
        raise VduError(f"a posterior needs at least 2 checkpoints, {len(paths)} given: or use fisher or isotropic")
    parameters = _parameters(backbone.network)
    files = [_open_checkpoint(path, parameters) for path in paths]
    mean: dict[str, Tensor] = {}
    variance: dict[str, Tensor] = {}
    for name in parameters:
        centre, spread = welford(file.get_tensor(name) for file in files)
        variance[name] = spread.float()
        if anchor == "mean":
            mean[name] = centre.float()
    floored, floor, share = _floored(variance)
    return Posterior(mean or None, floored, "checkpoints", len(paths), weights_sha256(backbone.network), floor, share)


def check_scale(scale: float) -> None:
    """Raise `VduError` for what is no standard deviation."""
    if not SMALLEST_SCALE <= scale < math.inf:
        raise VduError(f"the scale, a standard deviation, must be at least {SMALLEST_SCALE} and finite, not {scale}")


def isotropic(backbone: Backbone, scale: float = 1e-3) -> Posterior:
    """σ* = ``scale`` everywhere: plain L2 to the released weights. For a model with one checkpoint."""
    check_scale(scale)
    variance = {k: torch.full_like(v, scale**2) for k, v in _parameters(backbone.network).items()}
    return Posterior(None, variance, "isotropic", 1, weights_sha256(backbone.network), scale**2, 0.0)


def squared_gradients(backbone: Backbone, images: Clean | Tensor, seed: int) -> dict[str, Tensor]:
    """Σ over ``images`` of (∂ℓ/∂θ_i)², float64 on the CPU by parameter name; one time per image.

    ``ℓ = ½ Σ_pixels (ε − ε_θ)²``, the negative log-likelihood of the noise under a unit-variance Gaussian.
    """
    network = backbone.trainable_copy().eval()
    names, parameters = zip(*network.named_parameters(), strict=True)
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    for index, image in enumerate(Clean.of(images).split(1)):
        sample = noised(backbone, image, generator(seed, "fisher", index))
        loss = 0.5 * (backbone.predict_eps(network, sample.x_t, sample.t, sample.c) - sample.eps).pow(2).sum()
        for sum_, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            sum_ += gradient.cpu().double().pow(2)
    return dict(zip(names, total, strict=True))


def from_fisher(backbone: Backbone, images: Clean | Tensor, *, seed: int = 0, scale: float = 1e-2) -> Posterior:
    """Diagonal empirical Fisher on the model's own samples, one of them and one time per gradient.

    ``scale`` is the prior's standard deviation: parameters that the loss does not feel get it.
    """
    check_scale(scale)
    fisher = squared_gradients(backbone, images, seed)
    floored, floor, share = _floored({n: 1 / (f + 1 / scale**2) for n, f in fisher.items()})
    sha256 = weights_sha256(backbone.network)
    return Posterior(None, floored, "fisher", len(images), sha256, floor, share)


def load_posterior(path: Path, backbone: Backbone | None = None) -> Posterior:
    """Read a posterior file; with a ``backbone``, refuse one that was made for another model (by hash)."""
    if not path.is_file():
        raise VduError(f"no posterior file {path}: make one with `vdu posterior checkpoints`")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
        mean = {k.removeprefix("mean."): v for k, v in tensors.items() if k.startswith("mean.")}
        variance = {k.removeprefix("variance."): v for k, v in tensors.items() if k.startswith("variance.")}
        numbers = int(metadata["count"]), float(metadata["floor"]), float(metadata["floor_share"])
        source, sha256 = metadata["source"], metadata["model_sha256"]
    except Exception as error:
        raise VduError(f"{path} is not a posterior file: make one with `vdu posterior checkpoints`") from error
    posterior = Posterior(mean or None, variance, source, numbers[0], sha256, numbers[1], numbers[2])
    if backbone is not None:
        refuse_other_model(posterior, backbone, f"posterior {path}")
    return posterior


def refuse_other_model(posterior: Posterior, backbone: Backbone, called: str) -> None:
    """Raises `VduError` for a posterior over other weights than the backbone's."""
    sha256 = posterior.model_sha256
    if sha256 != weights_sha256(backbone.network):
        raise VduError(f"{called} belongs to another model (hash {sha256[:12]}…): make one for this model")


def _summary(variances: Sequence[Tensor], floor: float) -> Summary:
    count = sum(v.numel() for v in variances)
    stored = torch.tensor(floor, dtype=torch.float64).to(variances[0].dtype)  # which bfloat16 may round up
    at_floor = sum(int((v <= stored).count_nonzero()) for v in variances) / count
    least, most = min(float(v.min()) for v in variances), max(float(v.max()) for v in variances)
    return Summary(count, _median(variances) ** 0.5, least**0.5, most**0.5, at_floor)


def summarise(posterior: Posterior) -> dict[str, Summary]:
    """A `Summary` for ``all`` parameters and for each layer (first two parts of the parameter name)."""
    groups: dict[str, list[Tensor]] = {"all": []}
    for name, variance in posterior.variance.items():
        groups["all"].append(variance)
        groups.setdefault(".".join(name.split(".")[:2]), []).append(variance)
    floor = posterior.floor if posterior.source != "isotropic" else 0.0
    return {name: _summary(parts, floor) for name, parts in groups.items()}
