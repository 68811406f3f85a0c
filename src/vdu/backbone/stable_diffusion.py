"""Stable Diffusion 1.x and 2.x: `StableDiffusionPipeline`, latents of a VAE, conditioned on text.

    x_0 = s · E[z | image]     s the VAE's scaling factor, the posterior's mean in place of a draw
    f_g = f(x_t, t, ∅) + w (f(x_t, t, c) − f(x_t, t, ∅))     sampling only; training is at the plain f(x_t, t, c)

Rombach et al., arXiv 2112.10752; classifier-free guidance with scale w: Ho & Salimans, arXiv 2207.12598 (affine in ε,
so it means the same for a v-prediction). Each distinct prompt is encoded once; ``c`` holds its number. What other
families of the same layout do otherwise is in the class attributes and the underscored methods.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from vdu.backbone.attention import write_out_attention
from vdu.backbone.contract import Backbone, float32_copy, placed, weights_sha256
from vdu.errors import VduError
from vdu.prompts import Prompts

__all__ = ["StableDiffusionBackbone"]

LATENT_PIXELS = 8 * 64 * 64  # through the U-Net at once: eight pictures of 512 × 512


EmbeddingHook = Callable[[nn.Module, Any, Tensor], Tensor]


def _put_after_start(embeddings: Tensor) -> EmbeddingHook:
    """A hook on word embeddings ``(N, L, D)`` that puts ``(N, k, D)`` in the places after the start mark."""

    def put(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return torch.cat([out[:, :1], embeddings.to(out), out[:, 1 + embeddings.shape[1] :]], dim=1)

    return put


def _make_leaf(leaves: list[Tensor]) -> EmbeddingHook:
    """A hook on word embeddings ``(N, L, D)`` that makes them a leaf where gradients are on, and adds it to a list."""

    def take(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        leaves.append(out.detach().requires_grad_(torch.is_grad_enabled()))
        return leaves[-1]

    return take


class StableDiffusionBackbone(Backbone):
    """``prompts`` are what samples are asked with; number 0 of ``c`` is the empty prompt."""

    family: ClassVar[str] = "Stable Diffusion 1.x or 2.x"
    text_parts: ClassVar[tuple[tuple[str, str], ...]] = (("tokenizer", "text_encoder"),)
    beyond_text: ClassVar[tuple[str, ...]] = (
        *("class_embed_type", "num_class_embeds", "addition_embed_type"),
        *("encoder_hid_dim_type", "time_cond_proj_dim"),
    )

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.vae: Any = float32_copy(pipeline.vae)
        size, factor = self.network.config.sample_size, pipeline.vae_scale_factor
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (self.network.config.in_channels, height, width)
        self.largest_batch = max(1, min(self.largest_batch, LATENT_PIXELS // (height * width)))
        self.shape = (self.vae.config.in_channels, height * factor, width * factor)
        self._number: dict[str, int] = {}
        self._encodings: tuple[Tensor, ...] = ()
        self.condition([""])
        self.sample_from(Prompts())

    @classmethod
    def check(cls, pipeline: Any) -> None:
        """Refuses networks that need more than text, and parts that do not belong together."""
        if not isinstance(pipeline.unet, UNet2DConditionModel):
            raise VduError(f"network {type(pipeline.unet).__name__} is not supported: it needs a UNet2DConditionModel")
        absent = [n for n in ("vae", *sum(cls.text_parts, ())) if getattr(pipeline, n, None) is None]
        if absent:
            raise VduError(f"the pipeline lacks its {' and '.join(absent)}: give it whole")
        if not isinstance(pipeline.vae, AutoencoderKL):
            raise VduError(f"a VAE of class {type(pipeline.vae).__name__} is not supported: give an AutoencoderKL")
        config, vae = pipeline.unet.config, pipeline.vae.config
        for name in cls.beyond_text:
            if config.get(name) is not None:
                raise VduError(f"a U-Net with {name} is not supported: give a plain {cls.family}")
        if not config.sample_size:
            raise VduError("the U-Net has no sample_size: set the size of its latents in unet/config.json")
        if not config.in_channels == config.out_channels == vae.latent_channels:
            channels = f"{config.in_channels} → {config.out_channels} channels, the VAE's latents have"
            said = f"the U-Net maps {channels} {vae.latent_channels}"
            raise VduError(f"{said}: inpainting and editing models are not supported")
        if vae.in_channels != vae.out_channels or vae.out_channels not in (1, 3):
            channels = f"{vae.in_channels} → {vae.out_channels}"
            raise VduError(f"a VAE of {channels} channels is not supported: give one of grey or colour pictures")
        if vae.get("latents_mean") is not None:
            raise VduError(f"a VAE with latents_mean is not supported: give a plain {cls.family}")
        width = sum(getattr(pipeline, encoder).config.hidden_size for _, encoder in cls.text_parts)
        if config.cross_attention_dim != width:
            said = f"the U-Net's text is {config.cross_attention_dim} wide, the text encoder's is {width}"
            raise VduError(f"{said}: their checkpoints are of different families")

    def trainable_copy(self, gradient_checkpointing: bool = False, trained: Collection[str] | None = None) -> nn.Module:
        network: Any = super().trainable_copy(gradient_checkpointing, trained)
        if self.device.type == "cpu":
            write_out_attention(network, *self.latent_shape[1:])
        copied: nn.Module = network
        return copied

    @property
    def beside_sha256(self) -> list[str]:
        return [*super().beside_sha256, *map(weights_sha256, (self.vae, *self.text_encoders))]

    def sample_from(self, prompts: Prompts) -> None:
        self.condition([*prompts.neutral, *prompts.forget])
        self.prompts = prompts

    def condition(self, texts: Sequence[str]) -> Tensor:
        """Numbers ``(N,)`` of ``texts``; new ones are encoded. Raises `VduError` for a text of unknown words only."""
        new = [text for text in dict.fromkeys(texts) if text not in self._number]
        for text in new:
            self._check_words(text)
        if new:
            self._number |= dict(zip(new, self.add_prompts(self._encoded(new)).tolist(), strict=True))
        return torch.tensor([self._number[text] for text in texts])

    def add_prompts(self, encodings: tuple[Tensor, ...]) -> Tensor:
        """Numbers ``(N,)`` that stand in ``c`` for prompts of these ``encodings`` from here on."""
        before = self._encodings or tuple(x[:0] for x in encodings)
        self._encodings = tuple(torch.cat([a.cpu(), b.detach().cpu()]) for a, b in zip(before, encodings, strict=True))
        return torch.arange(len(before[0]), len(self._encodings[0]))

    def states_of(self, texts: Sequence[str]) -> Tensor:
        """What the U-Net's cross-attention reads of ``texts``, all read as text: ``(N, L, D)``, without gradients."""
        numbers = self.condition(texts)
        return self._encodings[0][numbers]

    def reads_whole(self, text: str) -> bool:
        """Whether ``text`` is short enough for every text encoder."""
        return all(len(t(text, verbose=False).input_ids) <= t.model_max_length for t in self.tokenizers)

    def _check_words(self, text: str) -> None:
        unknown = (
            all(token == tokenizer.unk_token_id for token in tokenizer(text, add_special_tokens=False).input_ids)
            for tokenizer in self.tokenizers
        )
        if text.strip() and all(unknown):
            raise VduError(f"the model's tokenizer knows no word of the prompt {text!r}: write it in other words")

    @torch.no_grad()
    def _encoded(self, texts: list[str]) -> tuple[Tensor, ...]:
        """Of each kind of text condition ``(N, …)`` on the CPU."""
        with self.placed_text():
            rows = [self._encoding([text]) for text in texts]
        return tuple(torch.cat([x.float().cpu() for x in kind]) for kind in zip(*rows, strict=True))

    @contextmanager
    def placed_text(self, single: bool = False) -> Iterator[None]:
        """Have the text encoders beside the network inside the block; in float32 where ``single``."""
        encoders = self.text_encoders
        precisions = [encoder.dtype for encoder in encoders]
        with ExitStack() as stack:
            for encoder, precision in zip(encoders, precisions, strict=True):
                stack.enter_context(placed(encoder, self.device))
                if single:
                    encoder.float()
                    stack.callback(encoder.to, precision)
            yield

    def _encoding(self, texts: list[str]) -> tuple[Tensor, ...]:
        """What the pipeline's own encoders make of ``texts``: hidden states ``(N, L, D)``."""
        return (self.pipeline.encode_prompt(texts, self.device, 1, False)[0],)

    def encodings_of_words(self, words: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As `_encoding`, of prompts whose words have the embeddings ``words``: of each encoder ``(N, k, D)``.

        Gradients reach them. Call it inside `placed_text`.
        """
        count, length = words[0].shape[:2]
        hooks = [_put_after_start(embeddings) for embeddings in words]
        return self._hooked_encoding([" ".join(["a"] * length)] * count, hooks)

    def encodings_and_words(self, texts: list[str]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """As `_encoding`, and the word embeddings ``(N, L, D)`` of each encoder that it comes from.

        Where gradients are on, those are leaves that they reach. Call it inside `placed_text`.
        """
        leaves: list[Tensor] = []
        return self._hooked_encoding(texts, [_make_leaf(leaves) for _ in self.text_parts]), leaves

    def _hooked_encoding(self, texts: list[str], hooks: Sequence[EmbeddingHook]) -> tuple[Tensor, ...]:
        with ExitStack() as stack:
            for encoder, hook in zip(self.text_encoders, hooks, strict=True):
                layer = encoder.get_input_embeddings()
                stack.callback(layer.register_forward_hook(hook).remove)
            return self._encoding(texts)

    def _asked(self, encodings: tuple[Tensor, ...]) -> dict[str, Any]:
        """The network's keyword arguments for a batch of `_encoding`."""
        return {"encoder_hidden_states": encodings[0]}

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token numbers ``(N, L)`` of ``texts``: start mark, words, end mark, padding; what is too long is cut."""
        tokenizer = self.pipeline.tokenizer
        longest = int(tokenizer.model_max_length)
        encoded = tokenizer(list(texts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        return encoded.input_ids

    @property
    def tokenizers(self) -> list[Any]:
        """One for each text encoder."""
        return [getattr(self.pipeline, tokenizer) for tokenizer, _ in self.text_parts]

    @property
    def text_encoders(self) -> list[Any]:
        """In the order of `tokenizers`."""
        return [getattr(self.pipeline, encoder) for _, encoder in self.text_parts]

    @property
    def vocabularies(self) -> tuple[Tensor, ...]:
        """The word embeddings of each text encoder: ``(V, D)``, one for each token number."""
        layers = [encoder.get_input_embeddings() for encoder in self.text_encoders]
        return tuple(layer.weight.detach().float().to(self.device) for layer in layers)

    @property
    def _vae_batch(self) -> int:
        # Its first and last layers are as large as the picture.
        return max(1, self.largest_batch // 2)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        device = self.device
        with placed(self.vae, device):
            parts = [self.vae.encode(x.to(device)).latent_dist.mode().cpu() for x in images.split(self._vae_batch)]
        return torch.cat(parts) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        device = self.device
        with placed(self.vae, device):
            latents = (x_0 / self.vae.config.scaling_factor).split(self._vae_batch)
            parts = [self.vae.decode(z.to(device)).sample.clamp(-1, 1).cpu() for z in latents]
        return torch.cat(parts)

    def _output(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        self._encodings = tuple(x.to(x_t.device) for x in self._encodings)
        number = (torch.zeros(len(x_t), dtype=torch.long) if c is None else c).to(x_t.device)
        return self.output_of_encodings(network, x_t, t, tuple(x[number] for x in self._encodings))

    def output_of_encodings(self, network: nn.Module, x_t: Tensor, t: Tensor, encodings: tuple[Tensor, ...]) -> Tensor:
        """As `output`, for text conditions themselves, the rows of ``encodings``; not counted in ``passes``."""
        return network(x_t, t, **self._asked(encodings)).sample.float()

    def sampling_output(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Guided by ``prompts.guidance_scale`` away from the empty prompt; one pass where there is nothing to guide."""
        conditional = self.output(network, x_t, t, c)
        scale = self.prompts.guidance_scale if self.prompts else 1.0
        if c is None or scale == 1 or not c.any():
            return conditional
        unconditional = self.output(network, x_t, t)
        return unconditional + scale * (conditional - unconditional)

    def with_network(self, network: nn.Module) -> Any:
        """All other parts are the original's own; the U-Net has its old precision, so that they work together."""
        return type(self.pipeline)(**self.pipeline.components | {"unet": self._clean(network)}, **self._options())

    def _options(self) -> dict[str, Any]:
        """What the pipeline was made with beside its parts."""
        return {"requires_safety_checker": self.pipeline.config.get("requires_safety_checker", True)}
