"""The REST face of sealsvc: an unprivileged client of the control socket."""
