"""A simulated host and enforcer: development and tests without privilege."""
