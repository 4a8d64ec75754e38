"""Grammars of a checkpoint's answers: compiled by llguidance, one guide for each answer."""

import json
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trt_mtp.build.chat_format import read_chat_format
from trt_mtp.errors import InputError
from trt_mtp.serve.chat_format import ChatFormat
from trt_mtp.serve.engine.base import Guided, Request
from trt_mtp.serve.engine.grammar_trial import GrammarTrial
from trt_mtp.serve.engine.guide import NOTHING_FITS, Guide, Marks, Phase, grammar_error
from trt_mtp.serve.engine.schema_formats import without_notes
from trt_mtp.serve.engine.text import TextCodec
from trt_mtp.serve.engine.tool_grammar import calls_grammar

THINK, THINK_END, CALL = "<think>", "</think>", "<tool_call>"
# between the parts of JSON: a line break with an indentation, or some blanks; without a bound, a
# weak model may write nothing else
JSON_OPTIONS: Mapping[str, Any] = {"whitespace_pattern": r"(?:\r?\n[ \t]{0,32}|[ \t]{1,4})"}
# of work for the automaton of a grammar's texts: twice what schemas of 50 KB were seen to take, and
# a fifth of a second at most, for which every other answer waits
LEXER_FUEL = 200_000
LEXER_STATES = 50_000  # of that automaton, one or two KB each
LIMITS: Mapping[str, Any] = {"initial_lexer_fuel": LEXER_FUEL, "max_lexer_states": LEXER_STATES}
TOO_MUCH = "compiling it takes too much time or memory: make it simpler, or its numbers smaller"
MAX_TAIL = 4  # tokens of a prompt's end that may be <think> and white space after it


class Grammars:
    """What is needed to guide the answers of one engine."""

    def __init__(self, folder: Path, codec: TextCodec, vocab_size: int) -> None:
        """Nothing is read or built before the first answer that is to be guided."""
        self._folder = folder
        self._codec = codec
        self._vocab_size = vocab_size
        self._lock = threading.Lock()

    def begin(self, request: Request) -> Guide | None:
        """The guide of an answer, after its emitted tokens; None where nothing guides it.

        Raises InputError for a grammar that can't be compiled, or that the emitted tokens break.
        """
        if request.guided is None:
            return None
        with self._lock:  # the tokenizer is built once
            tokenizer, trial = self._tokenizer, self._trial
        sampling = request.sampling
        guide = Guide(
            self._matcher(tokenizer, trial, request.guided),
            self._marks,
            self._phase(request.prompt_ids, request.guided),
            self.num_words,
            None if sampling.ignore_eos else sampling.min_tokens,
        )
        _replay(guide, request.emitted_ids)
        return guide

    def close(self) -> None:
        """End the process in which grammars are tried."""
        with self._lock:
            if "_trial" in self.__dict__:
                self._trial.close()

    @property
    def num_words(self) -> int:
        """Words of 32 bits in a mask."""
        return -(-self._vocab_size // 32)

    @cached_property
    def _tokenizer(self) -> Any:
        from llguidance import LLTokenizer

        try:
            return LLTokenizer(self._codec.tokenizer.to_str(), **self._options)
        except Exception as error:  # ValueError, and what it makes of tokenizers that it can't read
            raise InputError(
                f"guided_decoding can't be done with this checkpoint's tokenizer: {error}"
            ) from None

    @cached_property
    def _trial(self) -> GrammarTrial:
        return GrammarTrial(self._codec.tokenizer.to_str(), self._options, LIMITS)

    @property
    def _options(self) -> dict[str, Any]:
        """LLTokenizer's."""
        ends = sorted(self._codec.eos_ids) or None  # None: what llguidance takes for one
        return {"n_vocab": self._vocab_size, "eos_token": ends}

    @cached_property
    def _format(self) -> ChatFormat:
        return ChatFormat.from_json(json.dumps(read_chat_format(self._folder)))

    @cached_property
    def _marks(self) -> Marks:
        ids = (self._codec.tokenizer.token_to_id(text) for text in (THINK, THINK_END, CALL))
        think, think_end, call = (-1 if token is None else token for token in ids)
        return Marks(think, think_end, call, self._codec.eos_ids)

    def _phase(self, prompt_ids: tuple[int, ...], guided: Guided) -> Phase:
        """Where an answer to this prompt begins."""
        marks = self._marks
        if min(marks.think, marks.think_end) < 0:
            return Phase.GRAMMAR
        tail = prompt_ids[-MAX_TAIL:]
        if marks.think in tail:
            at = len(tail) - tail[::-1].index(marks.think)
            text = self._codec.tokenizer.decode(list(tail[at:]), skip_special_tokens=False)
            if not text.strip():
                return Phase.REASONING
        is_closed = marks.think_end in tail
        can_open = guided.may_think and self._format.can_think and not is_closed
        return Phase.OPENING if can_open else Phase.GRAMMAR

    def _matcher(self, tokenizer: Any, trial: GrammarTrial, guided: Guided) -> Any:
        """llguidance's matcher, whose first mask is known to be computable and not empty."""
        from llguidance import LLMatcher, LLParserLimits

        try:
            grammar = self._grammar(guided)
            if not trial.is_small(grammar):
                raise _refusal(guided, TOO_MUCH)
            limits = LLParserLimits(**LIMITS)
            matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        except ValueError as error:
            raise _refusal(guided, str(error)) from None
        words = np.zeros(self.num_words, np.uint32)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error():
            raise _refusal(guided, matcher.get_error())
        if not words.any():
            raise _refusal(guided, NOTHING_FITS[0])
        return matcher

    def _grammar(self, guided: Guided) -> str:
        from llguidance import LLMatcher

        grammar: str
        schema: Any = {} if guided.value is True else guided.value
        if guided.form == "regex":
            grammar = LLMatcher.grammar_from_regex(guided.value)
        elif guided.form == "choice":
            texts = (json.dumps(text, ensure_ascii=False) for text in guided.value)
            grammar = LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")
        elif guided.form == "tool_choice":
            grammar = LLMatcher.grammar_from_lark(self._calls(guided, None))
        elif guided.tools:
            grammar = LLMatcher.grammar_from_lark(self._calls(guided, schema))
        else:
            own = {**without_notes(schema), "x-guidance": JSON_OPTIONS}
            grammar = LLMatcher.grammar_from_json_schema(own)
        return grammar

    def _calls(self, guided: Guided, schema: Mapping[str, Any] | None) -> str:
        added = self._codec.tokenizer.get_added_tokens_decoder().values()
        return calls_grammar(
            guided.tools,
            is_xml=self._format.tool_calls == "xml",
            is_single=guided.is_single,
            special=[token.content for token in added],
            options=JSON_OPTIONS,
            schema=schema,
        )


def _refusal(guided: Guided, reason: str) -> InputError:
    text = grammar_error(reason).partition(": ")[2]
    return InputError(f"guided_decoding.{guided.form} can't be followed: {text}")


def _replay(guide: Guide, emitted_ids: tuple[int, ...]) -> None:
    for count, token in enumerate(emitted_ids, start=1):
        is_over = guide.push(token)
        if guide.error:
            raise InputError(f"token {count} of emitted_ids breaks guided_decoding")
        if is_over:
            raise InputError(f"the answer ended with token {count} of emitted_ids; it is complete")
