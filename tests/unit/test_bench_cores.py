"""The benchmark of core shares, without a card: which cases there are, and what measured curves are worth."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vcuda.bench import cases, judge, plots, results
from vcuda.bench.cases import FACTORS, LENGTHS, MS, Case, Load, Member, Run, S
from vcuda.bench.judge import Curve, Had, Point, Record, Report, Verdict
from vcuda.bench.timeline import curves_of_looks

LOOK_NS = 20 * MS
START_NS = 1000 * S


def curve(busy: Callable[[int], float], *, seconds: float = 22) -> Curve:
    """Looked at every 20 ms: `busy` says how many ns it has had until so many ns after the start."""
    return Curve(
        tuple(Point(START_NS + at, round(busy(at)), 0) for at in range(0, round(seconds * S) + 1, LOOK_NS))
    )


def steady(share: float) -> Callable[[int], float]:
    return lambda at: share * at


def pulses(length_ns: int, share: float) -> Callable[[int], float]:
    """Kernels of one length, each followed by the pause that makes up for it: an ideal limiter."""
    period = length_ns / share
    return lambda at: at // period * length_ns + min(at % period, length_ns)


def report(**values: int) -> Report:
    names = ("pid", "work_ns", "longest_ns", "began_ns", "ended_ns", "resumed_ns", "first_ns")
    return Report(**{**dict.fromkeys(names, 0), **values}, latency_ns=())


def record(run: Run, *curves: Curve, reports: tuple[Report, ...] = (), waits: int | None = None) -> Record:
    had = {
        member.name: Had(member=member, curve=each, reports=reports, waits=waits)
        for member, each in zip(run.members, curves, strict=True)
    }
    return Record(run=run, from_ns=START_NS + 2 * S, to_ns=START_NS + 22 * S, had=had)


def lone(load: Load, granted: float, got: Curve, *, free: float = 1.0) -> judge.Accuracy:
    """The verdict on one share that had `got`, and `free` of the card without a limit."""
    case = cases.limited("one", load, granted)
    unlimited = record(case.runs[0], curve(steady(free)))
    (found,) = judge.judge(case, [unlimited, record(case.runs[1], got)]).shares
    return found


# ---- the matrix ----


def possible(values: dict[str, object]) -> bool:
    if values.get("mode") == "cooperative" and values.get("blocks") == 100_000:
        return False
    return not (values.get("mode") == "graph" and values.get("length") in ("20ms", "200ms"))


def test_every_possible_pair_of_values_is_in_a_case() -> None:
    chosen = [case for case in cases.every() if case.name.startswith("alone/")]
    names = {length: name for name, length in LENGTHS.items()}
    found = [
        {
            "mode": case.runs[1].members[0].load.mode,
            "length": names[case.runs[1].members[0].load.lengths_ns],
            "cores": case.runs[1].members[0].cores,
            "blocks": case.runs[1].members[0].load.blocks,
            "sms": case.sms,
        }
        for case in chosen
    ]
    for one, other in itertools.combinations(FACTORS, 2):
        have = {(each[one], each[other]) for each in found}
        for pair in itertools.product(FACTORS[one], FACTORS[other]):
            assert (pair in have) == possible(dict(zip((one, other), pair, strict=True))), (one, other, pair)
    assert all(possible(each) for each in found)


def test_pairs_need_few_cases_and_are_the_same_each_time() -> None:
    factors = {"a": (1, 2, 3), "b": (1, 2, 3), "c": (1, 2, 3), "d": (1, 2)}
    chosen = cases.pairwise(factors, lambda _: True)
    assert chosen == cases.pairwise(factors, lambda _: True)
    assert 9 <= len(chosen) <= 11
    assert len([case for case in cases.every() if case.kind == "alone"]) <= 55


def test_pair_that_only_a_third_value_forbids_is_left_out() -> None:
    factors = {"a": (1, 2), "b": (1, 2), "c": (1,)}
    chosen = cases.pairwise(factors, lambda values: (values.get("a"), values.get("c")) != (2, 1))
    assert {(each["a"], each["b"]) for each in chosen} == {(1, 1), (1, 2)}


def test_names_are_different_and_select() -> None:
    every = cases.every()
    assert len({case.name for case in every}) == len(every)
    assert [case.name for case in cases.selected(every, ["together/"])] == [
        "together/40-30", "together/30-30-30", "together/ten-of-10", "together/70-long-30-short",
    ]  # fmt: skip
    assert all("-mix-" in case.name for case in cases.selected(every, ["alone/*-mix-*"]))
    assert cases.selected(every, []) == every
    assert cases.selected(every, ["none"]) == []


def test_promises_of_a_case_fit_on_a_card() -> None:
    for run in (run for case in cases.every() for run in case.runs):
        assert sum(member.cores or 0 for member in run.members) <= 100


def test_load_is_said_to_the_client() -> None:
    load = Load(mode="sync", lengths_ns=(), blocks=1, functions=5, processes=3, rest=(1, 2.5), pace=0.7)
    assert load.arguments() == [
        "mode=sync", "blocks=1", "mix=1", "functions=5", "processes=3", "rest=1,2.5", "pace=0.7",
    ]  # fmt: skip
    assert Load(mode="service", period=0.02).arguments()[-2:] == ["ns=2000000", "period=0.02"]
    assert Load(mode="graph", lengths_ns=(MS,)).longest_ns == 50 * MS
    assert Load(lengths_ns=(20_000, 2 * MS)).longest_ns == 2 * MS


def test_only_the_usual_time_is_changed() -> None:
    (case,) = cases.selected(cases.every(), ["alone/10-20us-sync-1b-40sm"])
    assert [run.seconds for run in cases.lasting(case, 7).runs] == [3, 7]


# ---- curves ----


def test_curve_is_interpolated_and_goes_on_as_it_ended() -> None:
    known = Curve((Point(100, 10, 0), Point(200, 60, 0)))
    assert [known.busy_at(at) for at in (50, 100, 150, 200, 900)] == [0, 10, 35, 60, 60]
    assert known.share(100, 200) == 0.5
    assert Curve(()).busy_at(5) == 0


def test_sum_of_curves_counts_a_process_that_ended() -> None:
    ended, lasting = Curve((Point(0, 0, 0), Point(10, 10, 0))), Curve((Point(0, 0, 0), Point(20, 4, 0)))
    assert judge.summed([ended, lasting]).points == (Point(0, 0, 0), Point(10, 12, 0), Point(20, 14, 0))


def test_windows_begin_and_end_at_looks_even_if_one_was_late() -> None:
    points = tuple(Point(at, at // 2, 0) for at in (0, 400 * MS, 1300 * MS, 1320 * MS))
    found = judge.windows(Curve(points))
    assert [(each.from_ns, each.to_ns, each.share) for each in found] == [(0, 1300 * MS, 0.5)]


def test_jain_and_percentiles() -> None:
    assert judge.jain([2, 2, 2, 2]) == 1
    assert judge.jain([1, 0, 0, 0]) == 0.25
    assert [judge.percentile(range(1, 201), percent) for percent in (50, 99, 100)] == [100, 198, 200]
    assert judge.percentile([7], 99) == 7


def test_looks_of_the_simulated_card_are_read_up_to_where_they_were_cut() -> None:
    def look(now: int, *processes: tuple[int, int]) -> str:
        listed = [{"pid": pid, "busy_ns": busy, "kernels": 1} for pid, busy in processes]
        return json.dumps({"cards": [{"now_ns": now, "processes": listed}]})

    found = curves_of_looks([look(1, (7, 0)), look(2, (7, 1), (8, 0)), look(3, (8, 5)), look(4, (8, 6))[:-9]])
    assert found[7].points == (Point(1, 0, 1), Point(2, 1, 1))
    assert found[8].points == (Point(2, 0, 1), Point(3, 5, 1))


# ---- verdicts ----


def test_unlimited_program_misses_every_bound() -> None:
    found = lone(Load(), 30, curve(steady(1)))
    assert not found.kept
    assert (found.achieved, round(found.error, 6), round(found.worst, 6)) == (100, 70, 70)
    assert found.throughput == pytest.approx(1 / 0.3)


@pytest.mark.parametrize("length_ns", [20_000, 2 * MS, 20 * MS, 200 * MS])
@pytest.mark.parametrize("granted", [10, 30, 50, 80])
def test_ideal_limiter_is_within_the_bounds(granted: int, length_ns: int) -> None:
    found = lone(Load(lengths_ns=(length_ns,)), granted, curve(pulses(length_ns, granted / 100)))
    assert found.kept
    assert abs(found.worst) <= 100 * length_ns / S + 0.01  # what one kernel makes inevitable, and no more
    assert found.of_longest <= 1.01 or length_ns < MS
    assert found.throughput == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("share", "kept"), [(0.3, True), (0.3049, True), (0.3051, False), (0.2949, False), (0.2951, True)]
)
def test_mean_may_be_half_a_point_off(share: float, kept: bool) -> None:
    run = Run(members=(Member(cores=30),))
    (found,) = judge.judge(
        Case(name="", kind="together", runs=(run,)), [record(run, curve(steady(share)))]
    ).shares
    assert found.kept == kept


def test_one_bad_second_is_found_though_the_mean_is_right() -> None:
    def stumbles(at: int) -> float:  # nothing for 100 ms at 10 s, made up for at 11 s
        return 0.3 * at - 0.3 * min(max(0, at - 10 * S), S // 10) + 0.3 * min(max(0, at - 11 * S), S // 10)

    found = lone(Load(), 30, curve(stumbles))
    assert abs(found.error) < 0.01
    assert found.worst == pytest.approx(-3, abs=0.1)
    assert found.worst_bound == pytest.approx(2.2)
    assert not found.kept


def test_longest_launch_is_what_the_client_says() -> None:
    run = Run(members=(Member(load=Load(lengths_ns=()), cores=30),))
    measured = record(run, curve(steady(0.3)), reports=(report(longest_ns=40 * MS),))
    (found,) = judge.judge(Case(name="", kind="together", runs=(run,)), [measured]).shares
    assert (found.longest_ns, found.worst_bound) == (40 * MS, pytest.approx(6))


def test_accuracy_bought_with_lost_work_does_not_count() -> None:
    found = lone(Load(), 30, curve(steady(0.2952)), free=1)
    assert abs(found.error) <= 0.5
    assert found.throughput == pytest.approx(0.984)
    assert found.kept
    assert not lone(Load(), 10, curve(steady(0.0975))).kept  # 0.25 points, and 2.5 percent of the work


def test_streams_that_ran_side_by_side_must_go_on_doing_so() -> None:
    case = cases.limited("one", Load(mode="streams4", blocks=1), 50)

    def with_parallelism(share: float, parallelism: float, run: Run) -> Record:
        had = curve(steady(share))
        work = report(
            work_ns=round(share * 20 * S * parallelism), began_ns=START_NS, ended_ns=START_NS + 20 * S
        )
        return record(run, had, reports=(work,))

    free = with_parallelism(1, 4, case.runs[0])
    for parallelism, kept in ((4, True), (3.95, True), (2, False)):
        (found,) = judge.judge(case, [free, with_parallelism(0.5, parallelism, case.runs[1])]).shares
        assert found.throughput == pytest.approx(parallelism / 4, abs=0.001)
        assert found.kept == kept


def test_program_that_offers_less_than_its_share_is_held_to_its_own_work() -> None:
    load = Load(mode="sync", lengths_ns=(20_000,))
    assert lone(load, 50, curve(steady(0.35)), free=0.35).kept
    assert not lone(load, 50, curve(steady(0.34)), free=0.35).kept  # it lost 3 percent of its work
    assert not lone(load, 50, curve(steady(0.51)), free=0.35).kept  # and more than its share is too much


def test_shares_beside_each_other_are_fair_to_each_by_its_own() -> None:
    (case,) = cases.selected(cases.every(), ["together/40-30"])
    verdict = judge.judge(case, [record(case.runs[0], curve(steady(0.4)), curve(steady(0.3)))])
    assert verdict.kept
    assert verdict.checks[0].value == pytest.approx(1)
    unfair = judge.judge(case, [record(case.runs[0], curve(steady(0.4)), curve(steady(0.2)))])
    assert [each.kept for each in (*unfair.shares, *unfair.checks)] == [True, False, False]


def test_debt_of_the_killed_shows() -> None:
    (case,) = cases.selected(cases.every(), ["processes/killed-in-debt"])

    def verdict(stall_s: float) -> Verdict:
        def had(
            at: int,
        ) -> float:  # the killed one's 0.6 s, then nothing until the debt is paid, then its share
            return 0.3 * min(at, 2 * S) + 0.3 * max(0, at - (2 + stall_s) * S)

        killed = record(case.runs[0], curve(had), curve(steady(0)))
        return judge.judge(case, [replace(killed, happened_ns=START_NS + 2 * S)])

    assert verdict(1.5).kept
    assert not verdict(6).kept


@pytest.mark.parametrize(("limited_ms", "kept"), [(5, True), (7.4, True), (7.6, False)])
def test_tail_of_the_service_is_held_against_that_beside_an_ideal_neighbour(
    limited_ms: float, kept: bool
) -> None:
    (case,) = cases.selected(cases.every(), ["latency/service"])

    def with_latency(run: Run, milliseconds: float) -> Record:
        usual, tail = [2 * MS] * 980, [round(milliseconds * MS)] * 20
        service = replace(report(), latency_ns=(*usual, *tail))
        return record(run, curve(steady(0.1)), curve(steady(0.7)), reports=(service,))

    ideal, limited = (with_latency(run, ms) for run, ms in zip(case.runs, (5, limited_ms), strict=True))
    assert judge.judge(case, [ideal, limited]).kept == kept


@pytest.mark.parametrize(("first_ms", "waits", "kept"), [(2.1, 0, True), (3.2, 0, False), (2.1, 1, False)])
def test_first_request_after_a_pause_is_not_delayed(first_ms: float, waits: int, kept: bool) -> None:
    (case,) = cases.selected(cases.every(), ["latency/first"])
    service = report(first_ns=round(first_ms * MS))
    measured = record(case.runs[0], curve(steady(0.1)), reports=(service,), waits=waits)
    assert judge.judge(case, [measured]).kept == kept


def after_a_pause(late_ms: int, *, idle: float, busy: float) -> Callable[[int], float]:
    """`busy` but for 4 to 10 s, when it is `idle`; and the return is late."""

    def had(at: int) -> float:
        back = 10 * S + late_ms * MS
        return busy * min(at, 4 * S) + idle * max(0, min(at, back) - 4 * S) + busy * max(0, at - back)

    return had


@pytest.mark.parametrize(("late_ms", "kept"), [(0, True), (100, True), (200, False), (500, False)])
def test_neighbour_has_its_guarantee_back_within_100_ms(late_ms: int, kept: bool) -> None:
    (case,) = cases.selected(cases.every(), ["elastic/up-to"])
    resumed = report(began_ns=START_NS, resumed_ns=START_NS + 10 * S)
    measured = record(
        case.runs[0],
        curve(after_a_pause(late_ms, idle=0.7, busy=0.4)),
        curve(after_a_pause(late_ms, idle=0, busy=0.6)),
        reports=(resumed,),
    )
    verdict = judge.judge(case, [measured])
    assert verdict.kept == kept
    assert [each.kept for each in verdict.checks] == [True, True, kept, True]


@pytest.mark.parametrize(("late_ms", "kept"), [(0, True), (190, True), (300, False)])
def test_changed_share_is_in_force_within_200_ms(late_ms: int, kept: bool) -> None:
    (case,) = cases.selected(cases.every(), ["changes/30-to-60"])
    turn = 10 * S + late_ms * MS
    got = curve(lambda at: 0.3 * min(at, turn) + 0.6 * max(0, at - turn))
    measured = replace(record(case.runs[0], got), happened_ns=START_NS + 10 * S)
    verdict = judge.judge(case, [measured])
    assert [each.kept for each in verdict.checks] == [True, kept, True]


def test_idle_time_goes_up_to_the_ceiling_and_no_further() -> None:
    (case,) = cases.selected(cases.every(), ["elastic/up-to"])
    resumed = report(began_ns=START_NS, resumed_ns=START_NS + 10 * S)
    for idle, kept in ((0.7, True), (0.73, False), (0.6, False)):
        measured = record(
            case.runs[0],
            curve(after_a_pause(0, idle=idle, busy=0.4)),
            curve(after_a_pause(0, idle=0, busy=0.6)),
            reports=(resumed,),
        )
        assert judge.judge(case, [measured]).kept == kept


def test_client_that_did_not_come_to_an_end_is_a_problem_and_no_success() -> None:
    for name in ("latency/service", "latency/first", "elastic/up-to", "elastic/low"):
        (case,) = cases.selected(cases.every(), [name])
        records = [record(run, *(curve(steady(0)) for _ in run.members)) for run in case.runs]
        verdict = judge.judge(case, records)
        assert verdict.problem
        assert not verdict.kept


def test_verdict_says_how_busy_the_host_was() -> None:
    (case,) = cases.selected(cases.every(), ["whole/"])
    records = [
        replace(record(run, curve(steady(1))), pressure=pressure)
        for run, pressure in zip(case.runs, (0.25, 0.75), strict=True)
    ]
    assert judge.judge(case, records).pressure == 0.75
    assert judge.judge(case, [replace(each, pressure=None) for each in records]).pressure is None


def test_each_case_has_a_judge() -> None:
    for case in cases.every():
        records = [record(run, *(curve(steady(0)) for _ in run.members)) for run in case.runs]
        assert not judge.judge(case, records).kept  # nobody had anything


# ---- results ----


def test_results_are_json_without_infinities(tmp_path: Path) -> None:
    (case,) = cases.selected(cases.every(), ["together/40-30"])
    measured = judge.judge(case, [record(case.runs[0], curve(steady(0.4)), curve(steady(0.2)))])
    check = judge.Check(what="p99", value=2.0, bound=math.inf, unit="ms")
    found = [(case, measured), (case, Verdict(problem="no card")), (case, Verdict(checks=(check,)))]
    results.write(tmp_path / "new" / "out.json", results.as_json(found, seconds=20, card="T4"))
    content = json.loads((tmp_path / "new" / "out.json").read_text(), parse_constant=pytest.fail)
    assert [content["kept"], content["seconds"], content["card"]] == [False, 20, "T4"]
    first, second, third = content["cases"]
    assert [share["kept"] for share in first["shares"]] == [True, False]
    assert first["shares"][1]["error"] == pytest.approx(-10)
    assert (second["problem"], second["kept"]) == ("no card", False)
    assert (third["checks"][0]["bound"], third["kept"]) == (None, True)


def test_plot_has_a_panel_for_each_case_with_shares(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chosen = cases.selected(cases.every(), ["together/40-30", "together/30-30-30"])
    found = [
        (case, judge.judge(case, [record(case.runs[0], *(curve(steady(0.3)) for _ in case.runs[0].members))]))
        for case in chosen
    ]
    plots.draw(tmp_path / "out.svg", [*found, (chosen[0], Verdict(problem="no card"))])
    assert (tmp_path / "out.svg").read_text().count('id="axes_') == 2
