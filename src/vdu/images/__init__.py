"""Pictures as tensors in [-1, 1]: image folders and their captions, contact sheets, random changes."""
