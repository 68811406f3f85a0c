"""Pictures as tensors in [-1, 1]: image folders and contact sheets."""
