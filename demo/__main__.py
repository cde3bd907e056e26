"""`make demo`: unmodified clients in shares of one simulated V100, watched, and each claim measured.

The shares fill up one after another and stay full; those still to come, and those that have freed again,
go on working. So every share meets its limit while the others are busy. Exits with 1 if any claim does not
hold.
"""

import sys
import time

from rich.console import Console

from demo import programs
from demo.machine import Machine
from demo.proof import Proof, equal, summary, within_page
from demo.shares import ClientError, Plan, Share, python, refused, start
from demo.table import Board
from vcuda.ledger import Kind
from vcuda.units import format_size

GIB = 2**30
PLAIN_WIDTH = 120
"""Where there is no terminal that has a width."""
MODEL = "V100-SXM2-16GB"
SHOWN_SECONDS = 0.6
"""How long each step is left on the screen, with the clients at work."""
TOO_MUCH = 4 * GIB
"""One share more than the card has room for."""
OVERHEAD = (Kind.CONTEXT.name, Kind.MODULE.name)


def plans() -> list[Plan]:
    """The shares; one with pycuda where it could be built."""
    sizes = [
        Plan(name="c", memory_bytes=5 * GIB, command=(str(programs.driver_api()),)),
        Plan(name="bindings", memory_bytes=4 * GIB, command=python("with_bindings.py")),
        Plan(name="numba", memory_bytes=3 * GIB, command=python("with_numba.py")),
    ]
    if programs.pycuda():
        sizes.append(Plan(name="pycuda", memory_bytes=2 * GIB, command=python("with_pycuda.py")))
    return sizes


def main() -> int:
    """Run the demo; the exit status."""
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    began = time.monotonic()
    with Machine(MODEL) as machine:
        shares: list[Share] = []
        try:
            shares += [start(plan, machine) for plan in plans()]
            with Board(console, shares, f"one simulated {MODEL}") as board:
                proofs = _story(machine, shares, board)
        except ClientError as error:
            console.print(f"demo: {error}", style="bold red", markup=False)
            return 1
        finally:
            for share in shares:
                share.kill()
    console.print(summary(proofs))
    failed = sum(not proof.holds for proof in proofs)
    console.print(
        f"{len(proofs)} claims, {failed} failed; {len(shares)} clients, {time.monotonic() - began:.0f} s",
        markup=False,
    )
    if all(share.plan.name != "pycuda" for share in shares):
        console.print("pycuda is not among the clients: it could not be built here")
    return 1 if failed else 0


def _story(machine: Machine, shares: list[Share], board: Board) -> list[Proof]:
    proofs: list[Proof] = []
    names = {share.plan.name: share for share in shares}

    board.step("clients start, and compile their kernels")
    for share in shares:
        ready = share.answer("ready")
        share.client, share.pid, share.state = ready["client"], ready["pid"], "working"
        proofs.append(
            equal(
                share.plan.name,
                "sees its share as the card",
                expected=share.plan.memory_bytes,
                measured=ready["total"],
            )
        )
        board.show(machine.uses())
    _watch(machine, board)

    status, message = refused(TOO_MUCH, machine)
    proofs.append(
        Proof(
            share="one more",
            claim="a share that does not fit is refused",
            expected=f"{format_size(TOO_MUCH)} asked: refused",
            measured=message.splitlines()[-1] if message else f"exit status {status}",
            holds=status != 0 and "free on card" in message,
        )
    )

    for share in shares:
        proofs += _fill(machine, share, [other for other in shares if other is not share], board)

    board.step("every share is full; the driver counts")
    uses, driver = machine.uses(), machine.driver_used()
    board.show(uses)
    board.keep()
    for name, share in names.items():
        proofs.append(
            equal(
                name,
                "ledger and driver agree",
                expected=driver.get(share.pid),
                measured=uses[name].used_bytes,
            )
        )
    limits = sum(share.plan.memory_bytes for share in shares)
    proofs.append(
        Proof(
            share="card",
            claim="all shares full at once: the driver's count",
            expected=f"<= {limits:,}",
            measured=f"{sum(driver.values()):,}",
            holds=sum(driver.values()) <= limits,
        )
    )
    _watch(machine, board)

    for share in shares:
        board.step(f"{share.plan.name} frees, and works on")
        freed = share.ask("free", "freed")
        share.state = "working"
        proofs.append(
            equal(share.plan.name, "works on after it freed", expected=True, measured=freed["again"])
        )
        _watch(machine, board)
    for share in shares:
        share.tell("end")
        ended = share.answer("ended")
        uses = machine.uses()
        proofs.append(
            equal(
                share.plan.name,
                "data that came back wrong",
                expected=0,
                measured=ended["wrong"] + share.spoiled,
            )
        )
        status = share.end()
        share.state = "ended" if status == 0 else f"exit {status}"
        proofs.append(equal(share.plan.name, "exit status", expected=0, measured=status))
        proofs.append(equal(share.plan.name, "said on its stderr", expected="", measured=share.unexpected()))
        board.show(uses)
    board.step("done")
    proofs.append(
        equal("card", "held by anyone afterwards", expected=0, measured=sum(machine.driver_used().values()))
    )
    return proofs


def _fill(machine: Machine, share: Share, others: list[Share], board: Board) -> list[Proof]:
    """Let one share run into its limit while the others go on; what was measured."""
    name = share.plan.name
    board.step(f"{name} allocates until it is refused; the others go on")
    before = {other.plan.name: other.ask("tell", "told") for other in others}
    refused_before = machine.uses()[name].refused
    share.state = "filling"
    share.tell("fill")
    while share.answers.empty() and share.process.poll() is None:
        board.show(machine.uses())
        time.sleep(0.1)
    filled = share.answer("filled")
    share.state, share.spoiled = "full", filled["spoiled"]
    use = machine.uses()[name]
    limit = share.plan.memory_bytes
    overhead = sum(use.by_kind.get(kind, 0) for kind in OVERHEAD)
    _watch(machine, board)
    after = {other.plan.name: other.ask("tell", "told") for other in others}
    busy = [other.plan.name for other in others if other.state == "working"]
    stuck = [each for each in busy if after[each]["worked"] <= before[each]["worked"]]
    spoiled = [each for each in after if after[each]["wrong"]]
    return [
        within_page(
            name, "CUDA_ERROR_OUT_OF_MEMORY at its limit, to the page", limit=limit, used=use.used_bytes
        ),
        equal(
            name,
            "what it holds, and its contexts and modules",
            expected=use.used_bytes,
            measured=filled["held"] + overhead,
        ),
        equal(name, "free, as it sees it", expected=limit - use.used_bytes, measured=filled["free"]),
        Proof(
            share=name,
            claim="refusals in its ledger",
            expected="> 0",
            measured=str(use.refused - refused_before),
            holds=use.refused > refused_before,
        ),
        Proof(
            share=name,
            claim="meanwhile its neighbours",
            expected="work on, data intact",
            measured=_neighbours(busy, stuck, spoiled),
            holds=not stuck and not spoiled,
        ),
    ]


def _neighbours(busy: list[str], stuck: list[str], spoiled: list[str]) -> str:
    if stuck or spoiled:
        return f"stuck: {', '.join(stuck) or 'none'}; data wrong: {', '.join(spoiled) or 'none'}"
    return f"{', '.join(busy)} worked on" if busy else "all full, data intact"


def _watch(machine: Machine, board: Board) -> None:
    """Leave the clients to their work for a moment, and show it."""
    until = time.monotonic() + SHOWN_SECONDS
    while time.monotonic() < until:
        board.show(machine.uses())
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
