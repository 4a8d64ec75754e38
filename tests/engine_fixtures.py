"""Packed checkpoints, and engines driven from a test."""

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_model import (
    random_tensors,
    text_config_of,
    write_config,
    write_tokenizer,
    write_weights,
)
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.pack import pack_weights
from trt_mtp.build.text_files import text_files
from trt_mtp.serve.engine import cycle, forward
from trt_mtp.serve.engine.base import Chunk, Request, SamplingParams
from trt_mtp.serve.engine.cpu import PREFILL_CHUNK, CpuEngine, allocate
from trt_mtp.serve.engine.forward import Rows, Scratch, State
from trt_mtp.serve.engine.kernels import Array
from trt_mtp.serve.engine.weights import load_weights

ASSET = Path(__file__).parents[1] / "assets" / "qwen-mtp-tiny"
MAX_SEQ_LEN = 256
TIMEOUT_S = 240.0  # the first use may compile all kernels


def pack(checkpoint: Path, folder: Path) -> Path:
    """What `trt-mtp build` shares between variants: packed weights and the text files."""
    folder.mkdir(parents=True, exist_ok=True)
    pack_weights(read_checkpoint(checkpoint), folder, lambda *_: None)
    for name in text_files(checkpoint):
        shutil.copyfile(checkpoint / name, folder / name)
    return folder


def make_drafting_checkpoint(folder: Path, *, verse: Sequence[int] = (), **config: Any) -> Path:
    """A checkpoint whose MTP head is right about half of the time, as random weights never are.

    The trunk mostly follows a fixed permutation of the vocabulary and so does the head; both are
    disturbed by their random layers. Tokens of `verse`, all different, follow each other in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = text_config_of("bfloat16", tie_word_embeddings=False, **config)
    rng = np.random.default_rng(7)
    tensors = random_tensors(values, rng)
    for name in tensors:
        if name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight")):
            tensors[name] *= np.float32(0.5 if name.startswith("mtp.") else 0.25)
    embedding, hidden = tensors["model.embed_tokens.weight"], values["hidden_size"]
    successor = rng.permutation(values["vocab_size"])
    for token, after in pairwise(verse):
        successor[np.flatnonzero(successor == after)[0]] = successor[token]
        successor[token] = after
    tensors["lm_head.weight"][successor] = embedding * np.float32(0.5)
    tensors["mtp.fc.weight"][:, :hidden] = np.eye(hidden, dtype=np.float32)
    tensors["mtp.fc.weight"][:, hidden:] *= np.float32(0.25)
    write_config(folder, values, multimodal=False)
    write_weights(folder, tensors, "bfloat16", num_shards=1)
    write_tokenizer(folder)
    return folder


@dataclass(slots=True)
class Answer:
    """All chunks of one request, and whether the last one came."""

    chunks: list[Chunk] = field(default_factory=list)
    is_done: threading.Event = field(default_factory=threading.Event)

    def on_chunk(self, chunk: Chunk) -> None:
        """Take the next chunk."""
        assert not self.is_done.is_set(), "a chunk after the last one"
        self.chunks.append(chunk)
        if chunk.finish_reason is not None:
            self.is_done.set()

    def wait(self) -> "Answer":
        """Wait for the last chunk."""
        assert self.is_done.wait(TIMEOUT_S), "no last chunk"
        return self

    @property
    def tokens(self) -> list[int]:
        """All tokens of the answer."""
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def last(self) -> Chunk:
        """The chunk with the finish reason."""
        return self.chunks[-1]


class Blocker:
    """Holds the engine's thread in the first chunk until it may go on."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.is_entered, self.go_on = threading.Event(), threading.Event()

    def on_chunk(self, chunk: Chunk) -> None:
        """Called in the engine's thread."""
        self.is_entered.set()
        assert self.go_on.wait(10)
        self.answer.on_chunk(chunk)


@contextmanager
def opened(folder: Path, draft_length: int, max_batch_size: int = 8) -> Iterator[CpuEngine]:
    """An engine on the packed checkpoint in `folder`."""
    engine = CpuEngine(
        folder,
        draft_length=draft_length,
        max_batch_size=max_batch_size,
        max_seq_len=MAX_SEQ_LEN,
    )
    try:
        yield engine
    finally:
        engine.close()


def generate(engine: CpuEngine, requests: Sequence[Request]) -> list[Answer]:
    """Submit all at once and wait for all."""
    answers = [Answer() for _ in requests]
    for request, answer in zip(requests, answers, strict=True):
        engine.submit(request, answer.on_chunk)
    return [answer.wait() for answer in answers]


def mixed_requests(count: int, vocab: int, *, greedy: bool, max_tokens: int = 24) -> list[Request]:
    """Prompts of 1 to 140 tokens; when not greedy, every combination of sampling settings."""
    rng = np.random.default_rng(count)
    requests = []
    for i in range(count):
        length = int(rng.integers(1, 141 if i % 8 == 0 else 30))
        sampling = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0 if greedy else (0.3, 0.7, 1.0)[i % 3],
            top_k=0 if greedy else (0, 5, 40)[i // 3 % 3],
            top_p=1.0 if greedy else (1.0, 0.9)[i // 9 % 2],
            seed=i,
            ignore_eos=i % 2 == 0,
        )
        requests.append(Request(tuple(rng.integers(3, vocab, length).tolist()), sampling))
    return requests


class Model:
    """The forward passes alone, for looking at logits and drafts."""

    def __init__(self, folder: Path, draft_length: int = 3, slots: int = 16) -> None:
        """Map the packed checkpoint in `folder`."""
        self.weights, self.shape, self.kinds = load_weights(folder, MAX_SEQ_LEN)
        self.draft_length, self.slots = draft_length, slots

    def memory(self) -> tuple[State, Scratch, Rows]:
        """Empty caches and buffers, full of NaN wherever nothing may be read before it is set."""
        state, scratch, rows = allocate(
            self.shape, self.kinds, self.slots, MAX_SEQ_LEN, self.draft_length
        )
        for buffer in (state.keys, state.values, *scratch):
            buffer.fill(np.nan)
        return state, scratch, rows

    def logits(self, sequences: Sequence[tuple[int, list[int]]], passes: Sequence[int]) -> Array:
        """Logits of all tokens [N, V] of `sequences` (slot, tokens), as many a pass as said."""
        state, scratch, rows = self.memory()
        flat = [
            (token, slot, position)
            for slot, tokens in sequences
            for position, token in enumerate(tokens)
        ]
        results, start = [], 0
        for count in passes:
            for row, (token, slot, position) in enumerate(flat[start : start + count]):
                rows.token[row], rows.slot[row], rows.position[row] = token, slot, position
            forward.trunk(self.weights, self.shape, state, scratch, rows, count)
            forward.logits(self.weights, self.shape, scratch.normed, count, scratch.logits)
            results.append(scratch.logits[:count].copy())
            start += count
        assert start == len(flat)
        return np.concatenate(results)

    def drafts(
        self, prompt: Sequence[int], num_steps: int
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Greedy decoding: at each step, all tokens before it, and the drafts."""
        state, scratch, rows = self.memory()
        state.tokens[0, : len(prompt)] = prompt
        fixed = (self.weights, self.shape, state, scratch, rows)
        masks = cycle.allocate_masks(self.slots, self.draft_length, self.shape.vocab)
        for stop in (*range(PREFILL_CHUNK, len(prompt), PREFILL_CHUNK), len(prompt)):
            cycle.prefill(*fixed, 0, stop, len(prompt), True, masks)
        slots, emitted = np.zeros(1, np.int64), np.zeros(1, np.int64)
        drafts = np.zeros((1, self.draft_length), np.int64)
        for _ in range(num_steps):
            before = state.tokens[0, : state.done[0] + 1].tolist()
            cycle.cycle(*fixed, slots, drafts, emitted, masks)
            yield before, drafts[0].tolist()
