"""Where links come from."""
