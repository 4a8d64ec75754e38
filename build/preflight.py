"""Known hazards of Qwen MTP on TensorRT-LLM, as rules over the facts of one variant."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trt_mtp.build.trtllm_version import Version, parse_version, what_was_read
from trt_mtp.files import read_json

SEVERITIES = ("error", "warning", "info")
Facts = Mapping[str, Any]

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda fact, value: fact == value,
    "!=": lambda fact, value: fact != value,
    "in": lambda fact, value: fact in value,
    "<": lambda fact, value: fact is not None and value is not None and fact < value,
    ">": lambda fact, value: fact is not None and value is not None and fact > value,
    ">=": lambda fact, value: fact is not None and value is not None and fact >= value,
    "set": lambda fact, value: fact is not None,
    "unset": lambda fact, value: fact is None,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a variant or a machine."""

    id: str
    severity: str  # error, warning or info
    message: str
    source: str

    def as_json(self) -> dict[str, str]:
        """The finding as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """A hazard, when it is one, and where it is published."""

    id: str
    severity: str
    when: tuple[tuple[Any, ...], ...]
    says: str
    source: str
    since: str | None
    until: str | None

    def holds(self, version: Version, facts: Facts) -> bool:
        """Whether the hazard is there."""
        if self.since and version < parse_version(self.since):
            return False
        if self.until and version > parse_version(self.until):
            return False
        return all(_condition(facts, *condition) for condition in self.when)


@cache
def rules(name: str = "preflight") -> tuple[Rule, ...]:
    """Those of build/data/`name`.json."""
    stated = read_json(Path(__file__).with_name("data") / f"{name}.json")["rules"]
    return tuple(
        Rule(
            id=rule["id"],
            severity=rule["severity"],
            when=tuple(tuple(condition) for condition in rule["when"]),
            says=rule["says"],
            source=rule["source"],
            since=rule.get("since"),
            until=rule.get("until"),
        )
        for rule in stated
    )


def _condition(facts: Facts, name: str, operator: str, value: Any = None) -> bool:
    if isinstance(value, str) and value.startswith("$"):
        value = facts.get(value[1:])
    return OPERATORS[operator](facts.get(name), value)


def preflight(version: Version, facts: Facts, rules_name: str = "preflight") -> tuple[Finding, ...]:
    """What the rules find for a variant of `version`, errors first."""
    found = [
        Finding(rule.id, rule.severity, _filled(rule.says, facts), rule.source)
        for rule in rules(rules_name)
        if rule.holds(version, facts)
    ]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _filled(text: str, facts: Facts) -> str:
    return re.sub(r"\{([\w.]+)\}", lambda match: str(facts.get(match[1])), text)


def variant_facts(
    version: Version,
    llm_args: Mapping[str, Any],
    environment: Mapping[str, str],
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """The facts the rules ask about: the arguments by path, and what follows from them.

    `model` holds family, is_moe, checkpoint_dtype, mtp_head_quantized and, when the GPU is known,
    gpu.sm.
    """
    facts: dict[str, Any] = {}
    _flatten(llm_args, "", facts)
    facts.update({f"env.{name}": value for name, value in environment.items()})
    facts.update(model)
    speculative = llm_args.get("speculative_config") or {}
    draft_length = int(speculative.get("max_draft_len") or 0)
    facts["draft_length"] = draft_length
    facts["what_was_read"] = what_was_read(version)
    if llm_args.get("max_batch_size"):
        facts["tokens_per_step"] = llm_args["max_batch_size"] * (draft_length + 1)
    schedule = speculative.get("draft_len_schedule")
    if schedule:
        bounds = {int(bound): length for bound, length in schedule.items()}
        facts["schedule.last_bound"] = max(bounds)
        facts["schedule.first"] = bounds[min(bounds)]
        facts["schedule.smallest"] = min(bounds.values())
        facts["schedule.largest"] = max(bounds.values())
    ratio = (llm_args.get("kv_cache_config") or {}).get("pool_ratio")
    if ratio is not None:
        facts["pool_ratio.is_whole"] = math.isclose(sum(ratio), 1.0, abs_tol=1e-6)
    sizes = (llm_args.get("cuda_graph_config") or {}).get("batch_sizes")
    if sizes:
        facts["cuda_graphs.largest"] = max(sizes)
    return facts


def _flatten(values: Mapping[str, Any], prefix: str, facts: dict[str, Any]) -> None:
    for name, value in values.items():
        facts[f"{prefix}{name}"] = value
        if isinstance(value, Mapping):
            _flatten(value, f"{prefix}{name}.", facts)
