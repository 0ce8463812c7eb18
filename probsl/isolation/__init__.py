"""What surrounds a call, kept from it and left as it was."""
