"""The errors that vcuda's callers see. A message is one line: what is wrong with which thing, what to do."""


class VcudaError(Exception):
    """The root of vcuda's errors; the command line prints its text after `vcuda COMMAND: `."""


class RefusedError(VcudaError):
    """A share was asked that no card has room for."""


class StartError(VcudaError):
    """A program can't be started; `status` is what a shell's would be: 126, or 127 if there is none."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class GrantError(VcudaError):
    """A grant file, or a value to be written into one, is not valid."""


class LedgerError(VcudaError):
    """A ledger file cannot be made, opened or believed."""
