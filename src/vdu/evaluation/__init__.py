"""The figures of the protocol: what was forgotten, what else has changed, how soon it comes back."""
