"""The whole road on real handwritten digits, without a network: what `mlimages demo` shows."""
