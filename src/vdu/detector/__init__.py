"""Which class an image is of: the shipped classifiers, CLIP, NudeNet or a function of the user."""
