"""The folder of images and its manifest."""
