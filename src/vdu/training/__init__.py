"""Pre-training of the shipped unconditional models, from recipes."""
