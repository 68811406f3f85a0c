"""A diffusers pipeline's weights in the layout of single-file checkpoints: the inverse of diffusers' conversion.

After the latent-diffusion and OpenCLIP code, for any number of residual and attention layers a block.
"""

import re

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet_name(name, layers, attends):
    for own, other in ENDS.items():
        if name.startswith(f"{own}."):
            return name.replace(own, other, 1)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        kind, number, rest = found.groups()
        place = f"middle_block.{2 * int(number) + (kind == 'attentions')}"
    else:
        side, block, kind, number, rest = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name).groups()
        if kind == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":
            return f"output_blocks.{int(block) * (layers + 1) + layers}.{1 + (block in attends)}.{rest}"
        first = 1 + int(block) * (layers + 1) if side == "down" else int(block) * (layers + 1)
        place = f"{'in' if side == 'down' else 'out'}put_blocks.{first + int(number)}.{int(kind == 'attentions')}"
    if kind == "resnets":
        part, end = rest.split(".")
        rest = f"{RESNET[part]}.{end}"
    return f"{place}.{rest}"


def unet_layout(unet):
    weights = unet.state_dict()
    attends = {found[1] for name in weights if (found := re.match(r"up_blocks\.(\d+)\.attentions", name))}
    layers = unet.config.layers_per_block
    return {f"model.diffusion_model.{_unet_name(n, layers, attends)}": w for n, w in weights.items()}


def vae_layout(vae):
    blocks, made = len(vae.config.block_out_channels), {}
    for name, weights in vae.state_dict().items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for own, other in ATTENTION.items():
                name = name.replace(f".{own}.", f".{other}.")
            weights = weights[:, :, None, None] if weights.ndim == 2 else weights
        made[f"first_stage_model.{name}"] = weights
    return made


def _text_weights(encoder):
    """By the names that every version of transformers had before it took ``text_model`` away."""
    return {
        n if n.startswith("text_") else f"text_model.{n}": w
        for n, w in encoder.state_dict().items()
        if not n.endswith("position_ids")
    }


def clip_layout(encoder, prefix):
    return {f"{prefix}{name}": weights for name, weights in _text_weights(encoder).items()}


def open_clip_layout(encoder, prefix):
    weights, made = _text_weights(encoder), {}
    for name, tensor in weights.items():
        if any(f".{x}_proj." in name for x in "kv"):
            continue
        if ".q_proj." in name:
            tensor = torch.cat([weights[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        elif name == "text_projection.weight":
            name, tensor = "text_projection", tensor.T.contiguous()
        for own, other in {
            "text_model.encoder.layers": "transformer.resblocks",
            "text_model.embeddings.position_embedding.weight": "positional_embedding",
            "text_model.embeddings.": "",
            "text_model.final_layer_norm": "ln_final",
            "layer_norm": "ln_",
            "self_attn": "attn",
            "fc1": "c_fc",
            "fc2": "c_proj",
        }.items():
            name = name.replace(own, other)
        made[f"{prefix}{name}"] = tensor
    return made


def checkpoint_layout(pipeline, open_clip=False):
    """All weights of ``pipeline`` as one dictionary; ``open_clip``: as Stable Diffusion 2.x holds its text encoder."""
    made = unet_layout(pipeline.unet) | vae_layout(pipeline.vae)
    if hasattr(pipeline, "text_encoder_2"):
        made |= clip_layout(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        made |= open_clip_layout(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    elif open_clip:
        made |= open_clip_layout(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        made |= clip_layout(pipeline.text_encoder, "cond_stage_model.transformer.")
    return {name: weights.contiguous().clone() for name, weights in made.items()}
