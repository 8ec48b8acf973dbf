"""The command line: one module for each command, and `commands`, which reads the arguments."""
