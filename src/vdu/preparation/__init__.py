"""What is found out about the original and the forget images before training: own samples, c, π, ρ, ε_f."""
