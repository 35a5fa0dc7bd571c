"""Integrity: protection information for sealed files (docs/integrity.md)."""
