"""Measures on the spot what the enforcers cover: every operation against a real sealed file."""
