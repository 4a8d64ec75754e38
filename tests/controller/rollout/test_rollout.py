"""Rollouts from end to end: a real Triton with doubles of variants, a gateway process, clients."""

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rollout_crash import call
from tests.conftest import CliResult
from tests.gateway_fixtures import wait_until, watch_until_back
from tests.programs import join
from tests.rollout_fixtures import FAST_GATES, FAST_STEPS, Place, live_requests, make_double, place
from tests.triton_client import streaming, text_of
from trt_mtp.build.variant import EngineVariant
from trt_mtp.controller.profile import Profile, write_profile
from trt_mtp.controller.rollout import context as rollout_context
from trt_mtp.controller.rollout.plan import named_variant
from trt_mtp.serve.processes import children
from trt_mtp.serve.repository import loaded_models

Cli = Callable[..., CliResult]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One place for all rollouts; each takes over what the one before left."""
    folder = tmp_path_factory.mktemp("rollout")
    with place(folder, [make_double(folder / "engines", length) for length in (0, 3)]) as running:
        yield running


@pytest.fixture
def build(here: Place) -> Callable[..., EngineVariant]:
    """Makes a variant that was not served before."""

    def make(draft_length: int = 3, **manners: Any) -> EngineVariant:
        number = next(NUMBERS)
        return make_double(here.folder / f"b{number}", draft_length, number=number, **manners)

    return make


def served(here: Place) -> str:
    """The stable variant beside k0."""
    if not (here.folder / "traffic.json").exists():
        return "k3"
    return next(str(name) for name in here.traffic()["stable"]["variants"] if name != "k0")


def spec(here: Place, variant: EngineVariant, **how: Any) -> Path:
    """The file of a rollout of `variant`."""
    return here.spec(variant.folder, served(here), name=f"r{next(NUMBERS)}", **how)


def is_as_before(here: Place, before: str, variant: EngineVariant) -> bool:
    """True when nothing is left of a rollout of `variant`."""
    traffic = here.traffic()
    model = here.folder / "repository" / f"qwen_mtp_{named_variant(variant.folder).name}"
    return (
        traffic["stable"]["variants"] == ["k0", before]
        and traffic["canary"] is None
        and not model.exists()
    )


def phase(result: CliResult) -> str:
    """The phase in a command's JSON."""
    return str(json.loads(result.out)["phase"])


def test_a_variant_takes_the_place_of_another(
    here: Place, build: Callable[..., EngineVariant], cli: Cli
) -> None:
    """In order, without a request lost; the old one is gone and a second start does nothing."""
    variant, before = build(), served(here)
    name = named_variant(variant.folder).name
    soak = {"set_weight": 100, "at_least_s": 0, "at_most_s": 60}
    file = spec(here, variant, steps=[*FAST_STEPS, soak])
    planned = cli("rollout", "start", file, "--dry-run", "--json")
    assert (planned.code, json.loads(planned.out)["new"]) == (0, name)
    assert not here.state.exists() or cli("rollout", "status", file).code == 2
    with live_requests(here.gateway) as seen:
        started = cli("rollout", "start", file, "--json")
        assert (started.code, phase(started)) == (0, "Successful")
        after = len(seen.answers)
        wait_until(lambda: len(seen.answers) > after + 20)
    assert seen.errors == []
    assert {answer.split()[0] for answer in seen.answers[after + 4 :]} <= {
        "qwen_mtp_k0",
        f"qwen_mtp_{name}",
    }
    assert here.traffic()["stable"]["variants"] == ["k0", name]
    assert loaded_models(here.folder / "repository") == ("qwen_mtp_k0", f"qwen_mtp_{name}")
    assert cli("rollout", "status", file).code == 0
    events = json.loads(cli("rollout", "history", file, "--json").out)["events"]
    done = [(event["action"], event["stage"]) for event in events]
    for action in ("baseline", "load 0", "equivalence", "switch", "keep 0", "unload 0"):
        assert done.index((action, "do")) < done.index((action, "done"))
    assert cli("rollout", "start", file).code == 0
    assert len(json.loads(cli("rollout", "history", file, "--json").out)["events"]) == len(events)
    assert before != served(here)


def test_triton_comes_back_with_what_was_rolled_out(
    here: Place, build: Callable[..., EngineVariant], cli: Cli
) -> None:
    """A watched server takes an unload for no failure, and when it dies loads what is stable."""
    with live_requests(here.gateway, num_clients=2):
        assert cli("rollout", "start", spec(here, build())).code == 0
    pid = here.triton.pid
    here.triton.check()
    assert here.triton.pid == pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not children(pid))
    watch_until_back(here.triton, pid)
    with streaming(here.triton.grpc_url) as stream:
        answer = stream.ask(f"qwen_mtp_{served(here)}", text_input="{}")
    assert served(here) in text_of(answer)
    with live_requests(here.gateway, num_clients=1) as seen:
        wait_until(lambda: len(seen.answers) > 3)


@pytest.mark.parametrize(
    ("manners", "code", "ending", "reason"),
    [
        ({"first_token": 9}, 4, "Aborted", "8 of 8 greedy answers differ, the first at token 0"),
        ({"fails": "CUDA out of memory"}, 1, "Failed", "CUDA out of memory"),
        ({"delay_s": 0.05}, 4, "Aborted", "fails at"),
    ],
)
def test_what_is_worse_is_taken_back(
    manners: dict[str, Any],
    code: int,
    ending: str,
    reason: str,
    here: Place,
    build: Callable[..., EngineVariant],
    cli: Cli,
) -> None:
    """Other answers, a model that can't be loaded, and slow answers end in the old state.

    The clients ask for the draft length: the policy would soon leave a slow variant alone.
    """
    variant, before = build(**manners), served(here)
    slow_step = [{"set_weight": 50, "at_least_s": 40, "at_most_s": 60}]
    file = spec(here, variant, steps=slow_step)
    with live_requests(here.gateway, num_clients=8, pause_s=0, draft_length=3) as seen:
        result = cli("rollout", "start", file, "--json")
    assert (result.code, phase(result)) == (code, ending)
    assert reason in json.loads(result.out)["reason"]
    assert seen.errors == []
    assert is_as_before(here, before, variant)
    assert cli("rollout", "status", file).code == code
    assert cli("rollout", "start", file).code == code  # it is left as it is
    if "first_token" in manners:
        events = json.loads(cli("rollout", "history", file, "--json").out)["events"]
        (failed,) = [event for event in events if event["stage"] == "failed"]
        assert [found["got"][0] for found in failed["what"]["divergences"]] == [9] * 8


@pytest.mark.parametrize(("manners", "code"), [({}, 0), ({"fifth_token": 9}, 4)])
def test_copies_of_live_requests_are_compared(
    manners: dict[str, Any],
    code: int,
    here: Place,
    build: Callable[..., EngineVariant],
    cli: Cli,
) -> None:
    """The canary answers copies before it answers anybody; one answer that differs ends it."""
    steps = [
        {"shadow": 100, "at_least_s": 0, "at_most_s": 60},
        {"set_weight": 100, "at_least_s": 0, "at_most_s": 60},
    ]
    variant, before = build(**manners), served(here)
    file = spec(here, variant, steps=steps)
    with live_requests(here.gateway, temperature=0.0, tokens=6) as seen:
        result = cli("rollout", "start", file, "--json")
    assert (result.code, seen.errors) == (code, [])
    if code:
        assert "copied requests differ" in json.loads(result.out)["reason"]
        assert is_as_before(here, before, variant)
    else:
        events = json.loads(cli("rollout", "history", file, "--json").out)["events"]
        (shadowed,) = [e for e in events if (e["action"], e["stage"]) == ("0 shadow 100", "done")]
        assert shadowed["what"]["num_compared"] >= FAST_GATES["min_requests"]
        assert shadowed["what"]["num_diverged"] == 0


def test_a_pause_waits_for_promote(
    here: Place, build: Callable[..., EngineVariant], cli: Cli
) -> None:
    """The rollout stops at a pause with traffic as it is; promote goes on with the same file."""
    steps = [
        {"set_weight": 50, "at_least_s": 0, "at_most_s": 60},
        {"pause": True},
        {"set_weight": 100, "at_least_s": 0, "at_most_s": 60},
    ]
    file = spec(here, build(draft_length=1), steps=steps)
    with live_requests(here.gateway) as seen:
        assert cli("rollout", "start", file).code == 3
        assert here.traffic()["canary_percent"] == 50
        assert cli("rollout", "start", file).code == 3  # it still waits
        assert cli("rollout", "pause", file).code == 3  # no less if it is told to
        right = file.read_text()
        file.write_text(json.dumps(_without_pauses(_yaml(file))))
        for words in (["promote"], ["promote", "--full"], ["resume"]):
            changed = cli("rollout", *words, file)
            assert (changed.code, "changed since the rollout began" in changed.err) == (2, True)
        file.write_text(right)
        result = cli("rollout", "promote", file, "--json", "--why", "looks well")
    assert (result.code, phase(result), seen.errors) == (0, "Successful", [])
    events = json.loads(cli("rollout", "history", file, "--json").out)["events"]
    assert any(event["action"] == "2 set_weight 100" for event in events)  # nothing was left out
    again = cli("rollout", "start", file)
    assert (again.code, "give it another name" in again.err) == (0, True)


def test_too_few_requests_are_inconclusive_and_abort_goes_back(
    here: Place, build: Callable[..., EngineVariant], cli: Cli
) -> None:
    """Without traffic nothing is proven: exit code 5, then a person decides."""
    variant, before = build(), served(here)
    file = spec(here, variant, steps=[{"set_weight": 5, "at_least_s": 0, "at_most_s": 1}])
    assert cli("rollout", "start", file).code == 5
    assert cli("rollout", "resume", file).code == 5
    explained = cli("rollout", "explain", file)
    assert (explained.code, "no request yet" in explained.out) == (0, True)
    assert f"memory of {here.triton.grpc_url} is not gated" in explained.out
    assert cli("rollout", "abort", file, "--why", "no traffic").code == 0
    assert is_as_before(here, before, variant)
    aborted = cli("rollout", "status", file, "--json")
    assert (aborted.code, "no traffic" in json.loads(aborted.out)["reason"]) == (4, True)
    refused = cli("rollout", "promote", file)
    assert (refused.code, "`start --again` restarts it" in refused.err) == (2, True)


def test_promote_full_leaves_out_what_is_left(
    here: Place, build: Callable[..., EngineVariant], cli: Cli
) -> None:
    """A person may go straight to the end."""
    steps = [{"set_weight": weight, "at_least_s": 0, "at_most_s": 1} for weight in (1, 5, 25)]
    variant = build()
    file = spec(here, variant, steps=steps)
    assert cli("rollout", "start", file).code == 5
    assert cli("rollout", "promote", file, "--full").code == 0
    assert served(here) == named_variant(variant.folder).name


def test_an_order_reaches_the_process_at_work(
    here: Place, build: Callable[..., EngineVariant], cli: Cli
) -> None:
    """A second start acts not, and abort is obeyed by the process that does."""
    variant, before = build(), served(here)
    file = spec(here, variant, steps=[{"set_weight": 50, "at_least_s": 600, "at_most_s": 900}])
    ended: list[tuple[int, int]] = []
    with live_requests(here.gateway, num_clients=2) as seen:
        at_work = threading.Thread(target=lambda: ended.append(call(file)))
        at_work.start()
        traffic = here.folder / "traffic.json"
        wait_until(
            lambda: bool(ended) or (traffic.exists() and here.traffic()["canary_percent"] == 50),
            120,
        )
        assert not ended
        other = cli("rollout", "start", file)
        assert (other.code, "is at work" in other.err) == (3, True)
        assert cli("rollout", "abort", file).code == 0
        join(at_work)
    assert [code for code, _ in ended] == [4]
    assert seen.errors == []
    assert is_as_before(here, before, variant)


@pytest.mark.parametrize("point", [6, 15])
def test_a_kill_changes_nothing(
    point: int, here: Place, build: Callable[..., EngineVariant], cli: Cli
) -> None:
    """The short form of `make rollout-crash`: the next call ends as if nothing had been."""
    variant = build()
    file = spec(here, variant, steps=FAST_STEPS)
    with live_requests(here.gateway) as seen:
        assert call(file, point)[0] == -signal.SIGKILL
        answered = len(seen.answers)
        wait_until(lambda: len(seen.answers) > answered + 4)
        assert call(file)[0] == 0
    assert seen.errors == []
    assert not any("half-loaded" in answer for answer in seen.answers)
    assert served(here) == named_variant(variant.folder).name


def test_on_several_servers_the_first_is_the_canarys(tmp_path: Path, cli: Cli) -> None:
    """The others load the variant before its share is more than one server's part."""
    served = [make_double(tmp_path / "engines", length) for length in (0, 3)]
    with place(tmp_path, served, num_servers=2) as two:
        variant = make_double(tmp_path / "new", 3, number=0)
        steps = [
            {"set_weight": weight, "at_least_s": 0, "at_most_s": 60} for weight in (50, 75, 100)
        ]
        file = two.spec(variant.folder, "k3", steps=steps)
        with live_requests(two.gateway) as seen:
            assert cli("rollout", "start", file).code == 0
    assert seen.errors == []
    events = json.loads(cli("rollout", "history", file, "--json").out)["events"]
    done = [event["action"] for event in events if event["stage"] == "done"]
    assert done[:6] == [
        "baseline",
        "load 0",
        "equivalence",
        "0 set_weight 50",
        "load 1",
        "1 set_weight 75",
    ]
    assert done[-4:] == ["keep 0", "keep 1", "unload 0", "unload 1"]
    for folder in ("repository", "repository1"):
        assert f"qwen_mtp_{named_variant(variant.folder).name}" in loaded_models(tmp_path / folder)


def test_without_a_gateway_nothing_is_rolled_out(
    here: Place, build: Callable[..., EngineVariant], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traffic file that nobody obeys is an error; with the right one the same call goes on."""
    monkeypatch.setattr(rollout_context, "CONFIRM_S", 0.5)
    variant = build()
    file = spec(here, variant)
    right = file.read_text()
    file.write_text(right.replace("traffic.json", "nobodys.json"))
    result = cli("rollout", "start", file)
    assert (result.code, "no gateway follows" in result.out) == (1, True)
    (here.folder / "nobodys.json").unlink()
    file.write_text(right)
    changed = cli("rollout", "start", file)
    assert (changed.code, "changed since the rollout began" in changed.err) == (2, True)
    assert cli("rollout", "abort", file).code == 0


def test_a_profile_is_rolled_out_without_triton(here: Place, cli: Cli) -> None:
    """The canary's conversations are decided with it, and at the end all are."""
    profile = here.folder / "profile.json"
    write_profile(profile, Profile(exploration=0.1))
    file = spec(here, make_double(here.folder / "unused", 3))
    text = json.loads(json.dumps(_yaml(file)))
    text["what"] = {"profile": "profile.json"}
    del text["where"]["servers"]
    file.write_text(json.dumps(text))  # JSON is YAML
    planned = json.loads(cli("rollout", "plan", file, "--json").out)
    assert [change["key"] for change in planned["changes"]] == ["exploration"]
    with live_requests(here.gateway) as seen:
        result = cli("rollout", "start", file, "--json")
    assert (result.code, phase(result), seen.errors) == (0, "Successful", [])
    assert here.traffic()["stable"]["profile"] == str(profile)


def test_where_both_do_not_fit_the_old_one_goes_first(
    here: Place, build: Callable[..., EngineVariant], cli: Cli
) -> None:
    """Other variants answer meanwhile, and the memory that the plan shows is kept to."""
    variant = build()
    file = spec(here, variant)
    value = _yaml(file)
    value["where"]["servers"][0]["memory_gb"] = 0.3  # two variants of 150 MB, not three
    file.write_text(json.dumps(value))
    planned = cli("rollout", "plan", file)
    assert "drain first" in planned.out
    assert "k0 serve all requests" in planned.out
    with live_requests(here.gateway, num_clients=2) as seen:
        assert cli("rollout", "start", file).code == 0
    assert seen.errors == []
    assert served(here) == named_variant(variant.folder).name
    value["what"] = {"variant": str(build().folder), "replaces": "k7"}
    file.with_name("wrong.yaml").write_text(json.dumps(value))
    wrong = cli("rollout", "plan", file.with_name("wrong.yaml"))
    assert (wrong.code, "expected a variant that is served" in wrong.err) == (2, True)


def _yaml(file: Path) -> Any:
    import yaml

    return yaml.safe_load(file.read_text())


def _without_pauses(document: Any) -> Any:
    steps = [step for step in document["how"]["steps"] if "pause" not in step]
    return {**document, "how": {**document["how"], "steps": steps}}
