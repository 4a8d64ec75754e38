"""By how much the reference preferred its token where a new variant answered another one."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from tests.engine_fixtures import Model
from tests.rollout_fixtures import make_double, place
from tests.triton_client import streaming
from tests.variants import build_engines
from trt_mtp.build.variant import read_variant
from trt_mtp.controller.client import Prompt, TimedAnswer
from trt_mtp.controller.rollout.equivalence import Divergence, EquivalenceResult, compare_answers
from trt_mtp.controller.rollout.spec import Server
from trt_mtp.controller.rollout.triton import TritonSite, sites
from trt_mtp.serve.engine.text import TextCodec
from trt_mtp.serve.grpc_access import GrpcAccess
from trt_mtp.serve.serving import admin_key_in, resolve_variants, serving

TIMEOUT_S = 60.0
PROMPTS = [
    Prompt([{"role": "user", "content": text}], max_tokens=24)
    for text in ("Name three colours.", "def add(a, b):", "Good morning.")
]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draft lengths 0 and 3 of one checkpoint."""
    return build_engines(tmp_path_factory.mktemp("margin"), [0, 3])


@pytest.fixture(scope="module")
def site(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonSite]:
    """A real Triton that serves them."""
    folder = tmp_path_factory.mktemp("site")
    key = folder / "admin.key"
    access = GrpcAccess(admin_key=admin_key_in(key))
    variants = resolve_variants([engines])
    with serving(variants, repository=folder / "repository", access=access) as triton:
        server = Server(grpc=triton.grpc_url, admin_key_file=key, repository=folder / "repository")
        with sites((server,), "qwen_mtp") as (found,):
            yield found


def computed_margin(engines: Path, prompt: Prompt, prefix: tuple[int, ...]) -> float:
    """From the logits of the forward pass, without an engine, in passes of one token."""
    variant = read_variant(engines / "k0")
    assert variant.record.shared is not None
    shared = variant.folder / variant.record.shared
    ids = [*TextCodec(shared).encode_chat(list(map(dict, prompt.messages))), *prefix]
    row = np.sort(Model(shared).logits([(0, ids)], [1] * len(ids))[-1])
    return float(row[-1] - row[-2])


@pytest.mark.parametrize("reference", ["k0", "k3"])
def test_a_divergence_has_the_margin_of_the_logits(
    reference: str, engines: Path, site: TritonSite
) -> None:
    """At the first, a middle and the last token, asked of either draft length."""
    expected = site.answers(reference, PROMPTS, TIMEOUT_S)
    positions = (0, 7, 23)
    got = []
    for answer, at in zip(expected, positions, strict=True):
        ids = list(answer.token_ids)
        ids[at] += 1
        got.append(replace(answer, token_ids=tuple(ids)))

    def margin(prompt: Prompt, prefix: tuple[int, ...]) -> float | None:
        return site.margin(reference, prompt, prefix, TIMEOUT_S)

    outcome = compare_answers(PROMPTS, expected, got, margin)
    assert [found.position for found in outcome.divergences] == list(positions)
    for found, prompt, answer in zip(outcome.divergences, PROMPTS, expected, strict=True):
        prefix = answer.token_ids[: found.position]
        assert found.margin == computed_margin(engines, prompt, prefix)
    assert f"best logits there: {outcome.divergences[0].margin:.4g})" in outcome.sentence()


def test_only_who_asks_gets_it(site: TritonSite) -> None:
    """No other response has the output."""
    with streaming(site.name) as stream:
        plain = stream.ask("qwen_mtp_k3", text_input="def", sampling_param_max_tokens=2)
        asked = stream.ask(
            "qwen_mtp_k3", text_input="def", sampling_param_max_tokens=2, return_margin=True
        )
    assert not any("margin" in response.outputs for response in plain)
    assert asked[0].outputs["margin"][0] >= 0


def test_a_near_tie_is_no_divergence_of_an_engine_that_rounds() -> None:
    """Where the two best are a rounding apart, only an engine that is exact must not part."""
    expected = [answer(1, 2, 3), answer(1, 2, 3), answer(1, 2, 3)]
    got = [answer(1, 2, 4), answer(1, 9, 3), answer(1, 2, 3)]
    margins = {(1, 2): 0.06, (1,): 3.0}

    def compared(is_exact: bool) -> EquivalenceResult:
        return compare_answers(PROMPTS, expected, got, lambda _, ids: margins[ids], is_exact)

    assert compared(True).num_diverged == 2
    rounding = compared(False)
    assert (rounding.num_near_ties, rounding.num_diverged) == (1, 1)
    assert "1 of 3 greedy answers differ, 1 more at near ties" in rounding.sentence()
    assert "the first at token 1" in rounding.sentence()


def answer(*token_ids: int) -> TimedAnswer:
    """An answer of these tokens."""
    return cast(TimedAnswer, SimpleNamespace(token_ids=token_ids))


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    """An engine that tells no logits leaves the margin open, in the sentence too."""
    with place(tmp_path, [make_double(tmp_path / "engines", 3)]) as here:
        server = Server(
            grpc=here.triton.grpc_url,
            admin_key_file=tmp_path / "admin.key",
            repository=tmp_path / "repository",
        )
        with sites((server,), "qwen_mtp") as (found,):
            assert found.margin("k3", PROMPTS[0], (7,), TIMEOUT_S) is None
            assert found.margin("k9", PROMPTS[0], (7,), TIMEOUT_S) is None
    outcome = EquivalenceResult(1, 8, (Divergence("p", 2, (1,), (2,)),))
    assert "best logits there: not known)" in outcome.sentence()
    assert json.loads(json.dumps(outcome.to_json()))["divergences"][0]["margin"] is None
