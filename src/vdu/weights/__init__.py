"""Weights: which are trained, how they move and are averaged, and the forms in which they are stored."""
