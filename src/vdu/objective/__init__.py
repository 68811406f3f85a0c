"""The objective: plasticity and stability, what methods put into these two slots, and gradients that fit neither."""
