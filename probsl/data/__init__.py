"""From the user's data to rows and batches; independent of Pyro."""
