"""Who gets which share of a card's SM time just now. Pure: what is seen of the shares in, shares out.

A share has a guarantee, a ceiling and a priority. What some leave idle goes to those that want it, up to
their ceilings and in proportion to their guarantees, and is back with its owner at the next look after the
owner has started to work. In this order:

    1. the guarantees of high and normal shares
    2. high shares, up to their ceilings
    3. the guarantees of low shares
    4. normal shares, up to their ceilings
    5. low shares, up to theirs
    6. what nobody wants, to whoever works, in the same order

A low share that works has FLOOR_PPM in any case, or its guarantee if that is less: it must make progress.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vcuda.units import PPM

LOW, NORMAL, HIGH = -1, 0, 1
FLOOR_PPM = 10_000

IDLE_NS = 500_000_000
"""Who has paid for no work for so long is idle, if nothing else speaks against it."""
DEEP_NS = 100_000_000
"""A debt of long kernels: one may still run, and is to have its guarantee for as long as it does."""
STARVED_NS = 400_000_000
"""For so long after a launch had to wait, a share wants all that it can get."""
USE_NS = 1_000_000_000
"""Over such a time its use is looked at; until so much is known of it, it wants its guarantee."""
_POINTS_NS = 80_000_000
"""Two points of its history are so far apart."""
_MOST_AHEAD_NS = 100_000_000_000
"""No launch waits longer (VCUDA_DEBT_NS); what says so was not written by the shim."""
_HEADROOM = 1.25
_HEADROOM_PPM = 20_000
_STEP_PPM = 20_000
"""What is kept for a share that does not wait goes in such steps up,"""
_SLACK_PPM = 60_000
"""and comes down when it is more than this above what it needs: a steady use gives a steady share."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a share was granted of a card."""

    guarantee_ppm: int
    ceiling_ppm: int
    priority: int = NORMAL

    @property
    def elastic(self) -> bool:
        """Whether it depends on the others what it gets."""
        return self.ceiling_ppm > self.guarantee_ppm or self.priority == LOW

    @property
    def floor_ppm(self) -> int:
        """What it keeps if it works, whatever the others want."""
        return min(self.guarantee_ppm, FLOOR_PPM) if self.priority == LOW else self.guarantee_ppm


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a share may have, and what it wants of it."""

    promise: Promise
    demand_ppm: int
    """What it would use; its ceiling, if it waits for time. 0: it is idle."""


@dataclass(frozen=True, kw_only=True)
class Award:
    """What a share gets."""

    held_ppm: int
    """Kept for it: nobody else is given this. Together at most PPM where the guarantees are."""
    rate_ppm: int
    """The share to put in force. More than what is kept for it where it leaves a part of its guarantee idle:
    it need not wait for the next look to use it."""


def allocate(claims: Sequence[Claim]) -> list[Award]:
    """Divide one card's time among its shares."""
    held = [0.0] * len(claims)
    at_work = [index for index, claim in enumerate(claims) if claim.demand_ppm > 0]
    low = [index for index in at_work if claims[index].promise.priority == LOW]
    normal = [index for index in at_work if claims[index].promise.priority == NORMAL]
    high = [index for index in at_work if claims[index].promise.priority == HIGH]
    left = float(PPM)

    def give(who: Sequence[int], up_to: Callable[[Claim], int]) -> None:
        nonlocal left
        wants = [max(0.0, up_to(claims[index]) - held[index]) for index in who]
        weights = [claims[index].promise.guarantee_ppm for index in who]
        for index, part in zip(who, fill(left, wants, weights), strict=True):
            held[index] += part
            left -= part
        left = max(0.0, left)

    give([*high, *normal], _wanted_of_guarantee)
    for index in low:
        held[index] = claims[index].promise.floor_ppm
        left = max(0.0, left - held[index])
    give(high, _wanted)
    give(low, _wanted_of_guarantee)
    give(normal, _wanted)
    give(low, _wanted)
    unwanted = left
    give([*high, *normal], lambda claim: claim.promise.guarantee_ppm)
    for who in (high, normal, low):
        give(who, lambda claim: claim.promise.ceiling_ppm)
    return [_award(claim, int(held[index]), int(unwanted)) for index, claim in enumerate(claims)]


def fill(amount: float, wants: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Divide an amount by weight, giving nobody more than they want, and all of it if enough is wanted."""
    parts = [0.0] * len(wants)
    open_weight = float(sum(weights))
    # Who is satisfied at the lowest level comes first; what they leave raises the level of the others.
    for index in sorted(range(len(wants)), key=lambda index: wants[index] / weights[index]):
        part = min(wants[index], amount * weights[index] / open_weight) if open_weight > 0 else 0.0
        parts[index] = part
        amount -= part
        open_weight -= weights[index]
    return parts


def _wanted(claim: Claim) -> int:
    return min(claim.demand_ppm, claim.promise.ceiling_ppm)


def _wanted_of_guarantee(claim: Claim) -> int:
    return min(claim.demand_ppm, claim.promise.guarantee_ppm)


def _award(claim: Claim, held_ppm: int, unwanted_ppm: int) -> Award:
    promise = claim.promise
    if promise.priority == LOW:
        if claim.demand_ppm == 0:  # if it begins now, it may not disturb
            return Award(
                held_ppm=0, rate_ppm=max(promise.floor_ppm, min(promise.guarantee_ppm, unwanted_ppm))
            )
        return Award(held_ppm=held_ppm, rate_ppm=max(1, held_ppm))
    satisfied = held_ppm >= _wanted(claim)
    return Award(held_ppm=held_ppm, rate_ppm=max(1, held_ppm, promise.guarantee_ppm if satisfied else 0))


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What a ledger shows of a share at an instant. Its processes can write anything there."""

    now_ns: int
    """CLOCK_MONOTONIC, as all instants."""
    active_ns: int
    starved_ns: int
    balance_ns: int
    """Negative: its last work is not paid yet."""
    gpu_ns: int
    """Used so far."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is remembered of a share from one look to the next."""

    demand_ppm: int = 0
    points: tuple[tuple[int, int], ...] = ()
    """Instants of the last USE_NS of work, and `gpu_ns` at each."""


def judge(memory: Memory, sight: Sight, promise: Promise) -> Memory:
    """What a share wants now: `demand_ppm` of what is returned.

    A share that is given more than its guarantee waits no longer, and yet wants it. So who does not wait
    wants what it uses and something on top; and that changes in steps, or rates would never come to rest.
    """
    now = sight.now_ns
    starved = now - STARVED_NS < sight.starved_ns <= now + _MOST_AHEAD_NS
    active = now - IDLE_NS < sight.active_ns <= now + _MOST_AHEAD_NS
    in_debt = -_MOST_AHEAD_NS < sight.balance_ns < 0
    if not (starved or active or in_debt):
        return Memory()
    points = memory.points
    if not points or now - points[-1][0] >= _POINTS_NS:
        points = (*points, (now, sight.gpu_ns))
        while len(points) > 2 and now - points[1][0] >= USE_NS:
            points = points[1:]
    if starved:
        return Memory(demand_ppm=promise.ceiling_ppm, points=points)
    began, gpu_then = points[0]
    if now - began < USE_NS:  # just woken up: not a moment less than it was promised
        return Memory(demand_ppm=max(memory.demand_ppm, promise.guarantee_ppm), points=points)
    used_ppm = min(PPM, max(0, (sight.gpu_ns - gpu_then) * PPM // (now - began)))
    need_ppm = int(used_ppm * _HEADROOM) + _HEADROOM_PPM
    if in_debt and sight.balance_ns < -DEEP_NS:
        need_ppm = max(need_ppm, promise.guarantee_ppm)
    need_ppm = min(need_ppm, promise.ceiling_ppm)
    demand_ppm = memory.demand_ppm
    if not need_ppm <= demand_ppm <= need_ppm + _SLACK_PPM:
        demand_ppm = -(-need_ppm // _STEP_PPM) * _STEP_PPM
    return replace(memory, demand_ppm=min(demand_ppm, promise.ceiling_ppm), points=points)
