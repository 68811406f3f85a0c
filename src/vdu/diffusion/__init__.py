"""What every diffusion model has in common: times, noise, the losses of training, banks of noised images, samples."""
