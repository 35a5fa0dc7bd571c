"""Seals of clients that share a ring with the keeper."""
