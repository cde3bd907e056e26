"""Namespaces in which a cluster's programs run, and programs that can be killed and started again.

A `Space` is a PID and a mount namespace. Its first process lives until a pipe from this process ends, so when
this process dies, however that happens, the kernel ends everything in the space: servers, containers, their
children.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.cluster.machine import cgroups
from tests.cluster.machine.errors import ClusterError, until

ROOT = Path(__file__).resolve().parents[3]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TAIL_LINES = 15
_START_S = 30


class Space:
    """A PID and a mount namespace; `setup` is the shell script that mounts what is different in it.

    With `cgroup` it has a cgroup namespace too, whose root is the group of that name.
    """

    def __init__(self, name: str, *, setup: str, init: Path, log: Path, cgroup: str = "") -> None:
        self.name = name
        self.setup = setup
        self.programs: dict[str, Program] = {}
        self._init = init
        self._log = log
        self._cgroup = cgroup
        self._outer: subprocess.Popen[bytes] | None = None
        self._first = 0

    @property
    def first_pid(self) -> int:
        """The process id, on this machine, of the space's first process."""
        if self._outer is None:
            raise ClusterError(f"space {self.name}: not started")
        return self._first

    def begin(self) -> None:
        """Make the namespaces. Nothing runs in them yet but their first process.

        Raises:
            ClusterError: The kernel refused, or a mount in `setup` failed; with what was said about it.
        """
        script = f"set -eu\nmount --make-rprivate /\nmount -t proc proc /proc\n{self.setup}\n"
        script += 'mount --make-rshared /\nexec "$0" --stdin'
        command: list[str | Path] = ["sh", "-c", script, self._init]
        if self._cgroup:
            enter = f'set -eu\n{cgroups.enter(self._cgroup)}\nexec unshare --cgroup "$@"'
            command = ["sh", "-c", enter, "sh", *command]
        with self._log.open("ab") as log:
            self._outer = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={"PATH": _PATH},
                start_new_session=True,
            )
        assert self._outer.stdout is not None
        if self._outer.stdout.readline() != b"up\n":
            self._outer.kill()
            self._outer.wait()
            said = "\n".join(_last_lines(self._log))
            raise ClusterError(f"space {self.name}: could not be made; {self._log} ends:\n{said}")
        self._first = _only_child(self._outer.pid)

    def end(self) -> None:
        """Kill everything in the space, and wait until it is gone. `begin` makes it anew."""
        if self._outer is None:
            return
        assert self._outer.stdin is not None
        assert self._outer.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        self._outer.stdin.close()
        self._outer.wait(timeout=_START_S)
        self._outer.stdout.close()
        self._outer = None
        for program in self.programs.values():
            program.forget()

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` in the space."""
        target = ["--target", str(self.first_pid), "--mount", "--pid"]
        if self._cgroup:
            target.append("--cgroup")
        return ["nsenter", *target, f"--wd={ROOT}", "--", *map(str, argv)]

    def joined(self, argv: Sequence[str | Path]) -> list[str | Path]:
        """The command line that, in the space, runs `argv` in the space's control group."""
        return ["sh", "-c", cgroups.JOIN, "sh", *argv] if self._cgroup else list(argv)

    def run(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout and wait for it, with nothing but PATH, HOME and `env` set.

        Raises:
            ClusterError: It failed and `check` is true; with what it wrote.
        """
        done = subprocess.run(
            self.inside(argv),
            env=_environment(env),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            command = " ".join(map(str, argv))
            raise ClusterError(
                f"{self.name}: '{command}' ended with {done.returncode}: {done.stderr}{done.stdout}"
            )
        return done

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> Program:
        """Start a program that goes on by itself; it writes to `log`, or NAME.log beside the others."""
        program = Program(self, name, argv, env=env, log=log or self._log.with_name(f"{name}.log"))
        if name in self.programs and self.programs[name].running:
            raise ClusterError(f"{self.name}: a program '{name}' runs already; give this one another name")
        self.programs[name] = program
        program.start()
        return program


class Program:
    """A program in a space: started, killed, started again, with one log for all its lives."""

    def __init__(
        self, space: Space, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str] | None, log: Path
    ) -> None:
        self.name = name
        self.argv = [str(each) for each in argv]
        self.env = dict(env or {})
        self.log_path = log
        self.ready: Callable[[], object] | None = None
        self._space = space
        self._outer: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @property
    def pid(self) -> int:
        """Its process id on this machine (its own namespace has another one)."""
        if not self.running:
            raise ClusterError(f"{self.name}: does not run")
        return self._pid

    @property
    def running(self) -> bool:
        return self._outer is not None and self._outer.poll() is None

    @property
    def returncode(self) -> int | None:
        """What it ended with, negative for a signal; None while it runs or before it was started."""
        return self._outer.poll() if self._outer else None

    def start(self) -> None:
        if self.running:
            raise ClusterError(f"{self.name}: runs already, with pid {self._pid}")
        with self.log_path.open("ab") as log:
            self._outer = subprocess.Popen(
                self._space.inside(self._space.joined(self.argv)),
                env=_environment(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid = _only_child(self._outer.pid, died=lambda: not self.running)

    def wait_ready(self, *, timeout_s: float = 90) -> None:
        """Wait until its `ready` says so, if it has one.

        Raises:
            ClusterError: It ended, or is not ready in time; with the last lines of its log.
        """
        if self.ready is None:
            return
        ready = self.ready

        def ask() -> bool:
            if not self.running:
                raise ClusterError(f"{self.name}: ended with {self.returncode}\n{self.log_tail()}")
            return bool(ready())

        try:
            until(f"{self.name}: ready", ask, timeout_s=timeout_s)
        except ClusterError as error:
            if self.running:
                raise ClusterError(f"{error}\n{self.log_tail()}") from error
            raise

    def kill(self, number: int = signal.SIGKILL, *, timeout_s: float = 30) -> None:
        """Send a signal, SIGKILL unless said otherwise, and wait for the end, if it runs at all."""
        if self._outer is None:
            return
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)
        try:
            self._outer.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"{self.name}: lives {timeout_s:g} s after signal {number}\n{self.log_tail()}"
            ) from None

    def stop(self, *, timeout_s: float = 30) -> None:
        """Ask it to end (SIGTERM), and wait for that.

        Raises:
            ClusterError: It lives on after `timeout_s` seconds.
        """
        self.kill(signal.SIGTERM, timeout_s=timeout_s)

    def restart(self) -> None:
        """Kill it, start it again, wait until it is ready."""
        self.kill()
        self.start()
        self.wait_ready()

    def forget(self) -> None:
        """Its space is gone, and it is with it."""
        if self._outer is not None:
            self._outer.wait(timeout=_START_S)

    def log(self) -> str:
        """All that it wrote so far, in all its lives."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self) -> str:
        return f"{self.log_path} ends:\n" + "\n".join(_last_lines(self.log_path))


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    return {"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **(env or {})}


def _last_lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if path.exists() else []


def _only_child(pid: int, *, died: Callable[[], bool] = lambda: False) -> int:
    """The child of `nsenter` or `unshare`, which starts the program proper; 0 if that has ended already."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := children.read_text().split():
                return int(found[0])
        if died():
            return 0
        time.sleep(0.002)
    raise ClusterError(f"process {pid}: started nothing in {_START_S} s")
