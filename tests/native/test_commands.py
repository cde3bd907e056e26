"""cards, ps, top and doctor over shares that are in use."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import (
    BUILD,
    GIB,
    MIB,
    SHIM,
    SIMULATOR,
    Commands,
    answer,
    card_user,
    driver_used,
    eventually,
)
from vcuda.ledger import Kind

MODEL = "V100-SXM2-16GB"
CLIENTS = BUILD / "clients"


@pytest.fixture
def share(user: Commands) -> subprocess.Popen[str]:
    """A share of 2 GiB in which one process holds 100 MiB."""
    process = user.start("--memory", "2GiB", "--cores", "30", "--name", "mine", "--", *card_user(100 * MIB))
    process.pid_inside, process.status, *_ = answer(process)  # pyright: ignore[reportAttributeAccessIssue]
    return process


def test_ps_shows_what_the_driver_counts(user: Commands, share: subprocess.Popen[str]) -> None:
    (shown,) = user.shares()
    (process,) = shown["processes"]
    machine = {**user.env, "LD_LIBRARY_PATH": str(SIMULATOR), "SIMGPU_DIR": str(user.runtime / "sim" / MODEL)}
    assert driver_used(machine) == {process["pid"]: process["used_bytes"]}
    assert shown["used_bytes"] == process["used_bytes"]
    assert process["bytes"].keys() == {kind.name.lower() for kind in Kind}
    assert process["bytes"]["linear"] == 100 * MIB
    assert process["bytes"]["context"] == process["used_bytes"] - 100 * MIB
    assert process["pid_namespace"] == Path("/proc/self/ns/pid").stat().st_ino
    assert (shown["name"], shown["memory_bytes"], shown["core_percent"]) == ("mine", 2 * GIB, 30)
    assert shown["command"] == card_user(100 * MIB)
    assert shown["run_pid"] == share.pid
    assert shown["card"] == {"uuid": user.cards()[0]["uuid"], "name": MODEL, "simulated": True}
    assert (shown["whole"], shown["refused"], shown["launches"], shown["gpu_ns"]) == (False, 0, 0, 0)
    assert (shown["core_max_percent"], shown["priority"]) == (30, "normal")
    assert shown["limiter"] == {
        "rate_percent": 30,
        "slice_percent": 100,
        "balance_ns": 10_000_000,
        "starved": False,
        "resets": 0,
        "wait_ns": 0,
        "waits": 0,
        "wakeups": 0,
    }
    assert {name: process[name] for name in ("wait_ns", "waits", "wakeups", "owed_ns")} == {
        "wait_ns": 0,
        "waits": 0,
        "wakeups": 0,
        "owed_ns": 0,
    }


def test_ps_is_a_table_that_awk_can_read(user: Commands, share: subprocess.Popen[str]) -> None:
    shown = user.vcuda("ps")
    assert (shown.returncode, shown.stderr) == (0, "")
    head, line, process = shown.stdout.splitlines()
    assert " ".join(head.split()) == (
        "SHARE CARD CORES NOW LIMIT USED GPU TIME LAUNCHES REFUSED PID PROGRAM MEMORY BY KIND"
    )
    assert line.split()[:6] == ["mine", MODEL, "(simulated)", "30%", "30%", "2GiB"]
    assert "linear 100MiB, context " in process
    assert process.split()[4] == str(user.shares()[0]["processes"][0]["pid"])


def test_set_changes_what_is_shown_and_what_is_granted(user: Commands, share: subprocess.Popen[str]) -> None:
    done = user.vcuda("set", "mine", "--cores", "50", "--cores-max", "80", "--priority", "high")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"mine: 50% to 80% of {MODEL}, priority high\n",
        "",
    )
    (shown,) = user.shares()
    assert (shown["core_percent"], shown["core_max_percent"], shown["priority"]) == (50, 80, "high")
    assert user.vcuda("ps").stdout.splitlines()[1].split()[3:6] == ["50-80%", "high", "50%"]
    assert user.cards()[0]["free_core_percent"] == 50
    done = user.vcuda("set", shown["directory"].rpartition("/")[2], "--cores", "90")
    assert done.stdout == f"mine: 90% of {MODEL}, priority high\n"


def test_set_refuses_what_does_not_fit_or_makes_no_sense(
    user: Commands, share: subprocess.Popen[str]
) -> None:
    other = user.start("--memory", "1GiB", "--cores", "40", "--name", "other", "--", "cat")
    plain = user.start("--memory", "1GiB", "--name", "plain", "--", "cat")
    assert eventually(lambda: len(user.shares()) == 3)
    for arguments, status, message in (
        (["mine", "--cores", "70"], 1, f"70% of cores asked, 60% can be had on {MODEL}; see 'vcuda ps'"),
        (["mine", "--cores", "60"], 0, ""),
        (["mine", "--cores", "0"], 2, "invalid value for '--cores': '0' is out of range; cores are above 0"),
        (["mine", "--cores-max", "50"], 1, "a ceiling of 50% is below the share of 60%; raise --cores-max"),
        (["mine"], 2, "nothing to change; give --cores, --cores-max or --priority; see 'vcuda set --help'"),
        (["nobody", "--cores", "1"], 1, "no share is called 'nobody'; there is mine, other, plain"),
        (["plain", "--priority", "low"], 1, "plain has no core share; give it one with --cores"),
    ):
        done = user.vcuda("set", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (status, 1 if status else 0), done.stderr
        assert done.stderr.startswith(f"vcuda set: {message}" if status else "")
    for process in (other, plain):
        process.communicate(timeout=30)


def test_set_leaves_a_whole_card_alone(user: Commands) -> None:
    process = user.start("--name", "all", "--", "cat")
    assert eventually(user.shares)
    done = user.vcuda("set", "all", "--cores", "50")
    assert done.returncode == 1
    assert done.stderr == (
        "vcuda set: all has a whole card, which is not limited; there is nothing to change\n"
    )
    process.communicate(timeout=30)


def test_refused_allocations_of_ended_processes_are_still_told(user: Commands) -> None:
    inner = f"{sys.executable} -c '{card_user(0)[2]}' {2 * GIB} </dev/null; cat"
    process = user.start("--memory", "1GiB", "--", "sh", "-c", inner)
    assert answer(process)[1] == 2
    deadline = time.monotonic() + 30
    while user.shares()[0]["processes"] and time.monotonic() < deadline:
        time.sleep(0.05)
    (shown,) = user.shares()
    assert (shown["processes"], shown["refused"], shown["used_bytes"]) == ([], 1, 0)


def test_without_shares_the_json_is_empty_and_the_table_says_what_to_do(user: Commands) -> None:
    assert user.shares() == []
    for command in ("ps", "top"):
        shown = user.vcuda(command)
        assert (shown.returncode, shown.stdout) == (0, "")
        assert shown.stderr == f"vcuda {command}: there are no shares; start one with 'vcuda run'\n"


def test_cards_shows_what_is_promised_and_what_is_used(user: Commands, share: subprocess.Popen[str]) -> None:
    (card,) = user.cards()
    used = user.shares()[0]["used_bytes"]
    assert card["name"].endswith(MODEL)
    assert (card["simulated"], card["index"], card["shares"], card["whole"]) == (True, 0, 1, False)
    assert (card["promised_bytes"], card["used_bytes"]) == (2 * GIB, used)
    assert card["free_bytes"] == card["usable_bytes"] - 2 * GIB
    assert card["free_core_percent"] == 70
    assert card["usable_bytes"] < card["total_bytes"]
    line = user.vcuda("cards", "--sim", MODEL).stdout.splitlines()[1]
    assert line.split()[:2] == ["0", MODEL]
    assert line.split()[-1] == card["uuid"]


def test_cards_finds_the_simulated_machines_that_have_shares(
    user: Commands, share: subprocess.Popen[str]
) -> None:
    other = user.start("--memory", "1GiB", "--", "cat", sim="T4,T4")
    deadline = time.monotonic() + 30
    while len(user.shares()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    shown = json.loads(user.vcuda("cards", "--json").stdout)["cards"]
    names = [card["name"].split()[-1] for card in shown if card["simulated"]]
    assert sorted(names) == sorted(["T4", "T4", MODEL])
    other.communicate(timeout=30)


def test_top_prints_once_where_there_is_no_terminal(user: Commands, share: subprocess.Popen[str]) -> None:
    shown = user.vcuda("top")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert len(shown.stdout.splitlines()) == 3
    assert "GPU%" in shown.stdout


def test_top_draws_what_a_share_used_of_its_ceiling(user: Commands) -> None:
    process = user.start(
        *("--memory", "1GiB", "--cores", "40", "--name", "busy", "--", str(CLIENTS / "hold"), "16", "busy")
    )
    assert process.stdout is not None
    process.stdout.readline()
    shown = user.vcuda("top", "-n", "4", "--interval", "0.5").stdout
    *_, last = [line for line in shown.splitlines() if line.startswith("busy ")]
    bars = [word for word in last.split() if set(word) <= set("▁▂▃▄▅▆▇█")]
    assert [len(each) for each in bars] == [3]
    assert bars[0][-1] in "▃▄▅▆▇█"
    process.communicate(timeout=30)


def test_top_prints_json_as_often_as_it_is_told(user: Commands, share: subprocess.Popen[str]) -> None:
    shown = user.vcuda("top", "--json", "-n", "3", "--interval", "0.1").stdout
    looks = [json.loads(line) for line in shown.splitlines()]
    assert [[each["name"] for each in look["shares"]] for look in looks] == [["mine"]] * 3
    assert [look["shares"][0]["gpu_percent"] for look in looks] == [None, 0, 0]
    assert looks[0]["time"] < looks[1]["time"] < looks[2]["time"]


def test_doctor_finds_nothing_broken_on_a_simulated_card(user: Commands) -> None:
    done = user.vcuda("doctor", "--sim", MODEL, "--json")
    shown = json.loads(done.stdout)
    checks = {check["name"]: check for check in shown["checks"]}
    assert [check for check in shown["checks"] if check["state"] != "ok"] == []
    assert (done.returncode, shown["ok"]) == (0, True)
    assert list(checks) == [
        *("library", "preload", "directory", "container", "driver", "NVML"),
        *("card 0", "card 0: calibration", "card 0: hooks", "card 0: limit"),
    ]
    assert str(SHIM) in checks["library"]["found"]
    assert user.left() == []


def test_doctor_speaks_to_people_too(user: Commands) -> None:
    done = user.vcuda("doctor", "--sim", MODEL)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == "a program would be limited here"
    assert all(line.startswith("ok  ") for line in lines[:-1])


def test_doctor_says_what_to_do_about_what_is_broken(user: Commands) -> None:
    done = user.vcuda("doctor", "--json", VCUDA_RUNTIME_DIR="/proc/nowhere")
    shown = json.loads(done.stdout)
    broken = [check for check in shown["checks"] if check["state"] == "broken"]
    assert (done.returncode, shown["ok"]) == (1, False)
    assert broken == [
        {
            "name": "directory",
            "state": "broken",
            "found": "/proc/nowhere: cannot be made: No such file or directory",
            "fix": "set VCUDA_RUNTIME_DIR",
        }
    ]


def test_interrupted_top_ends_without_a_word(user: Commands, share: subprocess.Popen[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vcuda", "top", "-n", "1000", "--json"],
        env=user.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize("command", ["cards", "ps", "top", "doctor"])
def test_reader_that_goes_away_is_no_error(command: str, user: Commands) -> None:
    line = f"{sys.executable} -P -m vcuda {command} --help | head -n 1"
    done = subprocess.run(["sh", "-c", line], env=user.env, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"Usage: vcuda {command} [OPTIONS]\n", "")
