"""A miniature Stable Diffusion from scratch: recipe → autoencoder → tokenizer and captions → denoiser → pipeline."""
