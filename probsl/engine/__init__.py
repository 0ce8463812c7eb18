"""Fast minimization of an objective function; contains no statistics."""
