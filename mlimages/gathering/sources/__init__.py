"""Sources of links."""
