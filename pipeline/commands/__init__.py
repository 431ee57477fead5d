"""The command line, and what its commands do beyond the phases.

In: arguments. Out: the calls of the rooms above, errors as one line.

    cli.py     the command line; starts without torch
    forget.py  media taken out of everything, for good
    vacuum.py  files that no version needs
"""
