"""A small model of the ledger's protocol (docs/decisions/0001-ledger.md), and a walk over its interleavings.

Each step of a process is one access to shared memory or one call of the kernel. At each state the walk lets
every living process take its next step, and kills any one of them, as long as the budget of kills lasts. A
process that the walk does not move for a while is one that is stopped. There are no clocks: a waiter may find
at any time that a lease has run out, as long as the budget of thefts lasts, so that every timing is among
those walked.

`Rules` names the order of steps that the decision calls right; each field can be set wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

FREE = (-1, 0)
NOBODY = -1


@dataclass(frozen=True)
class Rules:
    """What the protocol lives by. All true: as in ledger.c and ledger_slots.c."""

    fence_before_swap: bool = True
    fence_read_before_lease: bool = True
    sum_again_in_any_case: bool = True
    refusal_needs_fence: bool = True
    word_read_before_owner_sought: bool = True
    reclaim_without_lock: bool = True
    emptied_before_owned: bool = True
    charge_under_lease: bool = True
    new_owner_raises_fence: bool = True
    reclaim_raises_fence: bool = True


@dataclass(frozen=True)
class Scene:
    """Where a walk begins: one program per process, and what the slots hold."""

    programs: tuple[tuple[tuple[str, int], ...], ...]
    limit: int = 100
    slots: int = 3
    dead_bytes: tuple[int, ...] = ()
    """Charges in the first slots, whose owners have died before the scene begins."""
    nobody_died: bool = False
    """Nothing to take back: a first sum is the last. A false one would else be hidden by the second."""
    threads_of_first: int = 1
    """So many of the programs are threads of the first process, and share its slot. Without kills."""
    kills: int = 0
    thefts: int = 0


class Process(NamedTuple):
    """One process: where it is in its program, and what it knows."""

    alive: bool = True
    slot: int = NOBODY
    held: int = 0  # what it was granted and has not given back
    operation: int = 0  # index into its program
    at: str = "begin"
    fence: int = 0
    ticket: tuple[int, int] = FREE  # what it writes into the lock
    tickets: int = 0
    seen: tuple[int, int] = FREE  # the lock as it found it
    index: int = 0  # the slot that it looks at
    total: int = 0
    word: tuple[int, int] = (0, 0)
    swept: bool = False
    took: bool = False
    justified: bool = False  # at some instant of this call it did not fit beside what the living hold


class State(NamedTuple):
    """All shared memory, the kernel's locks, and the processes."""

    lock: tuple[int, int]
    words: tuple[tuple[int, int], ...]  # fence, bytes
    owners: tuple[int, ...]
    claims: tuple[int, ...]
    processes: tuple[Process, ...]
    kills: int
    thefts: int


class BrokenPromiseError(AssertionError):
    """An interleaving that breaks a promise."""


def initial(scene: Scene) -> State:
    """The state at the beginning: processes whose program starts with attach have no slot yet."""
    owners = [NOBODY] * scene.slots
    processes: list[Process] = []
    slot = len(scene.dead_bytes)
    for number, program in enumerate(scene.programs):
        if program[0][0] == "attach":
            processes.append(Process())
            continue
        if 0 < number < scene.threads_of_first:
            processes.append(Process(slot=processes[0].slot, tickets=100 * number))
            continue
        owners[slot] = number
        processes.append(Process(slot=slot))
        slot += 1
    held = scene.dead_bytes + (0,) * (scene.slots - len(scene.dead_bytes))
    return State(
        lock=FREE,
        words=tuple((0, held_bytes) for held_bytes in held),
        owners=tuple(owners),
        claims=(NOBODY,) * scene.slots,
        processes=tuple(processes),
        kills=scene.kills,
        thefts=scene.thefts,
    )


def put(items, index, item):
    """`items` with one of them replaced."""
    return (*items[:index], item, *items[index + 1 :])


class Model:
    """The protocol under `rules` in `scene`."""

    def __init__(self, scene: Scene, rules: Rules) -> None:
        self.scene = scene
        self.rules = rules

    def operation(self, state: State, number: int) -> tuple[str, int] | None:
        """What the process is doing; None when its program is done."""
        process = state.processes[number]
        program = self.scene.programs[number]
        return program[process.operation] if process.operation < len(program) else None

    def successors(self, state: State) -> Iterator[State]:
        """Every state that one step, or one kill, leads to."""
        for number, process in enumerate(state.processes):
            if not process.alive or self.operation(state, number) is None:
                continue
            yield from self.steps(state, number)
            if state.kills:
                yield self.kill(state, number)

    def kill(self, state: State, number: int) -> State:
        """The kernel drops a dead process's locks; what it wrote stays."""
        dead = tuple(NOBODY if owner == number else owner for owner in state.owners)
        claims = tuple(NOBODY if claim == number else claim for claim in state.claims)
        gone = Process(alive=False)
        return state._replace(
            owners=dead,
            claims=claims,
            processes=put(state.processes, number, gone),
            kills=state.kills - 1,
        )

    def steps(self, state: State, number: int, *, patient: bool = True) -> Iterator[State]:
        """The next steps of one process: several where it waits. Impatient: it steals without a budget."""
        process = state.processes[number]
        operation = self.operation(state, number)
        assert operation is not None
        what, amount = operation
        handler = getattr(self, f"_at_{process.at}")
        for shared, moved in handler(state, number, process, what, amount, patient):
            yield shared._replace(processes=put(shared.processes, number, moved))

    # ---- an operation begins ----

    def _at_begin(self, state, number, process, what, amount, patient):
        if what == "attach":
            yield state, process._replace(at="reclaim_read", index=0)
        elif what == "release":
            fence, held = state.words[process.slot]
            words = put(state.words, process.slot, (fence, held - amount))
            yield state._replace(words=words), self._next(process, -amount)
        elif what == "charge" and not self.rules.charge_under_lease:
            fence, held = state.words[process.slot]
            words = put(state.words, process.slot, (fence, held + amount))
            yield state._replace(words=words), self._next(process, amount)
        else:
            fresh = process._replace(
                swept=self.scene.nobody_died, justified=self._does_not_fit(state, amount)
            )
            yield state, fresh._replace(at="fence" if self.rules.fence_read_before_lease else "acquire")

    def _next(self, process, change=0):
        return Process(
            slot=process.slot,
            held=process.held + change,
            operation=process.operation + 1,
            tickets=process.tickets,
        )

    def _does_not_fit(self, state, amount):
        living = sum(process.held for process in state.processes if process.alive)
        return living + amount > self.scene.limit

    # ---- the lease ----

    def _at_fence(self, state, number, process, what, amount, patient):
        fence = state.words[process.slot][0]
        yield (
            state,
            process._replace(
                at="acquire" if self.rules.fence_read_before_lease else "sum", fence=fence, index=0, total=0
            ),
        )

    def _at_acquire(self, state, number, process, what, amount, patient):
        ticket = (process.slot, process.tickets + 1)
        mine = process._replace(ticket=ticket, tickets=process.tickets + 1)
        if state.lock == FREE:
            yield state._replace(lock=ticket), self._with_lease(mine)
        else:
            yield state, mine._replace(at="wait", seen=state.lock)

    def _with_lease(self, process):
        return process._replace(
            at="sum" if self.rules.fence_read_before_lease else "fence", index=0, total=0, seen=FREE
        )

    def _at_wait(self, state, number, process, what, amount, patient):
        if state.lock == FREE:
            yield state._replace(lock=process.ticket), self._with_lease(process)
        elif state.lock != process.seen:
            yield state, process._replace(seen=state.lock)
        if FREE not in (state.lock, process.seen) and (state.thefts or not patient):
            # It has had the word in view for the length of a lease; by now it may be another's.
            spent = state._replace(thefts=state.thefts - 1) if patient else state
            yield spent, process._replace(at="raise" if self.rules.fence_before_swap else "swap")

    def _at_raise(self, state, number, process, what, amount, patient):
        slot = process.seen[0]
        fence, held = state.words[slot]
        raised = state._replace(words=put(state.words, slot, (fence + 1, held)))
        if self.rules.fence_before_swap:
            yield raised, process._replace(at="swap")
        else:
            yield raised, self._with_lease(process)

    def _at_swap(self, state, number, process, what, amount, patient):
        if state.lock != process.seen:
            yield state, process._replace(at="wait", seen=state.lock)
        elif self.rules.fence_before_swap:
            yield state._replace(lock=process.ticket), self._with_lease(process)
        else:
            yield state._replace(lock=process.ticket), process._replace(at="raise")

    # ---- the charge ----

    def _at_sum(self, state, number, process, what, amount, patient):
        total = process.total + state.words[process.index][1]
        following = process.index + 1
        done = following == self.scene.slots
        yield (
            state,
            process._replace(total=total, index=0 if done else following, at="charge" if done else "sum"),
        )

    def _at_charge(self, state, number, process, what, amount, patient):
        fence, held = state.words[process.slot]
        fits = what == "charge" or process.total + amount <= self.scene.limit
        own = fence == process.fence
        if fits and own:
            words = put(state.words, process.slot, (fence, held + amount))
            yield (
                state._replace(words=words),
                process._replace(at="let_go", word=(1, 0), held=process.held + amount, index=0, total=0),
            )
        elif own or (not fits and not self.rules.refusal_needs_fence):
            yield state, process._replace(at="let_go", word=(0, 1), index=0, total=0)
        else:
            yield state, process._replace(at="let_go", word=(0, 0), index=0, total=0)

    def _at_let_go(self, state, number, process, what, amount, patient):
        after = state._replace(lock=FREE) if state.lock == process.ticket else state
        charged, refused = process.word
        rest = process._replace(word=(0, 0), ticket=FREE, fence=0)
        if charged:
            yield after, self._next(rest)
        elif not refused:
            yield after, rest._replace(at="fence" if self.rules.fence_read_before_lease else "acquire")
        elif not process.swept:
            yield after, rest._replace(at="reclaim_read", index=0, took=False)
        else:
            yield after, self._refused(number, rest, amount)

    def _refused(self, number, process, amount):
        if not process.justified:
            raise BrokenPromiseError(f"{amount} was refused, but fitted all the time")
        program = self.scene.programs[number]
        following = program[process.operation + 1 : process.operation + 2]
        nothing_to_release = following == (("release", amount),)
        return self._next(process._replace(operation=process.operation + nothing_to_release))

    # ---- taking back what the dead held ----

    def _at_reclaim_read(self, state, number, process, what, amount, patient):
        if process.index == self.scene.slots:
            yield state, self._reclaimed(number, process, what, amount)
            return
        word = state.words[process.index]
        onward = process._replace(index=process.index + 1, word=(0, 0))
        if process.index == process.slot or not word[1]:
            yield state, onward
        elif not self.rules.reclaim_without_lock:
            # As it once was: lock the slot, or leave it alone where another has it.
            if state.owners[process.index] != NOBODY or state.claims[process.index] != NOBODY:
                yield state, onward
            else:
                claims = put(state.claims, process.index, number)
                yield state._replace(claims=claims), process._replace(at="reclaim_swap", word=word)
        elif self.rules.word_read_before_owner_sought:
            yield state, process._replace(at="reclaim_owner", word=word)
        elif state.owners[process.index] == NOBODY:
            yield state, process._replace(at="reclaim_late_read")
        else:
            yield state, onward

    def _at_reclaim_late_read(self, state, number, process, what, amount, patient):
        yield state, process._replace(at="reclaim_swap", word=state.words[process.index])

    def _at_reclaim_owner(self, state, number, process, what, amount, patient):
        if state.owners[process.index] == NOBODY:
            yield state, process._replace(at="reclaim_swap")
        else:
            yield state, process._replace(at="reclaim_read", index=process.index + 1, word=(0, 0))

    def _at_reclaim_swap(self, state, number, process, what, amount, patient):
        index = process.index
        onward = process._replace(at="reclaim_read", index=index + 1, word=(0, 0))
        claims = put(state.claims, index, NOBODY) if state.claims[index] == number else state.claims
        if state.words[index] == process.word:
            if state.owners[index] != NOBODY:
                raise BrokenPromiseError("a living process's charge was taken back")
            words = put(state.words, index, (process.word[0] + self.rules.reclaim_raises_fence, 0))
            yield state._replace(words=words, claims=claims), onward._replace(took=True)
        else:
            yield state._replace(claims=claims), process._replace(at="reclaim_read", word=(0, 0))

    def _reclaimed(self, number, process, what, amount):
        if what == "attach":
            return process._replace(at="claim", index=0, took=False)
        if not process.took and not self.rules.sum_again_in_any_case:
            return self._refused(number, process, amount)
        begin = "fence" if self.rules.fence_read_before_lease else "acquire"
        return process._replace(at=begin, index=0, took=False, swept=True)

    # ---- taking a slot ----

    def _at_claim(self, state, number, process, what, amount, patient):
        index = process.index
        if index == self.scene.slots:
            yield state, process._replace(at="claim", index=0)  # it would be told that the table is full
        elif state.claims[index] == NOBODY:
            yield state._replace(claims=put(state.claims, index, number)), process._replace(at="claimed")
        else:
            yield state, process._replace(index=index + 1)

    def _at_claimed(self, state, number, process, what, amount, patient):
        if state.owners[process.index] == NOBODY:
            yield state, process._replace(at="empty" if self.rules.emptied_before_owned else "own")
        else:
            claims = put(state.claims, process.index, NOBODY)
            yield state._replace(claims=claims), process._replace(at="claim", index=process.index + 1)

    def _at_empty(self, state, number, process, what, amount, patient):
        fence = state.words[process.index][0] + self.rules.new_owner_raises_fence
        emptied = state._replace(words=put(state.words, process.index, (fence, 0)))
        yield emptied, process._replace(at="own" if self.rules.emptied_before_owned else "owned")

    def _at_own(self, state, number, process, what, amount, patient):
        owners = put(state.owners, process.index, number)
        yield (
            state._replace(owners=owners),
            process._replace(at="owned" if self.rules.emptied_before_owned else "empty"),
        )

    def _at_owned(self, state, number, process, what, amount, patient):
        claims = put(state.claims, process.index, NOBODY)
        # Its successor in the slot counts on from another generation: tickets never repeat.
        yield (
            state._replace(claims=claims),
            self._next(process)._replace(slot=process.index, tickets=1000 * (number + 1)),
        )


def walk(scene: Scene, rules: Rules | None = None, *, most_states: int = 3_000_000) -> int:
    """Visit every state that can be reached; the number of states.

    Raises:
        BrokenPromiseError: some interleaving exceeds the limit, refuses what fitted, takes a living process's
            charge, or leaves a process unable to go on by itself.

    """
    model = Model(scene, rules or Rules())
    first = initial(scene)
    seen = {first}
    todo = [first]
    while todo:
        state = todo.pop()
        for found in model.successors(state):
            following = _note_justified(model, found)
            if following in seen:
                continue
            _check(model, following)
            seen.add(following)
            todo.append(following)
            assert len(seen) <= most_states, "the scene is too large to walk"
    return len(seen)


def _note_justified(model: Model, state: State) -> State:
    """A refusal is right if at some instant of the call the request did not fit."""
    processes = state.processes
    for number, process in enumerate(processes):
        operation = model.operation(state, number)
        if process.justified or not process.alive or process.at == "begin" or operation is None:
            continue
        if operation[0] == "reserve" and model._does_not_fit(state, operation[1]):
            processes = put(processes, number, process._replace(justified=True))
    return state._replace(processes=processes)


def _check(model: Model, state: State) -> None:
    held = sum(held for _, held in state.words)
    charging = any(what == "charge" for program in model.scene.programs for what, _ in program)
    if held > model.scene.limit and not charging:
        raise BrokenPromiseError(f"{held} is charged, {model.scene.limit} is the limit")
    for slot in {process.slot for process in state.processes if process.alive} - {NOBODY}:
        held_by_owner = sum(process.held for process in state.processes if process.slot == slot)
        if state.words[slot][1] != held_by_owner:
            raise BrokenPromiseError("a slot's bytes are not its owner's")
    for number, process in enumerate(state.processes):
        if process.alive:
            _can_go_on_alone(model, state, number)


def _can_go_on_alone(model: Model, state: State, number: int) -> None:
    """Whatever the others were doing when they stopped for ever, this one ends its operation."""
    operation = state.processes[number].operation
    if model.operation(state, number) is None or model.operation(state, number) == ("attach", 0):
        return
    for _ in range(60):
        # The last of its possible steps: where it waits, the theft.
        state = list(model.steps(state, number, patient=False))[-1]
        state = _note_justified(model, state)
        if state.processes[number].operation != operation:
            return
    raise BrokenPromiseError("a process waits for one that is stopped")


def wrong(**fields: bool) -> Rules:
    """The rules with some of them broken."""
    return replace(Rules(), **fields)
