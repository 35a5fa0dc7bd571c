"""Relocation: moving the blocks of a sealed file (docs/relocate.md)."""
