"""The command line: a file for each sub-command, with its `command`. Nothing here decides: ask, and print.

Beside them: options.py, tables.py and shares.py, what several of them have in common.
"""
