"""Networks, freezing, training and export: the only place where torch is imported."""
