"""The `gradalign` command: each module parses one command, calls one library function, and prints."""
