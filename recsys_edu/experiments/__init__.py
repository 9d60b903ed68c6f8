"""Every long run and every benchmark: modules that yield rows, and their recorder."""
