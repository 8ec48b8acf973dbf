"""The command line: a module a command, and `commands`, which reads the arguments."""
