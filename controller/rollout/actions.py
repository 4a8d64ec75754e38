"""The actions of a rollout; each is idempotent, so that a killed rollout can repeat it."""

from dataclasses import dataclass
from typing import Any, Protocol

from trt_mtp.controller.client import Prompt
from trt_mtp.controller.gateway.canary.traffic import Traffic
from trt_mtp.controller.rollout.analysis import analyze
from trt_mtp.controller.rollout.context import RolloutContext
from trt_mtp.controller.rollout.equivalence import compare_answers, greedy_prompts
from trt_mtp.controller.rollout.gates import GateFailedError
from trt_mtp.controller.rollout.plan import DRAIN_FIRST
from trt_mtp.controller.rollout.spec import Step
from trt_mtp.controller.rollout.triton import TritonSite
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.repository import loaded_models, write_loaded_models
from trt_mtp.serve.verify import is_exact

Result = dict[str, Any]  # for the history


class Action(Protocol):
    """One thing that a rollout does, and can undo."""

    @property
    def name(self) -> str:
        """The name in the history."""

    def do(self, context: RolloutContext) -> Result:
        """Do it, unless it is done already."""

    def undo(self, context: RolloutContext) -> Result:
        """Restore the state before it, unless that is done already; here there is nothing to do.

        Traffic needs no action: undoing begins with `RolloutContext.retreat`.
        """
        return {}


@dataclass(frozen=True, slots=True)
class Baseline(Action):
    """Pin the traffic to the variants served now, before the new one appears."""

    name: str = "baseline"

    def do(self, context: RolloutContext) -> Result:
        """Write the stable side into the traffic files."""
        context.route(context.traffic(context.facts.stable))
        return {"stable": list(context.facts.stable.variants)}

    def undo(self, context: RolloutContext) -> Result:
        """Write the stable side, also if no gateway is running."""
        context.retreat()
        return {}


@dataclass(frozen=True, slots=True)
class Load(Action):
    """Load the new variant on a server."""

    site: int

    @property
    def name(self) -> str:
        """Such as `load 0`, for the first server."""
        return f"load {self.site}"

    def do(self, context: RolloutContext) -> Result:
        """Write its model and load it; raises GateFailedError if that fills the server's memory."""
        site, variant = context.sites[self.site], context.new_variant()
        site.load(variant, context.check)
        gate = context.memory_gate(self.site)
        if gate is not None:
            gate.check_fresh(context.check)
        memory = gate.to_json() if gate is not None else None
        return {"server": site.name, "variant": variant.name, "memory": memory}

    def undo(self, context: RolloutContext) -> Result:
        """Unload it and remove its model."""
        assert context.facts.new is not None
        context.wait_for_retreat()
        site = context.sites[self.site]
        ended = site.unload(context.facts.new, context.check)
        site.remove(context.facts.new)
        return {"server": site.name, "ended": ended}


@dataclass(frozen=True, slots=True)
class UnloadOld(Action):
    """Unload the old variant on a server after its streams have ended."""

    site: int

    @property
    def name(self) -> str:
        """Such as `unload 0`, for the first server."""
        return f"unload {self.site}"

    def do(self, context: RolloutContext) -> Result:
        """Unload it; requests in flight end first, and no others are sent to it."""
        assert context.facts.old is not None
        site = context.sites[self.site]
        ended = site.unload(context.facts.old, context.check)
        return {"server": site.name, "variant": context.facts.old, "ended": ended}

    def undo(self, context: RolloutContext) -> Result:
        """Load it again; its model is still in the repository."""
        assert context.facts.old is not None
        site = context.sites[self.site]
        site.load_again(context.facts.old)
        return {"server": site.name, "variant": context.facts.old}


@dataclass(frozen=True, slots=True)
class Drain(Action):
    """Send no requests to the old variant, because the new one needs its memory."""

    name: str = "drain"

    def do(self, context: RolloutContext) -> Result:
        """Send all requests to the other variants; raises TrtMtpError if there are none."""
        if not context.without_old.variants:
            raise TrtMtpError(
                f"{context.facts.old} can't be drained: nothing else would answer; add a variant "
                f"or a server, or take the service down"
            )
        context.route(context.traffic(context.without_old))
        return {"stable": list(context.without_old.variants)}


@dataclass(frozen=True, slots=True)
class CheckEquivalence(Action):
    """Compare the old and the new variant's greedy answers to the same prompts, token by token."""

    name: str = "equivalence"

    def do(self, context: RolloutContext) -> Result:
        """Ask both variants; raises GateFailedError if more answers differ than tolerated."""
        old, new, site = context.facts.old, context.facts.new, context.sites[0]
        assert old is not None
        assert new is not None
        reference = (
            old if context.facts.strategy != DRAIN_FIRST else context.without_old.variants[0]
        )
        prompts, timeout_s = greedy_prompts(), context.spec.how.gates.probe_timeout_s
        expected = site.answers(reference, prompts, timeout_s)
        context.check()
        got = site.answers(new, prompts, timeout_s)

        def margin(prompt: Prompt, prefix: tuple[int, ...]) -> float | None:
            return site.margin(reference, prompt, prefix, timeout_s)

        exact = is_exact(context.new_variant().engine)
        outcome = compare_answers(prompts, expected, got, margin, exact)
        result = {"reference": reference, **outcome.to_json()}
        if outcome.num_diverged > context.spec.how.gates.max_divergences:
            why = f"{new} does not answer as {reference}: {outcome.sentence()}"
            raise GateFailedError(why, result)
        return result


@dataclass(frozen=True, slots=True)
class Route(Action):
    """Send the canary traffic or copies of it, until the gates have seen enough."""

    step: Step
    number: int

    @property
    def name(self) -> str:
        """Such as `1 set_weight 5`, with its place in the list."""
        return f"{self.number} {self.step.name}"

    def do(self, context: RolloutContext) -> Result:
        """Set the traffic and analyze the step; raises GateFailedError or InconclusiveError."""
        context.route(self._traffic(context))
        return analyze(context, self.step)

    def _traffic(self, context: RolloutContext) -> Traffic:
        is_drained = context.facts.strategy == DRAIN_FIRST
        stable = context.without_old if is_drained else context.facts.stable
        return context.traffic(
            stable,
            canary=context.facts.target,
            canary_percent=self.step.set_weight or 0.0,
            shadow_percent=self.step.shadow or 0.0,
        )


@dataclass(frozen=True, slots=True)
class Pause(Action):
    """Wait for a person: `trt-mtp rollout promote`."""

    number: int

    @property
    def name(self) -> str:
        """Such as `3 pause`, with its place in the list."""
        return f"{self.number} pause"

    def do(self, context: RolloutContext) -> Result:
        """Do nothing: the runner stops here."""
        return {}


@dataclass(frozen=True, slots=True)
class Switch(Action):
    """Make the new side the stable one."""

    name: str = "switch"

    def do(self, context: RolloutContext) -> Result:
        """Send all requests to the new side; returns after every gateway does."""
        context.route(context.traffic(context.facts.target))
        return {"stable": list(context.facts.target.variants)}

    def undo(self, context: RolloutContext) -> Result:
        """Send all requests to the old side; its variants are loaded by now."""
        context.retreat()
        return {}


@dataclass(frozen=True, slots=True)
class Keep(Action):
    """Tell a server to load the new variant at its next start."""

    site: int

    @property
    def name(self) -> str:
        """Such as `keep 0`, for the first server."""
        return f"keep {self.site}"

    def do(self, context: RolloutContext) -> Result:
        """Put the new variant in place of the old one."""
        return _exchange(context.sites[self.site], context.facts.old, context.facts.new)

    def undo(self, context: RolloutContext) -> Result:
        """Put the old variant in place of the new one."""
        return _exchange(context.sites[self.site], context.facts.new, context.facts.old)


@dataclass(frozen=True, slots=True)
class Forget(Action):
    """Tell a server not to load the old variant at its next start, because it must go first."""

    site: int

    @property
    def name(self) -> str:
        """Such as `forget 0`, for the first server."""
        return f"forget {self.site}"

    def do(self, context: RolloutContext) -> Result:
        """Remove the old variant from the server's list."""
        return _exchange(context.sites[self.site], context.facts.old, None)

    def undo(self, context: RolloutContext) -> Result:
        """Put it back."""
        return _exchange(context.sites[self.site], None, context.facts.old)


def _exchange(site: TritonSite, removed: str | None, added: str | None) -> Result:
    """Change what the server loads at its next start; idempotent."""
    listed = loaded_models(site.repository)
    models = set(listed or (name for name, state in site.states().items() if state == "READY"))
    models -= {site.model(removed)} if removed else set()
    models |= {site.model(added)} if added else set()
    write_loaded_models(site.repository, sorted(models))
    return {"server": site.name, "models": sorted(models)}


def actions_of(context: RolloutContext) -> list[Action]:
    """The whole rollout, in order."""
    steps: list[Action] = [
        Pause(number) if step.pause else Route(step, number)
        for number, step in enumerate(context.spec.how.steps)
    ]
    if context.facts.new is None:
        return [Baseline(), *steps, Switch()]
    everywhere = range(len(context.sites))
    unload: list[Action] = [UnloadOld(site) for site in everywhere]
    keep: list[Action] = [Keep(site) for site in everywhere]
    load: list[Action] = [Load(site) for site in everywhere]
    if context.facts.strategy == DRAIN_FIRST:
        forget: list[Action] = [Forget(site) for site in everywhere]
        first: list[Action] = [Baseline(), Drain(), *forget, *unload, *load]
        return [*first, CheckEquivalence(), *steps, Switch(), *keep]
    wide = _first_wide(steps, len(context.sites))
    return [
        Baseline(),
        load[0],
        CheckEquivalence(),
        *steps[:wide],
        *load[1:],
        *steps[wide:],
        Switch(),
        *keep,
        *unload,
    ]


def _first_wide(steps: list[Action], num_servers: int) -> int:
    """The first step whose share of the traffic is more than one server's."""
    for index, step in enumerate(steps):
        if isinstance(step, Route) and (step.step.set_weight or 0) * num_servers > 100:
            return index
    return len(steps)
