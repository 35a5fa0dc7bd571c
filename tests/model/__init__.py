"""A byte-exact model of files, shared blocks, seals and copies, run beside the real ones."""
