"""Values and pure rules. No I/O, no wire; imports nothing of the project."""
