"""The gathered folder: images and manifest."""
