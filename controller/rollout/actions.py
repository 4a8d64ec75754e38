"""The actions of a rollout: each may be done twice and undone twice, wherever a kill left it."""

from dataclasses import dataclass
from typing import Any, Protocol

from trt_mtp.controller.client import Prompt
from trt_mtp.controller.gateway.traffic import Traffic
from trt_mtp.controller.rollout.equivalence import compare_answers, greedy_prompts
from trt_mtp.controller.rollout.gates import GateFailed
from trt_mtp.controller.rollout.plan import DRAIN_FIRST
from trt_mtp.controller.rollout.spec import Step
from trt_mtp.controller.rollout.triton import TritonSite
from trt_mtp.controller.rollout.watch import watch
from trt_mtp.controller.rollout.work import Work
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.repository import loaded_models, write_loaded_models

Result = dict[str, Any]  # for the history


class Action(Protocol):
    """One thing that is done, and can be taken back."""

    @property
    def name(self) -> str:
        """In the history."""

    def do(self, work: Work) -> Result:
        """Do it, if it is not done already."""

    def undo(self, work: Work) -> Result:
        """Restore what was before, if it is not so already."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Pin the traffic to what is served now, before anything else appears."""

    name: str = "baseline"

    def do(self, work: Work) -> Result:
        """Write the stable side into the traffic files."""
        work.route(work.traffic(work.facts.stable))
        return {"stable": list(work.facts.stable.variants)}

    def undo(self, work: Work) -> Result:
        """The same, also when the gateway is gone."""
        work.retreat()
        return {}


@dataclass(frozen=True, slots=True)
class Load:
    """Load the new variant on a server."""

    site: int

    @property
    def name(self) -> str:
        """load 0, of the first server."""
        return f"load {self.site}"

    def do(self, work: Work) -> Result:
        """Write its model and load it; raises GateFailed when the server's memory is too full."""
        site, variant = work.sites[self.site], work.new_variant()
        site.load(variant, work.check)
        gate = work.memory_gate(self.site)
        if gate is not None:
            gate.check_fresh(work.check)
        memory = gate.to_json() if gate is not None else None
        return {"server": site.name, "variant": variant.name, "memory": memory}

    def undo(self, work: Work) -> Result:
        """Unload it and take its model away."""
        assert work.facts.new is not None
        work.wait_for_retreat()
        site = work.sites[self.site]
        ended = site.unload(work.facts.new, work.check)
        site.remove(work.facts.new)
        return {"server": site.name, "ended": ended}


@dataclass(frozen=True, slots=True)
class UnloadOld:
    """Unload the old variant on a server, when its streams have ended."""

    site: int

    @property
    def name(self) -> str:
        """unload 0, of the first server."""
        return f"unload {self.site}"

    def do(self, work: Work) -> Result:
        """No request is sent to it any more; those in flight end first."""
        assert work.facts.old is not None
        site = work.sites[self.site]
        ended = site.unload(work.facts.old, work.check)
        return {"server": site.name, "variant": work.facts.old, "ended": ended}

    def undo(self, work: Work) -> Result:
        """Load it again; its model is still in the repository."""
        assert work.facts.old is not None
        site = work.sites[self.site]
        site.load_again(work.facts.old)
        return {"server": site.name, "variant": work.facts.old}


@dataclass(frozen=True, slots=True)
class Drain:
    """Send nothing to the old variant, because the new one needs its memory."""

    name: str = "drain"

    def do(self, work: Work) -> Result:
        """The other variants carry all requests; refused when there are none."""
        if not work.without_old.variants:
            raise TrtMtpError(
                f"{work.facts.old} can't be drained: nothing else would answer; add a variant or "
                f"a server, or take the service down"
            )
        work.route(work.traffic(work.without_old))
        return {"stable": list(work.without_old.variants)}

    def undo(self, work: Work) -> Result:
        """Nothing: going back began with the traffic, and ends with it."""
        return {}


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Ask the old and the new variant the same prompts, greedily, and compare token for token."""

    name: str = "equivalence"

    def do(self, work: Work) -> Result:
        """Raises GateFailed when more answers differ than are tolerated."""
        old, new, site = work.facts.old, work.facts.new, work.sites[0]
        assert old is not None
        assert new is not None
        reference = old if work.facts.strategy != DRAIN_FIRST else work.without_old.variants[0]
        prompts, timeout_s = greedy_prompts(), work.spec.how.gates.probe_timeout_s
        expected = site.answers(reference, prompts, timeout_s)
        work.check()
        got = site.answers(new, prompts, timeout_s)

        def margin(prompt: Prompt, prefix: tuple[int, ...]) -> float | None:
            return site.margin(reference, prompt, prefix, timeout_s)

        outcome = compare_answers(prompts, expected, got, margin)
        found = {"reference": reference, **outcome.to_json()}
        if outcome.num_diverged > work.spec.how.gates.max_divergences:
            raise GateFailed(f"{new} does not answer as {reference}: {outcome.sentence()}", found)
        return found

    def undo(self, work: Work) -> Result:
        """Nothing: it only asked."""
        return {}


@dataclass(frozen=True, slots=True)
class Route:
    """Shadow or canary: send it traffic, and watch the gates until the step has enough."""

    step: Step
    number: int

    @property
    def name(self) -> str:
        """1 set_weight 5, with its place in the list."""
        return f"{self.number} {self.step.name}"

    def do(self, work: Work) -> Result:
        """Raises GateFailed, or Undecided after at_most_s."""
        work.route(self._traffic(work))
        return watch(work, self.step)

    def undo(self, work: Work) -> Result:
        """Nothing: going back began with the traffic."""
        return {}

    def _traffic(self, work: Work) -> Traffic:
        is_drained = work.facts.strategy == DRAIN_FIRST
        stable = work.without_old if is_drained else work.facts.stable
        return work.traffic(
            stable,
            canary=work.facts.target,
            canary_percent=self.step.set_weight or 0.0,
            shadow_percent=self.step.shadow or 0.0,
        )


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for a person: `trt-mtp rollout promote`."""

    number: int

    @property
    def name(self) -> str:
        """3 pause, with its place in the list."""
        return f"{self.number} pause"

    def do(self, work: Work) -> Result:
        """Nothing: the runner stops here."""
        return {}

    def undo(self, work: Work) -> Result:
        """Nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class Switch:
    """Make the new side the stable one."""

    name: str = "switch"

    def do(self, work: Work) -> Result:
        """All gateways use it and nothing else when this is done."""
        work.route(work.traffic(work.facts.target))
        return {"stable": list(work.facts.target.variants)}

    def undo(self, work: Work) -> Result:
        """The old side again; its variants are loaded by now."""
        work.retreat()
        return {}


@dataclass(frozen=True, slots=True)
class Keep:
    """Tell a server what to load when it is started again."""

    site: int

    @property
    def name(self) -> str:
        """keep 0, of the first server."""
        return f"keep {self.site}"

    def do(self, work: Work) -> Result:
        """The new variant in place of the old one."""
        return _exchange(work.sites[self.site], work.facts.old, work.facts.new)

    def undo(self, work: Work) -> Result:
        """The old variant in place of the new one."""
        return _exchange(work.sites[self.site], work.facts.new, work.facts.old)


@dataclass(frozen=True, slots=True)
class Forget:
    """Tell a server not to load the old variant when it is started again: it has to go first."""

    site: int

    @property
    def name(self) -> str:
        """forget 0, of the first server."""
        return f"forget {self.site}"

    def do(self, work: Work) -> Result:
        """Without the old variant."""
        return _exchange(work.sites[self.site], work.facts.old, None)

    def undo(self, work: Work) -> Result:
        """With it."""
        return _exchange(work.sites[self.site], None, work.facts.old)


def _exchange(site: TritonSite, gone: str | None, come: str | None) -> Result:
    """Change what the server loads when it is started; safe to do twice."""
    kept = loaded_models(site.repository)
    models = set(kept or (name for name, state in site.states().items() if state == "READY"))
    models -= {site.model(gone)} if gone else set()
    models |= {site.model(come)} if come else set()
    write_loaded_models(site.repository, sorted(models))
    return {"server": site.name, "models": sorted(models)}


def actions_of(work: Work) -> list[Action]:
    """The whole rollout, in order."""
    steps: list[Action] = [
        Pause(number) if step.pause else Route(step, number)
        for number, step in enumerate(work.spec.how.steps)
    ]
    if work.facts.new is None:
        return [Baseline(), *steps, Switch()]
    everywhere = range(len(work.sites))
    unload: list[Action] = [UnloadOld(site) for site in everywhere]
    keep: list[Action] = [Keep(site) for site in everywhere]
    load: list[Action] = [Load(site) for site in everywhere]
    if work.facts.strategy == DRAIN_FIRST:
        forget: list[Action] = [Forget(site) for site in everywhere]
        first: list[Action] = [Baseline(), Drain(), *forget, *unload, *load]
        return [*first, Equivalence(), *steps, Switch(), *keep]
    wide = _first_wide(steps, len(work.sites))
    return [
        Baseline(),
        load[0],
        Equivalence(),
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
