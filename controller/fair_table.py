"""Which names are kept of many owners': a full table forgets from the owner who has the most.

So an owner who invents names loses its own, and who has no more than its share loses nothing
("longest queue drop": Suter, Lakshman, Stiliadis and Choudhury, IEEE JSAC 17(6), 1999).
"""

from collections import OrderedDict


class FairTable:
    """At most `capacity` names; each step takes the same time, however many there are."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._names: dict[str, OrderedDict[str, None]] = {}  # by owner, those last used last
        self._by_size: dict[int, dict[str, None]] = {}  # owners by how many names they have
        self._most = 0  # names of one owner
        self._num_names = 0

    def use(self, owner: str | None, name: str) -> str | None:
        """Keep `name`, which `owner` uses now; returns the name to forget for it, if there is one.

        Names without an owner have one together.
        """
        who = owner or ""
        names = self._names.setdefault(who, OrderedDict())
        if name in names:
            names.move_to_end(name)
            return None
        names[name] = None
        self._resize(who, len(names) - 1)
        if self._num_names <= self._capacity:
            return None
        largest = self._by_size[self._most]
        return self._forget(who if who in largest else next(iter(largest)))

    def _forget(self, owner: str) -> str:
        """Forget what an owner has not used for the longest."""
        names = self._names[owner]
        name, _ = names.popitem(last=False)
        self._resize(owner, len(names) + 1)
        if not names:
            del self._names[owner]
        return name

    def _resize(self, owner: str, before: int) -> None:
        """An owner had `before` names, and has one more or one less."""
        now = len(self._names[owner])
        self._num_names += now - before
        if before:
            owners = self._by_size[before]
            del owners[owner]
            if not owners:
                del self._by_size[before]
        if now:
            self._by_size.setdefault(now, {})[owner] = None
        if now > self._most or self._most not in self._by_size:
            self._most = now
