"""A Pyro program as a density of its latents: the one door to Pyro's handlers."""
