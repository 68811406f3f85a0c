"""Stable Diffusion and XL at a tiny size with the real classes: random weights, a tokenizer of a few words."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from vdu import unlearn
from vdu.bench.memory_modes import SIZES

WORDS = ("a", "red", "blue", "apple", "pear", "in", "noto", "style")
SHORT = {"steps": 2, "guard_every_steps": 2, "batch_size": 2, "stop_share": None}


def make_tokenizer(folder) -> CLIPTokenizer:
    """Letters, and the words above as merges of them."""
    letters = sorted(set("".join(WORDS)))
    merges, pieces = [], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    tokens = dict.fromkeys([*letters, *(f"{x}</w>" for x in letters), *pieces, "<|startoftext|>", "<|endoftext|>"])
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def make_text(tokenizer, hidden_size, layers=2, **config) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **config,
    )


def make_vae(**config) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
        **config,
    )


def make_pipeline(folder, prediction_type="epsilon", seed=0, **unet) -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(folder)
    text = make_text(tokenizer, 16, layers=1)
    network, vae = UNet2DConditionModel(**SIZES["tiny"] | unet), make_vae()
    scheduler = PNDMScheduler(
        num_train_timesteps=50, skip_prk_steps=True, steps_offset=1, prediction_type=prediction_type
    )
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text).eval(), tokenizer, network, scheduler, None, None, requires_safety_checker=False
    )


def where_words_have_a_say(backbone):
    """``backbone`` with other weights in text encoders and network: at usual random ones words hardly count."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, encoder in backbone.text_parts:
            getattr(backbone.pipeline, encoder).get_input_embeddings().weight.normal_(generator=g)
        for name, weight in backbone.network.named_parameters():
            if ".attn2.to_v" in name or ".attn2.to_out" in name:
                weight.normal_(generator=g)
    return backbone


def write_captions(folder, captions):
    lines = "".join(f'{name},"{text}"\n' for name, text in captions.items())
    (folder / "metadata.csv").write_text("file_name,text\n" + lines)


CAPTIONS = {"0.png": "a red apple", "1.png": "a blue pear", "2.png": "a red apple", "3.png": "a pear in noto style"}


def unlearned(pipeline, folder, method="ga", **options):
    settings = SHORT | options.pop("settings", {})
    return unlearn(pipeline, folder, method, settings=settings, share=0.2, precision="fp32", **options)


def make_xl_pipeline(folder, zeros=True, vae=None, **unet) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder)
    of_xl = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16 + 24,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 12,
    }
    network = UNet2DConditionModel(**SIZES["tiny"] | of_xl | unet)
    autoencoder = make_vae(scaling_factor=0.13025, **vae or {})
    return StableDiffusionXLPipeline(
        autoencoder,
        CLIPTextModel(make_text(tokenizer, 16)).eval(),
        CLIPTextModelWithProjection(make_text(tokenizer, 24, projection_dim=12)).eval(),
        tokenizer,
        make_tokenizer(folder),
        network,
        EulerDiscreteScheduler(num_train_timesteps=50),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
