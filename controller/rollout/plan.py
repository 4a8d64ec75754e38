"""The plan of a rollout: what it changes, the memory it needs, and the order of its steps."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trt_mtp.build.variant import EngineVariant, fingerprint_of, read_variant
from trt_mtp.controller.gateway.canary.traffic import Side, read_traffic
from trt_mtp.controller.profile import Profile, read_profile
from trt_mtp.controller.rollout.memory import Footprint, footprint, total_bytes
from trt_mtp.controller.rollout.memory_gate import MemoryGate, not_gated
from trt_mtp.controller.rollout.spec import RolloutSpec, Step
from trt_mtp.controller.rollout.triton import TritonSite
from trt_mtp.errors import InputError
from trt_mtp.files import open_regular

SIDE_BY_SIDE, DRAIN_FIRST = "side by side", "drain first"
COMPARED = ("engine", "draft_length", "max_batch_size", "max_seq_len", "fingerprint", "created")


@dataclass(frozen=True, slots=True)
class Change:
    """One value before and after."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The memory that one server needs at one step."""

    step: str
    server: str
    variants: tuple[str, ...]
    num_bytes: int
    limit_bytes: int | None

    @property
    def fits(self) -> bool:
        """True also if there is no limit."""
        return self.limit_bytes is None or self.num_bytes <= self.limit_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known before the first action; variants have the names that the gateway uses."""

    name: str
    old: str | None
    new: str | None
    stable: Side  # as it is now
    target: Side  # as it will be
    strategy: str
    changes: tuple[Change, ...]
    memory: tuple[MemoryNeed, ...]
    memory_sources: dict[str, str]  # by variant: measured, estimated or files
    memory_gates: tuple[dict[str, Any], ...]  # of servers with metrics: what is used now, the limit
    steps: tuple[tuple[str, float], ...]  # with the percent of live requests that each affects
    notes: tuple[str, ...] = ()
    variant: EngineVariant | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The output of `trt-mtp rollout plan --json`."""
        memory = [{**asdict(need), "fits": need.fits} for need in self.memory]
        return {
            "schema_version": 1,
            "name": self.name,
            "old": self.old,
            "new": self.new,
            "stable": self.stable.model_dump(mode="json"),
            "target": self.target.model_dump(mode="json"),
            "strategy": self.strategy,
            "changes": [asdict(change) for change in self.changes],
            "memory": memory,
            "memory_sources": self.memory_sources,
            "memory_gates": list(self.memory_gates),
            "steps": [{"step": step, "percent": percent} for step, percent in self.steps],
            "notes": list(self.notes),
        }


def named_variant(folder: Path) -> EngineVariant:
    """The variant in `folder`, with a name such as `k5_1f2e3d4c` that is unique to its build.

    Raises InputError if the directory is not a variant's.
    """
    variant = read_variant(folder)
    identity = {**asdict(variant.record), "verification": {}}
    name = f"{variant.record.name}_{fingerprint_of(identity)[:8]}"
    return EngineVariant(folder.resolve(), replace(variant.record, name=name))


def make_plan(spec: RolloutSpec, sites: Sequence[TritonSite]) -> Plan:
    """The plan for what is served now.

    Raises InputError if the spec does not fit it, TrtMtpError if a server does not answer.
    """
    stable = current_side(spec, sites)
    if spec.what.profile is not None:
        return _profile_plan(spec, stable, spec.what.profile)
    assert spec.what.variant is not None
    assert spec.what.replaces is not None
    variant = named_variant(spec.what.variant)
    if variant.name in stable.variants:
        raise InputError(f"{variant.folder} is served already, as {variant.name}")
    old = _served(spec.what.replaces, stable.variants)
    target = Side(
        variants=tuple(variant.name if name == old else name for name in stable.variants),
        profile=stable.profile,
    )
    sizes = _sizes(sites[0], stable.variants) | {variant.name: footprint(variant)}
    memory, strategy = _memory(spec, sites, stable, sizes, old, variant.name)
    return Plan(
        name=spec.name,
        old=old,
        new=variant.name,
        stable=stable,
        target=target,
        strategy=strategy,
        changes=tuple(_variant_changes(sites[0].variant_folder(old), variant)),
        memory=memory,
        memory_sources={name: size.source for name, size in sizes.items()},
        memory_gates=tuple(_memory_gates(spec)),
        steps=_steps(spec.how.steps),
        notes=(*_notes(memory, strategy, stable, old), *not_gated(spec.where.servers)),
        variant=variant,
    )


def _served(name: str, variants: Sequence[str]) -> str:
    """The variant of that name, or the one with that prefix, such as `k5` for `k5_1f2e3d4c`.

    Raises InputError unless there is exactly one.
    """
    matches = [name] if name in variants else [v for v in variants if v.startswith(f"{name}_")]
    if len(matches) != 1:
        hosted = ", ".join(variants)
        raise InputError(f"what.replaces is {name}: expected a variant that is served ({hosted})")
    return matches[0]


def current_side(spec: RolloutSpec, sites: Sequence[TritonSite]) -> Side:
    """What is served now, by the traffic file; without one, by the first server.

    Raises InputError if another rollout is running, TrtMtpError if the server does not answer.
    """
    file = spec.where.gateways[0].traffic
    if file.exists():
        traffic = read_traffic(file)
        if traffic.canary is not None or traffic.shadow_percent:
            raise InputError(
                f"{file}: the rollout {traffic.rollout} is on its way; finish or abort it first"
            )
        return traffic.stable
    prefix = f"{spec.where.model}_"
    names = [
        name.removeprefix(prefix)
        for site in sites[:1]
        for name, state in site.states().items()
        if name.startswith(prefix) and state == "READY"
    ]
    return Side(variants=tuple(sorted(names)))


def _profile_plan(spec: RolloutSpec, stable: Side, path: Path) -> Plan:
    before = read_profile(Path(stable.profile)) if stable.profile else Profile()
    old, new = before.model_dump(mode="json"), read_profile(path).model_dump(mode="json")
    changes = [Change(key, old[key], new[key]) for key in new if old[key] != new[key]]
    note = () if stable.profile else ("compared with the published values: no profile is known",)
    return Plan(
        name=spec.name,
        old=None,
        new=None,
        stable=stable,
        target=Side(variants=stable.variants, profile=str(path)),
        strategy=SIDE_BY_SIDE,
        changes=tuple(changes),
        memory=(),
        memory_sources={},
        memory_gates=(),
        steps=_steps(spec.how.steps),
        notes=note,
    )


def _variant_changes(old_folder: Path | None, new: EngineVariant) -> Iterable[Change]:
    """The differences between the records of two variants."""
    if old_folder is None or not (old_folder / "variant.json").is_file():
        yield Change("folder", str(old_folder), str(new.folder))
        return
    old = read_variant(old_folder).record
    yield Change("folder", str(old_folder), str(new.folder))
    for key in COMPARED:
        if getattr(old, key) != getattr(new.record, key):
            yield Change(key, getattr(old, key), getattr(new.record, key))
    for part in ("checkpoint", "versions", "device"):
        before, after = getattr(old, part), getattr(new.record, part)
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                yield Change(f"{part}.{key}", before.get(key), after.get(key))


def _sizes(site: TritonSite, variants: Iterable[str]) -> dict[str, Footprint]:
    """The memory of each served variant; 0 bytes if its directory is not on this machine."""
    sizes = {}
    for name in variants:
        folder = site.variant_folder(name) if site.is_ready(name) else None
        known = folder is not None and (folder / "variant.json").is_file()
        sizes[name] = footprint(read_variant(folder)) if known and folder else Footprint()
    return sizes


def _memory(
    spec: RolloutSpec,
    sites: Sequence[TritonSite],
    stable: Side,
    sizes: dict[str, Footprint],
    old: str,
    new: str,
) -> tuple[tuple[MemoryNeed, ...], str]:
    """The needs at each step, and the strategy: do old and new fit together on every server?"""
    limits = [
        None if server.memory_gb is None else round(server.memory_gb * 1e9)
        for server in spec.where.servers
    ]

    def needs(step: str, names: tuple[str, ...]) -> list[MemoryNeed]:
        num_bytes = total_bytes(sizes[name] for name in names)
        return [
            MemoryNeed(step, site.name, names, num_bytes, limit)
            for site, limit in zip(sites, limits, strict=True)
        ]

    before, after = stable.variants, tuple(new if n == old else n for n in stable.variants)
    together = needs("canary", (*before, new))
    if all(need.fits for need in together):
        middle, strategy = together, SIDE_BY_SIDE
    else:
        kept = tuple(name for name in before if name != old)
        middle, strategy = needs("drained", kept), DRAIN_FIRST
    return (*needs("before", before), *middle, *needs("after", after)), strategy


def _memory_gates(spec: RolloutSpec) -> Iterable[dict[str, Any]]:
    for server in spec.where.servers:
        if server.metrics is not None:
            gate = MemoryGate(server, spec.how.gates.max_memory_share)
            gate.look()
            yield gate.to_json()


def _steps(steps: Iterable[Step]) -> tuple[tuple[str, float], ...]:
    return tuple((step.name, step.set_weight or step.shadow or 0.0) for step in steps)


def _notes(memory: Sequence[MemoryNeed], strategy: str, stable: Side, old: str) -> Iterable[str]:
    for need in memory:
        if not need.fits and need.limit_bytes is not None:
            yield (
                f"{need.server} has {need.limit_bytes / 1e9:.1f} GB and needs "
                f"{need.num_bytes / 1e9:.1f} GB in the step {need.step!r}"
            )
    if strategy == DRAIN_FIRST:
        others = [name for name in stable.variants if name != old]
        carried = f"{', '.join(others)} serve all requests" if others else "NOTHING serves requests"
        yield (
            f"{old} and its successor do not fit together: {old} is drained and unloaded first, "
            f"and {carried} until the new one is loaded"
        )


def requests_per_minute(decision_log: Path, minutes: float = 10.0) -> float | None:
    """Live traffic by the end of a decision log; None if too few requests are there."""
    try:
        with open_regular(decision_log) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4_000_000))
            lines = file.read(4_000_000).splitlines()[1:]
    except (OSError, InputError):
        return None
    times = []
    for line in lines:
        try:
            times.append(float(json.loads(line)["decision"]["now_s"]))
        except (ValueError, KeyError, TypeError):
            continue
    recent = [at for at in times if at > times[-1] - 60 * minutes] if times else []
    seconds = recent[-1] - recent[0] if len(recent) > 1 else 0.0
    return 60 * (len(recent) - 1) / seconds if seconds > 0 else None
