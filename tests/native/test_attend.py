"""A program that vcuda attends behaves as if nobody stood between it and whoever started it."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, eventually, need

ATTEND = """
import os, sys
from vcuda import attend
with attend.signals_held() as mask:
    status = attend.run(sys.argv[1:], os.environ, mask)
attend.end_like(status)
"""
TELL = r"""
import os, signal, sys, time
def tell(number, _):
    os.write(1, f"{signal.Signals(number).name}\n".encode())  # print cannot be interrupted by itself
for name in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH", "CONT", "ALRM"):
    signal.signal(getattr(signal, "SIG" + name), tell)
signal.signal(signal.SIGRTMIN, lambda *_: sys.exit(7))
os.write(1, f"{os.getpid()}\n".encode())
while True:
    time.sleep(60)
"""
WAIT_SECONDS = 20


def attended(*command: str) -> list[str]:
    return [sys.executable, "-c", ATTEND, *command]


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start an attended program in a process group of its own; what still runs of it at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*command: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            attended(*command),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            **options,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def gone(pid: int) -> bool:
    """Whether a process has ended (it may still be a zombie that nobody has collected)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 130, 255])
def test_exit_code_is_passed_on(code: int, start: Start) -> None:
    assert start("sh", "-c", f"exit {code}").wait(WAIT_SECONDS) == code


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT", "SIGSEGV", "SIGABRT", "SIGPIPE", "SIGUSR1"])
def test_program_that_ended_by_a_signal_ends_us_by_it(name: str, start: Start, tmp_path: Path) -> None:
    process = start("sh", "-c", f"ulimit -c 0; kill -{name.removeprefix('SIG')} $$", cwd=tmp_path)
    assert process.wait(WAIT_SECONDS) == -signal.Signals[name]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT", "SIGALRM"]
)
def test_signal_sent_to_us_reaches_the_program(name: str, start: Start) -> None:
    process = start(sys.executable, "-c", TELL)
    assert int(line(process)) != process.pid
    process.send_signal(signal.Signals[name])
    assert line(process) == name
    process.send_signal(signal.SIGRTMIN)
    assert process.wait(WAIT_SECONDS) == 7


def test_signal_that_comes_while_the_program_is_being_started_is_not_lost() -> None:
    early = """
import os, signal, sys
from vcuda import attend
with attend.signals_held() as mask:
    os.kill(os.getpid(), signal.SIGTERM)
    status = attend.run(["sleep", "60"], os.environ, mask)
attend.end_like(status)
"""
    process = subprocess.run([sys.executable, "-c", early], cwd=ROOT, timeout=WAIT_SECONDS, check=False)
    assert process.returncode == -signal.SIGTERM


def test_program_has_the_signal_mask_and_dispositions_that_it_would_have_without_us(start: Start) -> None:
    command = ("grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status")
    through = start(*command).communicate(timeout=WAIT_SECONDS)[0]
    without = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert through == without


def test_ignored_signal_stays_ignored_as_under_nohup(start: Start) -> None:
    def ignore_hangup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start("sh", "-c", "echo $$; sleep 60", preexec_fn=ignore_hangup)
    line(process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_SECONDS) == -signal.SIGTERM


def test_killing_us_kills_the_program(start: Start) -> None:
    process = start("sh", "-c", "echo $$; exec sleep 60")
    pid = int(line(process))
    process.kill()
    process.wait()
    assert eventually(lambda: gone(pid))


def test_program_stopped_from_outside_goes_on_when_it_is_continued(start: Start) -> None:
    process = start("sh", "-c", "echo $$; read line; exit 3", stdin=subprocess.PIPE)
    pid = int(line(process))
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
    process.communicate("go\n", timeout=WAIT_SECONDS)
    assert process.returncode == 3


def test_open_files_are_the_programs_as_they_were_ours(start: Start) -> None:
    read, write = os.pipe()
    process = start("sh", "-c", f"echo through > /dev/fd/{write}", pass_fds=(write,))
    os.close(write)
    assert process.wait(WAIT_SECONDS) == 0
    assert os.read(read, 100) == b"through\n"
    os.close(read)


def test_program_that_ignores_the_end_of_its_children_has_its_status_passed_on(start: Start) -> None:
    def ignore_children() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    assert start("sh", "-c", "exit 5", preexec_fn=ignore_children).wait(WAIT_SECONDS) == 5


PROMPT = "shell> "


class Terminal:
    """A shell in a terminal, and somebody who types."""

    def __init__(self, shell: Sequence[str]) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execvpe(
                shell[0], shell, {**os.environ, "PS1": PROMPT, "TERM": "dumb", "HISTFILE": "/dev/null"}
            )
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> None:
        """Wait until `text` was printed after all that was expected before."""
        until = time.monotonic() + WAIT_SECONDS
        while text not in self._seen:
            assert time.monotonic() < until, f"{text!r} not in {self._seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._seen += os.read(self._master, 4096).decode(errors="replace")
        self._seen = self._seen.partition(text)[2]

    def close(self) -> None:
        os.close(self._master)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    need("bash")
    (tmp_path / "attend.py").write_text(ATTEND)
    made = Terminal(["bash", "--norc", "--noprofile", "--noediting", "-i"])
    made.type(f"export PYTHONPATH={ROOT}; attend='{sys.executable} {tmp_path}/attend.py'; stty -echo\n")
    made.type("echo rea''dy\n")
    made.expect("ready")
    yield made
    made.close()


COUNT = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: print("key", flush=True))
print("up", flush=True)
while True:
    time.sleep(0.1)
"""
READ = """
import os, signal, sys
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"goes on\\n"))
print("up", flush=True)
print("got", sys.stdin.readline(), flush=True)
sys.exit(4)
"""


def test_key_that_interrupts_reaches_the_program_once(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text(COUNT)
    terminal.type(f"$attend {sys.executable} {tmp_path}/count.py\n")
    terminal.expect("up")
    terminal.type("\x03")
    terminal.expect("key")
    time.sleep(0.3)  # a second one would come now
    terminal.type("\x1c")  # the program has not caught SIGQUIT
    terminal.type("echo status=$?\n")
    terminal.expect("status=131")
    assert "key" not in terminal._seen


def test_interrupted_program_ends_as_without_us(terminal: Terminal) -> None:
    terminal.type("$attend sh -c 'echo up; exec sleep 60'\n")
    terminal.expect("up")
    terminal.type("\x03")
    terminal.type("echo status=$?\n")
    terminal.expect("status=130")


def test_key_that_stops_gives_the_terminal_back_and_fg_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "read.py").write_text(READ)
    terminal.type(f"$attend {sys.executable} {tmp_path}/read.py\n")
    terminal.expect("up")
    for _ in range(2):
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect(PROMPT)  # not before: a shell drops what is typed while it takes the terminal back
        terminal.type("fg\n")
        terminal.expect("goes on")
    terminal.type("this\n")
    terminal.expect("got this")
    terminal.type("echo status=$?\n")
    terminal.expect("status=4")


def test_program_in_the_background_that_reads_is_stopped_and_fg_goes_on(terminal: Terminal) -> None:
    terminal.type("$attend sh -c 'read word; echo got $word' &\n")
    time.sleep(0.5)
    terminal.type("\n")
    terminal.expect("Stopped")
    terminal.type("fg\n")
    terminal.expect("attend")
    terminal.type("that\n")
    terminal.expect("got that")
