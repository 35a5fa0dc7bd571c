"""Everything at random, on real file systems, before one who believes nobody: `./dev soak`."""
