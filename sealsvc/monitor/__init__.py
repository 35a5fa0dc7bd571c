"""Monitors for what enforcement cannot see: drift of maps, media errors, mounts, holders that
end."""
