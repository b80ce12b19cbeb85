"""The command line: a body parses, calls one function and prints."""
