"""The rules of rules.toml applied to the functions of the headers; what is wrong with them, in words."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from headers import Function, Headers

METERING = {"launch", "sync", "init", "door"}
"""The kinds that are hooked where every card of a grant is granted whole."""
KINDS = {"charge", "free", "query"} | METERING


@dataclass(frozen=True)
class Rule:
    """What happens to some functions, and why."""

    kind: str
    """One of KINDS, or `pass`."""
    why: str
    names: tuple[str, ...]
    whole: bool
    """Hooked also where every card of the grant is granted whole."""


@dataclass(frozen=True)
class Rules:
    """The rules, and what else handlers call."""

    rules: tuple[Rule, ...]
    called: tuple[str, ...]

    def of(self, function: Function) -> Rule | None:
        """The rule for a function: one for its very name before one for all its variants."""
        for name in (function.name, function.base):
            for rule in self.rules:
                if name in rule.names:
                    return rule
        return None


def load(path: Path) -> Rules:
    """Read rules.toml."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    rules = [
        Rule(one["kind"], one["why"], tuple(one["names"]), one.get("whole", one["kind"] in METERING))
        for one in data["hook"]
    ]
    rules += [Rule("pass", one["reason"], tuple(one["names"]), whole=False) for one in data["pass"]]
    return Rules(tuple(rules), tuple(data["called"]))


def faults(rules: Rules, headers: Headers) -> list[str]:
    """Each function without a rule, each rule without a function, each contradiction."""
    known = set(headers.functions) | {function.base for function in headers.functions.values()}
    found: list[str] = []
    seen: dict[str, Rule] = {}
    for rule in rules.rules:
        if rule.kind not in KINDS | {"pass"}:
            found.append(f"{rule.kind}: no such kind")
        if len(rule.why) < len("kernels"):
            found.append(f"{rule.names[0]} ...: a reason is missing")
        for name in rule.names:
            if name not in known:
                found.append(f"{name}: no header has such a function")
            if name in seen:
                found.append(f"{name}: has two rules")
            seen[name] = rule
    found += [f"{name}: no rule for it" for name, one in headers.functions.items() if rules.of(one) is None]
    for name in rules.called:
        function = headers.functions.get(name)
        if function is None:
            found.append(f"{name}: called, but no header has such a function")
        elif (rule := rules.of(function)) and rule.kind != "pass":
            found.append(f"{name}: called, but hooked anyway")
    return sorted(found)


def hooked(rules: Rules, headers: Headers) -> dict[str, Rule]:
    """By name: the functions that have a handler."""
    chosen = {name: rules.of(function) for name, function in headers.functions.items()}
    return {name: rule for name, rule in sorted(chosen.items()) if rule and rule.kind != "pass"}


def handlers(shim: Path) -> set[str]:
    """The functions that the shim's sources define and export, macros that define several included."""
    found: set[str] = set()
    for path in sorted(shim.glob("*.c")):
        text = path.read_text(encoding="utf-8")
        exported = "".join(re.findall(r"^VCUDA_EXPORT[^{;]*", text, re.MULTILINE))
        found |= set(re.findall(r"\b((?:cu|nvml)[A-Z]\w*)\s*\(", exported))
        for macro in re.findall(r"^#define (\w+)\((?=[^\n]*\\\n\s*VCUDA_EXPORT)", text, re.MULTILINE):
            found |= set(re.findall(rf"^{macro}\(((?:cu|nvml)[A-Z]\w*)", text, re.MULTILINE))
    return found


def calls(shim: Path) -> set[str]:
    """The driver's functions that the shim's sources call by name."""
    return {
        name
        for path in shim.glob("*.[ch]")
        for name in re.findall(r"\bvcuda_real\.((?:cu|nvml)[A-Z]\w*)", path.read_text(encoding="utf-8"))
    }
