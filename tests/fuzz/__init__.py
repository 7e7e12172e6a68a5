"""Fuzzing of everything that reads text or files from outside: `python tests/fuzz/run.py`. A new parser is one entry of `table.TARGETS`."""
