"""How a model that takes text is asked for the undesired: in words that were told, or that are found from pictures."""
