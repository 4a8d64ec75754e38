"""The CPU engine computes Qwen3.5: its logits and drafts are those of independent code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3_5ForCausalLM

from tests.engine_fixtures import ASSET, Model, pack
from tests.tiny_model import make_checkpoint
from trt_mtp.serve.engine.kernels import Array
from trt_mtp.serve.model import reference

ROPE = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {},
    "other": {
        "hidden_size": 76,
        "intermediate_size": 100,
        "num_hidden_layers": 5,
        "full_attention_interval": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 28,
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 20,
        "linear_conv_kernel_dim": 3,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "rope_parameters": ROPE | {"mrope_section": [3, 2, 2], "mrope_interleaved": True},
    },
}


@pytest.fixture(scope="module", params=[*SHAPES, "asset"])
def checkpoint_and_packed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A checkpoint that transformers reads, and the same weights packed.

    The packed ones of the second shape come from a multimodal checkpoint of two shards.
    """
    folder = tmp_path_factory.mktemp("model")
    if request.param == "asset":
        return ASSET, pack(ASSET, folder / "packed")
    sizes = SHAPES[request.param]
    plain = make_checkpoint(folder / "plain", dtype="bfloat16", **sizes)
    source = plain
    if request.param == "other":
        source = make_checkpoint(
            folder / "multimodal", dtype="bfloat16", multimodal=True, num_shards=2, **sizes
        )
    return plain, pack(source, folder / "packed")


def random_tokens(vocab: int, count: int) -> list[int]:
    """Tokens without meaning."""
    tokens: list[int] = np.random.default_rng(count).integers(0, vocab, count).tolist()
    return tokens


def transformers_logits(checkpoint: Path, tokens: list[int]) -> Array:
    """All logits [N, V] in float32."""
    model = Qwen3_5ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        logits: Array = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


def test_logits_are_those_of_transformers(checkpoint_and_packed: tuple[Path, Path]) -> None:
    """Every logit of 90 tokens is within 1e-4 of Qwen3_5ForCausalLM's."""
    checkpoint, packed = checkpoint_and_packed
    model = Model(packed)
    tokens = random_tokens(model.shape.vocab, 90)
    ours = model.logits([(0, tokens)], [64, 1, 2, 3, 4, 5, 6, 5])
    theirs = transformers_logits(checkpoint, tokens)
    assert np.abs(ours - theirs).max() < 1e-4 * max(1.0, float(np.abs(theirs).max()))


def test_drafts_are_those_of_the_reference(checkpoint_and_packed: tuple[Path, Path]) -> None:
    """Each draft of 12 steps is the largest logit of the torch reference, fed the same tokens."""
    checkpoint, packed = checkpoint_and_packed
    model, oracle = Model(packed), reference.load(checkpoint)
    prompt = random_tokens(model.shape.vocab, 70)
    depth = model.draft_length
    for before, drafts in model.drafts(prompt, num_steps=12):
        # the hidden state before the last token is the last one that the head gets from the trunk
        tokens = torch.tensor([before + drafts])
        starts = torch.tensor([[len(before) - 2]])
        with torch.no_grad():
            hidden = oracle.model(tokens)
            states = oracle.draft_chain(tokens, hidden, starts, depth)
            rows = [oracle.logits(state)[0, 0].numpy() for state in states]
        for row, draft in zip(rows, drafts, strict=True):
            assert row[draft] > row.max() - 1e-3
