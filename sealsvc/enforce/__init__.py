"""Enforcers: kernel mechanisms that make conflicting operations wait or fail."""
