"""Run a program as if nobody stood between it and whoever started it.

The program stays in our process group, so a terminal's keys reach it by themselves; signals that were sent to
us alone are passed on. When a key stops it, we stop too, so that the shell takes over, and we go on with it.
When we are killed, so is the program (PR_SET_PDEATHSIG): a SIGKILL can't be passed on in any other way. At
its end, `end_like` ends us as it ended, by the same signal if it was one.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from vcuda.errors import StartError

_PASSED_ON = {
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGALRM, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
}
_WAITED_FOR = {*_PASSED_ON, signal.SIGCHLD}
_SENT_BY_KERNEL = 0x80
"""si_code SI_KERNEL: a key or the size of the terminal, sent to its whole foreground process group."""
_PR_SET_PDEATHSIG = 1

Mask = set[signal.Signals | int]


@contextmanager
def signals_held() -> Generator[Mask]:
    """Let no signal end us in between; yields the mask that a program is to start with.

    What comes before `run` is passed on to the program; what is left at the end is dropped.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may have it ignored: no status then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    try:
        yield before
    finally:
        while signal.sigtimedwait(_WAITED_FOR, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    mask: Mask,
    *,
    started: Callable[[], None] = lambda: None,
) -> int:
    """Run a command to its end, within `signals_held`; its status as of waitpid.

    `started` is called once it runs: the place for threads, which no process that is forked should meet.

    Raises:
        StartError: it can't be started.

    """
    process = _start(command, environment, mask)
    started()
    status = _wait(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)  # collected here, not by subprocess
    return status


def end_like(status: int) -> NoReturn:
    """End this process as the one that left this status ended: with its code, or by its signal."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        # The program has left its core where cores are left; ours would tell nothing.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
        code = 128 - code  # still here: the first process of a container is spared
    sys.exit(code)


def _start(command: Sequence[str], environment: Mapping[str, str], mask: Mask) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # killed before the line above
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        return subprocess.Popen(command, env=environment, preexec_fn=prepare, close_fds=False)
    except OSError as error:
        raise _cannot_start(command[0], error) from error
    except ValueError as error:  # a NUL byte
        raise StartError(f"{command[0]!r}: {error}", status=126) from error


def _cannot_start(program: str, error: OSError) -> StartError:
    if error.errno == errno.ENOENT and "/" not in program:
        return StartError(f"{program}: command not found; is it on PATH?", status=127)
    if error.errno == errno.ENOENT:
        return StartError(f"{program}: no such file, or its interpreter is missing", status=127)
    if error.errno == errno.EACCES:
        return StartError(f"{program}: not executable; see its permissions", status=126)
    return StartError(f"{program}: cannot be started: {error.strerror}", status=126)


def _wait(pid: int) -> int:
    while True:
        came = signal.sigwaitinfo(_WAITED_FOR)
        if came.si_signo != signal.SIGCHLD:
            if not _has_it_already(pid, came):
                with contextlib.suppress(PermissionError):  # it has become somebody else
                    os.kill(pid, came.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if ended == 0:
            continue
        if not os.WIFSTOPPED(status):
            return status
        if os.WSTOPSIG(status) == signal.SIGTSTP:
            _stop_too(pid)


def _has_it_already(pid: int, came: signal.struct_siginfo) -> bool:
    """Whether the program was sent it too: by a key in the terminal, or by itself to its whole group."""
    try:
        in_our_group = os.getpgid(pid) == os.getpgrp()
    except ProcessLookupError:
        return True
    return in_our_group and (came.si_code == _SENT_BY_KERNEL or came.si_pid == pid)


def _stop_too(pid: int) -> None:
    """Stop as the program was stopped, until somebody continues us, and then it.

    Where no shell would continue us, the kernel ignores this signal.
    """
    # Sent before it is let through, so that it is one with the key's, should that wait still: two would stop
    # us twice.
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    if signal.sigtimedwait({signal.SIGCONT}, 0) and _is_stopped(pid):  # else it was continued with us
        os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return status.rpartition(")")[2].split()[0] == "T"
