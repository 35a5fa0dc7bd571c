"""What a long-lived process needs: clock, tasks, threads, limits, logs, configuration."""
