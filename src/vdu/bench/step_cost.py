"""What one unlearning step costs beside one plain fine-tuning step of the same network, as ratios of one run.

Two comparisons, because the methods with a second term also see a second batch: ``per_step`` against a plain step on
the same number of forget images; ``per_image`` against a plain step on the same number of images in all. The steps are
taken in turn and the median over rounds is compared, since the machine is noisy. Memory is what the method keeps
beyond network, gradients and optimiser: bytes for each trained parameter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from vdu.backbone import Backbone, load_backbone
from vdu.diffusion.denoising import Denoising
from vdu.diffusion.noising import Clean
from vdu.errors import VduError
from vdu.images.image_set import load_image_set
from vdu.model_zoo import find_zoo_model
from vdu.objective.bayes_target import BayesTarget
from vdu.objective.contract import Objective
from vdu.objective.plasticity import Ascent
from vdu.objective.stability import OutputStability, WeightStability
from vdu.posterior import load_posterior
from vdu.preparation.preparation import Preparation
from vdu.provenance import made_by
from vdu.records import write_record
from vdu.seeding import generator
from vdu.weights.gradients import descend

__all__ = ["run_step_cost"]

BATCH_SIZE = 32
ROUNDS = 25


def _plain(backbone: Backbone, network: nn.Module, images: torch.Tensor, batch_size: int) -> Callable[[], object]:
    optimizer, loss = torch.optim.Adam(network.parameters(), lr=1e-6), Denoising(backbone, images)
    return lambda: descend(optimizer, loss(network, batch_size, generator(0, "cost")))


def _method(objective: Objective, network: nn.Module) -> Callable[[], object]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective.gradient(network, BATCH_SIZE, generator(0, "cost"), "fp32")
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        objective.after_step(1e-6)

    return step


def _forms(backbone: Backbone, preparation: Preparation) -> dict[str, tuple[Callable[[], object], int, float]]:
    """Name → (step, images per step in units of the batch, extra bytes per parameter)."""
    ascent, count = Ascent(backbone, preparation.forget), sum(p.numel() for p in backbone.network.parameters())
    forms: dict[str, tuple[Callable[[], object], int, float]] = {}
    for name, explicit in (("weights, explicit", True), ("weights, proximal", False)):
        network = backbone.trainable_copy()
        weights = WeightStability(network, preparation.posterior, backbone.network)
        held = sum(t.numel() * t.element_size() for t in (*weights.mean, *weights.variance))
        forms[name] = (_method(Objective(0.5, ascent, None, weights, explicit), network), 1, held / count)
    frozen = sum(p.numel() * p.element_size() for p in backbone.network.parameters()) / count
    network, outputs = backbone.trainable_copy(), OutputStability(backbone, preparation.own_samples)
    forms["outputs"] = (_method(Objective(0.5, ascent, outputs), network), 2, frozen)
    network, head, score = backbone.trainable_copy(), preparation.discriminator, preparation.forget_score()
    banks = (preparation.forget_bank, preparation.own_bank)
    bayes = [BayesTarget(backbone, bank, head, None).guide(score) for bank in banks]
    held = sum(t.numel() * t.element_size() for b in bayes for t in (b.bank.x_t, b.target)) / count
    forms["bayes target (vdu)"] = (_method(Objective(0.5, bayes[0], bayes[1]), network), 2, held)
    return forms


def run_step_cost(results: Path, say: Callable[[str], None]) -> None:
    """Measure on the zoo's MNIST model and write one file for each form, ``step-cost/<form>.json``."""
    zoo = find_zoo_model("mnist")
    if zoo is None:
        raise VduError("step-cost needs the zoo model 'mnist', which is not shipped")
    backbone = load_backbone(zoo.pipeline)
    forget = load_image_set(zoo.forget("3"), backbone.shape).images
    preparation = Preparation(backbone, Clean(forget), 0, own_count=128, given_posterior=load_posterior(zoo.posterior))
    forms = _forms(backbone, preparation)
    plain = {k: _plain(backbone, backbone.trainable_copy(), forget, k * BATCH_SIZE) for k in (1, 2)}
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        steps = {f"plain {k}": step for k, step in plain.items()} | {name: form[0] for name, form in forms.items()}
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds.setdefault(name, []).append(time.perf_counter() - started)
    middle = {name: median(values[3:]) for name, values in seconds.items()}
    for name, (_, images, extra) in forms.items():
        row = {
            "form": name,
            "per_step": round(middle[name] / middle["plain 1"], 3),
            "per_image": round(middle[name] / middle[f"plain {images}"], 3),
            "extra_bytes_per_parameter": round(extra, 2),
            "batch_size": BATCH_SIZE,
            "rounds": ROUNDS,
        }
        path = results / "step-cost" / f"{name.replace(',', '').replace(' ', '-')}.json"
        write_record(path, {"row": row} | made_by())
        say(f"{name}: {row['per_step']} per step, {row['per_image']} per image")
