"""The objective in two slots, plasticity and stability, and what the methods put into them."""
