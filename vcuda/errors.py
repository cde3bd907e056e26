"""The errors that vcuda's callers see. Each message is one line: what is wrong with which thing, what to do."""


class VcudaError(Exception):
    """The root of vcuda's errors; the command line prints its text after `vcuda COMMAND: `."""


class RefusedError(VcudaError):
    """A share was asked that no card has room for."""


class GrantError(VcudaError):
    """A grant file, or a value to be written into one, is not valid."""


class LedgerError(VcudaError):
    """A ledger file cannot be made, opened or believed."""
