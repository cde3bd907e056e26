"""`vcuda run` from outside: statuses, signals, shares that meet on one machine, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native import nvidia_driver
from tests.support import CARD_USER, GIB, MIB, SHIM, SIMULATOR, Commands, answer, card_user, eventually
from vcuda import grant as grants
from vcuda.units import format_size

MODEL = "V100-SXM2-16GB"
SIMULATED = f"vcuda run: using a simulated {MODEL}\n"
WAIT_SECONDS = 30


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exit_status_is_the_commands(code: int, user: Commands) -> None:
    done = user.run("--memory", "1GiB", "--", "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", SIMULATED)
    assert user.left() == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGSEGV"])
def test_command_that_dies_by_a_signal_ends_us_by_it(name: str, user: Commands) -> None:
    done = user.run("--memory", "1GiB", "--", "sh", "-c", f"ulimit -c 0; kill -{name.removeprefix('SIG')} $$")
    assert done.returncode == -signal.Signals[name]
    assert user.left() == []


def test_output_and_input_are_the_commands(user: Commands) -> None:
    process = user.start("--memory", "1GiB", "--", "sh", "-c", "cat; echo aside >&2", stderr=subprocess.PIPE)
    out, err = process.communicate("through\n", timeout=WAIT_SECONDS)
    assert (out, err) == ("through\n", SIMULATED + "aside\n")


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["no-such-command"], 127, "no-such-command: command not found; is it on PATH?"),
        (["/nowhere/program"], 127, "/nowhere/program: no such file, or its interpreter is missing"),
        (["/etc/passwd"], 126, "/etc/passwd: not executable; see its permissions"),
        (["/"], 126, "/: not executable; see its permissions"),
    ],
)
def test_command_that_cannot_be_started_is_told_as_a_shell_would(
    command: list[str], status: int, message: str, user: Commands
) -> None:
    done = user.run("--memory", "1GiB", "--", *command)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"{SIMULATED}vcuda run: {message}\n")
    assert user.left() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "3x", "--", "true"], "invalid value for '--memory': '3x' is not a size"),
        (["--cores", "0", "--", "true"], "invalid value for '--cores': '0' is out of range"),
        (["--cores", "101", "--", "true"], "invalid value for '--cores': '101' is out of range"),
        (["--cores", "-5", "--", "true"], "invalid value for '--cores': '-5' is not a percentage; write it"),
        (["--cores", "nan", "--", "true"], "invalid value for '--cores': 'nan' is not a percentage; write"),
        (["--cores", "inf", "--", "true"], "invalid value for '--cores': 'inf' is not a percentage; write"),
        (["--cores-max", "60", "--", "true"], "a ceiling of 60% without a share; give one with --cores"),
        (
            ["--cores", "30", "--cores-max", "20", "--", "true"],
            "a ceiling of 20% is below the share of 30%; raise --cores-max or lower --cores",
        ),
        (
            ["--cores", "30", "--cores-max", "0", "--", "true"],
            "invalid value for '--cores-max': '0' is out of range",
        ),
        (["--priority", "low", "--", "true"], "a priority is that of a core share; give one with --cores"),
        (
            ["--cores", "1", "--priority", "top", "--", "true"],
            "invalid value for '--priority': 'top' is no priority; it is one of low, normal, high",
        ),
        (["--memory", "0", "--", "true"], "invalid value for '--memory': '0' is out of range"),
        (["--name", "a\nb", "--", "true"], "invalid value for '--name': 'a\\nb' is not 1 to 63 printable"),
        (["--memory", "1GiB"], "missing argument 'COMMAND [ARGUMENT...]'"),
        (["--colour", "red", "--", "true"], "no such option"),
    ],
)
def test_wrong_command_line_is_told_in_one_line(arguments: list[str], message: str, user: Commands) -> None:
    done = user.vcuda("run", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"vcuda run: {message}")
    assert done.stderr.endswith("; see 'vcuda run --help'\n")
    assert done.stderr.count("\n") == 1


def test_unknown_model_is_told_in_one_line(user: Commands) -> None:
    done = user.run("--", "true", sim="V9000")
    assert done.returncode == 1
    assert done.stderr.startswith("vcuda run: --sim V9000: ")
    assert done.stderr.count("\n") == 1
    assert user.left() == []


def test_options_end_where_the_command_begins(user: Commands) -> None:
    assert user.run("--memory", "1GiB", "echo", "--memory", "-n").stdout == "--memory -n\n"
    assert user.run("--memory", "1GiB", "--", "echo", "--", "--help").stdout == "-- --help\n"


def test_environment_leads_to_the_share_and_else_is_the_callers(user: Commands) -> None:
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    command = ["--memory", "1GiB", "--name", "mine", "--", sys.executable, "-c", script]
    seen = json.loads(
        user.run(*command, MARK="kept", LD_PRELOAD="libm.so.6", CUDA_VISIBLE_DEVICES="5").stdout
    )
    changed = {name: value for name, value in seen.items() if user.env.get(name) != value}
    share = Path(changed.pop("VCUDA_GRANT_DIR"))
    assert share.parent == user.runtime / "shares"
    assert changed.pop("CUDA_VISIBLE_DEVICES").startswith("GPU-")
    changed.pop("LC_CTYPE", None)  # Python's own
    assert changed == {
        "MARK": "kept",
        "LD_PRELOAD": f"{SHIM} libm.so.6",
        "LD_LIBRARY_PATH": str(SIMULATOR),
        "SIMGPU_DIR": str(user.runtime / "sim" / MODEL),
        "SIMGPU_CARDS": MODEL,
    }


def test_grant_says_what_was_asked_and_what_a_context_costs(user: Commands) -> None:
    process = user.start("--memory", "3GiB", "--cores", "12.5", "--name", "mine", "--", "cat")
    assert eventually(lambda: list(user.runtime.glob("shares/*/share.json")))
    (share,) = user.shares()
    grant = grants.read(Path(share["directory"]) / "grant")
    (card,) = grant.cards
    assert (grant.name, card.uuid, card.memory_bytes) == ("mine", share["card"]["uuid"], 3 * GIB)
    assert (card.core_ppm, card.core_max_ppm, card.whole) == (125_000, 125_000, False)
    assert card.priority == 0
    assert card.context_bytes > 0
    assert card.page_bytes == 2 * MIB
    process.communicate(timeout=WAIT_SECONDS)


def test_grant_has_the_ceiling_and_the_priority_that_were_asked(user: Commands) -> None:
    asked = ["--cores", "30", "--cores-max", "60", "--priority", "low"]
    process = user.start("--memory", "1GiB", *asked, "--", "cat")
    assert eventually(lambda: list(user.runtime.glob("shares/*/share.json")))
    (share,) = user.shares()
    (card,) = grants.read(Path(share["directory"]) / "grant").cards
    assert (card.core_ppm, card.core_max_ppm, card.priority) == (300_000, 600_000, -1)
    assert (share["core_percent"], share["core_max_percent"], share["priority"]) == (30, 60, "low")
    process.communicate(timeout=WAIT_SECONDS)


def test_program_sees_the_share_as_the_card_and_is_refused_beyond_it(user: Commands) -> None:
    process = user.start("--memory", "1GiB", "--", *card_user(100 * MIB))
    _, status, free, total = answer(process)
    assert (status, total) == (0, GIB)
    (share,) = user.shares()
    assert share["used_bytes"] == GIB - free
    (held,) = share["processes"]
    assert held["bytes"]["linear"] == 100 * MIB
    process.communicate(timeout=WAIT_SECONDS)

    process = user.start("--memory", "1GiB", "--", *card_user(GIB))
    _, status, _, _ = answer(process)
    assert status == 2
    (share,) = user.shares()
    assert share["refused"] == 1
    process.communicate(timeout=WAIT_SECONDS)
    assert user.left() == []


def test_several_runs_share_a_card_until_it_is_full(user: Commands) -> None:
    first = user.start("--memory", "9GiB", "--name", "first", "--", *card_user(GIB))
    second = user.start("--memory", "4GiB", "--name", "second", "--", *card_user(GIB))
    assert (answer(first)[1], answer(second)[1]) == (0, 0)
    (card,) = user.cards()
    free = card["usable_bytes"] - 13 * GIB
    assert (card["promised_bytes"], card["free_bytes"], card["shares"]) == (13 * GIB, free, 2)
    assert {share["name"] for share in user.shares()} == {"first", "second"}
    assert sum(share["used_bytes"] for share in user.shares()) == card["used_bytes"]

    third = user.run("--memory", "4GiB", "--", "true")
    assert third.returncode == 1
    assert third.stderr == (
        f"{SIMULATED}vcuda run: 4GiB asked, {format_size(free)} free on card 0 ({MODEL}); see 'vcuda cards'\n"
    )
    whole = user.run("--", "true")
    assert whole.returncode == 1
    assert "a whole card asked, card 0 (V100-SXM2-16GB) has 2 shares" in whole.stderr

    second.communicate(timeout=WAIT_SECONDS)
    assert user.run("--memory", "4GiB", "--", "true").returncode == 0
    first.communicate(timeout=WAIT_SECONDS)
    assert user.left() == []


def test_shares_go_to_the_card_that_was_named_and_the_program_sees_that_card_first(user: Commands) -> None:
    two = f"{MODEL},T4"
    process = user.start("--memory", "1GiB", "--card", "1", "--", *card_user(MIB), sim=two)
    assert answer(process)[1] == 0
    cards = user.cards(two)
    assert [card["shares"] for card in cards] == [0, 1]
    assert [card["used_bytes"] > 0 for card in cards] == [False, True]
    by_uuid = user.run("--memory", "1GiB", "--card", cards[0]["uuid"], "--", "true", sim=two)
    assert by_uuid.returncode == 0
    missing = user.run("--memory", "1GiB", "--card", "7", "--", "true", sim=two)
    assert missing.returncode == 1
    assert "card '7': no such card; this machine has 0 (GPU-" in missing.stderr
    process.communicate(timeout=WAIT_SECONDS)


def test_whole_card_is_metered_not_limited(user: Commands) -> None:
    process = user.start("--", *card_user(GIB))
    assert answer(process)[1] == 0
    (share,) = user.shares()
    assert share["whole"]
    assert user.run("--memory", "1", "--", "true").returncode == 1
    process.communicate(timeout=WAIT_SECONDS)


def test_shares_started_at_the_same_instant_never_exceed_the_card(user: Commands) -> None:
    processes = [user.start("--memory", "3GiB", "--", "cat") for _ in range(8)]
    assert eventually(
        lambda: (
            sum(process.poll() is not None for process in processes)
            + len(list(user.runtime.glob("shares/*/share.json")))
            == 8
        )
    )
    assert sum(process.poll() == 1 for process in processes) == 3
    assert len(user.shares()) == 5
    for process in processes:
        process.communicate(timeout=WAIT_SECONDS)
    assert user.left() == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_signal_ends_the_program_and_nothing_is_left(name: str, user: Commands) -> None:
    process = user.start("--memory", "1GiB", "--", *card_user(MIB))
    answer(process)
    process.send_signal(signal.Signals[name])
    assert process.wait(WAIT_SECONDS) == -signal.Signals[name]
    assert user.left() == []


def test_killed_run_takes_its_program_along_and_the_next_command_cleans_up(user: Commands) -> None:
    process = user.start("--memory", "10GiB", "--", *card_user(GIB))
    pid = answer(process)[0]
    process.kill()
    process.wait()
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert user.left() != []
    assert user.run("--memory", "10GiB", "--", "true").returncode == 0
    assert user.left() == []


def test_process_that_a_killed_run_leaves_behind_stays_in_its_share(user: Commands) -> None:
    script = f"{sys.executable} -c '{CARD_USER}' {GIB} <&3 & wait"
    read, write = os.pipe()
    process = user.start(
        "--memory", "10GiB", "--", "sh", "-c", script.replace("<&3", f"</dev/fd/{read}"), pass_fds=(read,)
    )
    pid = answer(process)[0]
    process.kill()
    process.wait()
    (share,) = user.shares()
    assert [each["pid"] for each in share["processes"]] == [pid]
    assert user.run("--memory", "10GiB", "--", "true").returncode == 1
    os.close(read)
    os.close(write)
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert user.run("--memory", "10GiB", "--", "true").returncode == 0
    assert user.left() == []


def test_run_inside_a_run_makes_a_share_of_its_own_and_preloads_once(user: Commands) -> None:
    inner = [sys.executable, "-P", "-m", "vcuda", "run", "--sim", MODEL, "--memory", "2GiB", "--"]
    done = user.run("--memory", "1GiB", "--", *inner, "sh", "-c", 'echo "$LD_PRELOAD"')
    assert done.stdout == f"{SHIM}\n"
    assert user.left() == []


def test_machine_in_a_directory_of_the_users_own_is_used_and_stays(user: Commands, tmp_path: Path) -> None:
    own = tmp_path / "own"
    process = user.run("--memory", "1GiB", "--", "sh", "-c", "echo $SIMGPU_DIR", SIMGPU_DIR=str(own))
    assert process.stdout == f"{own}\n"
    assert own.exists()
    assert user.left() == []


def test_driver_that_the_dynamic_linker_finds_is_used_without_a_word(user: Commands, tmp_path: Path) -> None:
    variables = {
        "LD_LIBRARY_PATH": str(SIMULATOR),
        "SIMGPU_DIR": str(tmp_path / "found"),
        "SIMGPU_CARDS": "T4",
    }
    command = ["sh", "-c", 'echo "$LD_LIBRARY_PATH"']
    done = user.vcuda("run", "--memory", "1GiB", "--", *command, **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{SIMULATOR}\n", "")


def test_machine_without_a_driver_gets_the_simulated_one_and_is_told_so(user: Commands) -> None:
    if json.loads(user.vcuda("cards", "--json").stdout)["cards"][0]["simulated"] is False:
        pytest.skip("this machine has a card")
    done = user.vcuda("run", "--memory", "1GiB", "--", "true")
    assert done.returncode == 0
    assert done.stderr.endswith(f": using a simulated {MODEL}\n")
    assert done.stderr.startswith("vcuda run: ")


def test_directory_of_somebody_else_is_refused(user: Commands) -> None:
    user.runtime.mkdir(mode=0o777)
    user.runtime.chmod(0o777)
    done = user.run("--memory", "1GiB", "--", "true")
    assert done.returncode == 1
    assert done.stderr == (
        f"vcuda run: {user.runtime}: is not a private directory of this user; "
        "remove it, or set VCUDA_RUNTIME_DIR\n"
    )


def test_calibration_is_measured_once_and_damage_to_its_cache_does_no_harm(
    user: Commands, tmp_path: Path
) -> None:
    user.run("--memory", "1GiB", "--", "true")
    cache = tmp_path / "cache" / "vcuda" / "calibration.json"
    content = cache.read_text()
    (measured,) = json.loads(content).values()
    assert measured["context_bytes"] > 0
    for damage in ("", "[]", '{"a": 1}', '{"a": {"context_bytes": null}}'):
        cache.write_text(damage)
        assert user.run("--memory", "1GiB", "--", "true").returncode == 0
        assert cache.read_text() == content


def test_rich_is_not_loaded_to_run_a_program(user: Commands) -> None:
    trace = user.run("--memory", "1GiB", "--", "true", PYTHONPROFILEIMPORTTIME="1").stderr
    assert "vcuda.attend" in trace
    assert "rich" not in trace


def test_real_driver_without_a_card_is_told_and_the_simulated_one_taken(user: Commands) -> None:
    try:
        driver = nvidia_driver.real_driver()
    except nvidia_driver.Unavailable as reason:
        pytest.skip(f"NVIDIA's driver cannot be had: {reason}")
    done = user.vcuda(
        *("run", "--memory", "1GiB", "--", "sh", "-c", "echo $LD_LIBRARY_PATH"),
        LD_LIBRARY_PATH=str(driver.libcuda.parent),
    )
    assert done.stdout == f"{SIMULATOR}:{driver.libcuda.parent}\n"
    assert done.stderr == f"vcuda run: {driver.libcuda.resolve()} finds no GPU: using a simulated {MODEL}\n"
