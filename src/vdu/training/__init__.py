"""Pre-training of the shipped models, from recipes: unconditional ones here, text-to-image ones in their package."""
