"""The search for stop texts in an answer as it grows, linear in both (Aho and Corasick, 1975)."""

from collections import deque
from collections.abc import Iterable


class StopSearch:
    """Tells which of some texts is complete first, one character after the other."""

    def __init__(self, texts: Iterable[str]) -> None:
        """The texts have at least one character each."""
        self._next: list[dict[str, int]] = [{}]  # by state; a state is the beginning of a text
        self._sizes = [0]  # characters of that beginning
        self._complete = [0]  # characters of the longest text that ends there
        for text in texts:
            self._add(text)
        self._fallback = self._fallbacks()
        self._state = 0

    @property
    def num_open(self) -> int:
        """How many of the last characters may begin one of the texts."""
        return self._sizes[self._state]

    def restart(self) -> None:
        """Forget what came so far."""
        self._state = 0

    def push(self, char: str) -> int:
        """The size of the longest text that `char` completes, 0 if it completes none."""
        state = self._state
        while state and char not in self._next[state]:
            state = self._fallback[state]
        self._state = self._next[state].get(char, 0)
        return self._complete[self._state]

    def _add(self, text: str) -> None:
        state = 0
        for char in text:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._sizes.append(self._sizes[state] + 1)
                self._complete.append(0)
            state = self._next[state][char]
        self._complete[state] = len(text)

    def _fallbacks(self) -> list[int]:
        """By state: the longest other one that its characters end with."""
        fallback = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            self._complete[state] = self._complete[state] or self._complete[fallback[state]]
            for char, following in self._next[state].items():
                before = fallback[state]
                while before and char not in self._next[before]:
                    before = fallback[before]
                fallback[following] = self._next[before].get(char, 0)
                queue.append(following)
        return fallback
