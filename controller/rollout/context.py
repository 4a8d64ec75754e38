"""The context of a rollout's actions: its facts, the servers, the gateways' traffic files."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trt_mtp.build.variant import EngineVariant
from trt_mtp.controller.gateway.canary.traffic import (
    Side,
    Traffic,
    confirmed_revisions,
    read_traffic,
    write_traffic,
)
from trt_mtp.controller.rollout.memory_gate import MemoryGate
from trt_mtp.controller.rollout.plan import Plan, named_variant
from trt_mtp.controller.rollout.request_log import RequestLog
from trt_mtp.controller.rollout.spec import RolloutSpec
from trt_mtp.controller.rollout.triton import TritonSite, UnreachableError
from trt_mtp.errors import InputError, TrtMtpError

CONFIRM_S = 30.0  # a gateway looks once a second
POLL_S = 0.2


class InconclusiveError(TrtMtpError):
    """A step ended with too few requests for a verdict."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rollout must know until its end, whatever changes meanwhile."""

    old: str | None
    new: str | None
    stable: Side  # before the rollout
    target: Side  # after it
    strategy: str

    @classmethod
    def of(cls, plan: Plan) -> "Facts":
        """The facts of a plan."""
        return cls(plan.old, plan.new, plan.stable, plan.target, plan.strategy)

    def to_json(self) -> dict[str, Any]:
        """For the state file."""
        return {
            "old": self.old,
            "new": self.new,
            "stable": self.stable.model_dump(mode="json"),
            "target": self.target.model_dump(mode="json"),
            "strategy": self.strategy,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Facts":
        """The facts that `to_json` wrote."""
        sides = {name: Side.model_validate(value[name]) for name in ("stable", "target")}
        return cls(value["old"], value["new"], sides["stable"], sides["target"], value["strategy"])


@dataclass(frozen=True, slots=True)
class RolloutContext:
    """Everything an action needs."""

    spec: RolloutSpec
    facts: Facts
    sites: Sequence[TritonSite]
    request_log: RequestLog
    check: Callable[[], None]  # raises to end an action early: for an order, or a lost lock
    progress: Callable[[dict[str, Any]], None]

    def new_variant(self) -> EngineVariant:
        """The variant to roll out; raises InputError if it was built again since the start."""
        assert self.spec.what.variant is not None
        variant = named_variant(self.spec.what.variant)
        if variant.name != self.facts.new:
            raise InputError(
                f"{variant.folder} was built again: it is {variant.name} now, and the rollout "
                f"began with {self.facts.new}; abort it, then start again"
            )
        return variant

    @property
    def without_old(self) -> Side:
        """The stable side without the old variant, for the time that it is drained."""
        kept = tuple(name for name in self.facts.stable.variants if name != self.facts.old)
        return self.facts.stable.model_copy(update={"variants": kept})

    def memory_gate(self, site: int) -> MemoryGate | None:
        """The gate on a server's memory; None if the file names no metrics port."""
        server = self.spec.where.servers[site]
        share = self.spec.how.gates.max_memory_share
        return MemoryGate(server, share) if server.metrics else None

    def route(self, traffic: Traffic) -> None:
        """Write the traffic files, then wait until every gateway has read its file.

        Raises TrtMtpError if no gateway reads one of them.
        """
        for gateway in self.spec.where.gateways:
            written = write_traffic(gateway.traffic, traffic)
            deadline = time.monotonic() + CONFIRM_S
            while not _all_follow(confirmed_revisions(gateway.traffic), written.revision):
                self.check()
                if time.monotonic() > deadline:
                    raise TrtMtpError(
                        f"no gateway follows {gateway.traffic} within {CONFIRM_S:.0f} s: start it "
                        f"with `trt-mtp gateway --traffic {shlex.quote(str(gateway.traffic))}`"
                    )
                time.sleep(POLL_S)

    def retreat(self) -> None:
        """Take every request away from the canary at once, without waiting for the gateways.

        It names only variants that are ready: the old one may be drained.
        """
        stable = self.facts.stable
        if self.sites:
            try:
                ready = tuple(v for v in stable.variants if self.sites[0].is_ready(v))
            except UnreachableError:
                ready = ()
            stable = stable.model_copy(update={"variants": ready or stable.variants})
        for gateway in self.spec.where.gateways:
            write_traffic(gateway.traffic, self.traffic(stable))

    def wait_for_retreat(self) -> None:
        """Wait until no running gateway sends requests to the canary."""
        deadline = time.monotonic() + CONFIRM_S
        for gateway in self.spec.where.gateways:
            revision = read_traffic(gateway.traffic).revision
            while any(seen < revision for seen in confirmed_revisions(gateway.traffic)):
                self.check()
                if time.monotonic() > deadline:
                    return
                time.sleep(POLL_S)

    def traffic(self, stable: Side, **canary: Any) -> Traffic:
        """The content of a traffic file."""
        return Traffic(rollout=self.spec.name, stable=stable, **canary)


def _all_follow(confirmed: Sequence[int], revision: int) -> bool:
    return bool(confirmed) and min(confirmed) >= revision
