"""One link to verified bytes."""
