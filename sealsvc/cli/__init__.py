"""sealctl: the command line of sealsvc."""
