"""A trained LoRA on disk, as diffusers reads it and as A1111 and ComfyUI do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from vdu.weights.checkpoint import write_tensors

__all__ = ["write_lora"]

KOHYA_FILE = "kohya_lora.safetensors"


def write_lora(folder: Path, pipeline: Any, low_rank: dict[str, Tensor]) -> None:
    """Write the LoRA twice: as the ``load_lora_weights`` of the original's pipeline reads it, and by Kohya's names.

    ``pytorch_lora_weights.safetensors`` is diffusers' own; ``kohya_lora.safetensors`` has the names, and the α, by
    which A1111 and ComfyUI know the layers of the U-Net.
    """
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya

    type(pipeline).save_lora_weights(folder, unet_lora_layers=convert_state_dict_to_diffusers(low_rank))
    named = convert_state_dict_to_kohya({f"unet.{name}": factor for name, factor in low_rank.items()})
    rank = next(len(factor) for name, factor in low_rank.items() if ".lora_A." in name)
    # What sd-scripts writes into the header, by which programs that list LoRAs tell what they are.
    header = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    tensors = {name: tensor.float().contiguous() for name, tensor in named.items()}
    write_tensors(folder / KOHYA_FILE, tensors, header)
