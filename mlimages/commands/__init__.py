"""The words of the command line, a file a step; each body imports, calls one function, prints."""
