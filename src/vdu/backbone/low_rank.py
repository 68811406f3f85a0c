"""LoRA: a low-rank change beside frozen attention projections.

    W = W* + B A,   A of shape (r, in), B of shape (out, r), B = 0 at the start

The usual scale α/r is 1 here, since α only rescales the learning rate; a file without α thus means the same everywhere.
Hu et al., arXiv 2106.09685; the layers are those of `peft`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vdu.errors import VduError
from vdu.seeding import generator

__all__ = ["PROJECTIONS", "add_adapters", "factors", "merged_state"]

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
ADAPTER = "default"  # peft's own name for the only one


def add_adapters(network: nn.Module, rank: int, seed: int) -> None:
    """Put a LoRA on the attention projections in place; only it requires gradients. The output stays as it was.

    Raises `VduError` without peft, and for a network that has no attention.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise VduError("a LoRA needs peft: pip install peft") from error
    if not any(name.endswith(PROJECTIONS) for name, _ in network.named_modules()):
        raise VduError(f"a {type(network).__name__} without attention has no place for a LoRA: choose other parameters")
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(PROJECTIONS))
    inject_adapter_in_model(config, network, ADAPTER)
    g = generator(seed, "lora")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_A." in name:  # peft draws it from the global generator, and a run depends on its seed only
            drawn = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=g)
            parameter.data.copy_(drawn)


def factors(network: nn.Module) -> dict[str, Tensor]:
    """A and B by peft's names on the CPU; empty for a network without a LoRA."""
    state = network.state_dict()
    return {k.replace(f".{ADAPTER}.", "."): v.detach().cpu().clone() for k, v in state.items() if ".lora_" in k}


@torch.no_grad()
def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of the ordinary network with the same output: W* + B A under W's name, the rest as it is."""
    state = {k.replace(".base_layer.", "."): v for k, v in network.state_dict().items() if ".lora_" not in k}
    for name, module in network.named_modules():
        if hasattr(module, "lora_A"):
            weights = state[f"{name}.weight"]
            change = module.lora_B[ADAPTER].weight @ module.lora_A[ADAPTER].weight
            state[f"{name}.weight"] = weights + change.to(weights)
    return state
