"""How an objective becomes a minimum in few and fast steps; no statistics in here."""
