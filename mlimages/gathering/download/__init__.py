"""Download links and verify that the files are images."""
