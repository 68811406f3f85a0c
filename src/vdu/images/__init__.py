"""Pictures as tensors in [-1, 1]: image folders, contact sheets, random changes."""
