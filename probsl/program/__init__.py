"""A Pyro program as a log density of its latents; all use of Pyro's handlers."""
