"""What the user has, up to rows and batches of them; nothing of Pyro."""
