"""Coding: a specification -> the one canonical piece of Python or SQL that meets it."""

from __future__ import annotations

from random import Random

from example import Example, chat
from sources import Sources

TYPES = ("str", "int", "float", "bool", "list", "dict")
SQL_TYPES = ("TEXT", "INTEGER", "REAL", "BOOLEAN", "DATE")
OPERATIONS = {"adds": "+", "subtracts": "-", "multiplies": "*", "divides": "/"}


def _names(rng: Random, words: Sources, low: int, high: int) -> list[str]:
    return rng.sample(words.nouns, rng.randint(low, high))


def _dataclass(rng: Random, words: Sources) -> tuple[str, str]:
    name, *fields = _names(rng, words, 3, 5)
    typed = [(field, rng.choice(TYPES)) for field in fields]
    listed = ", ".join(f"{field} ({kind})" for field, kind in typed)
    ask = rng.choice(
        (
            f"Write a Python dataclass {name.title()} with the fields {listed}.",
            f"I need a dataclass called {name.title()}: {listed}",
        )
    )
    body = "\n".join(f"    {field}: {kind}" for field, kind in typed)
    head = "from dataclasses import dataclass\n\n\n@dataclass\n"
    return ask, f"{head}class {name.title()}:\n{body}"


def _class(rng: Random, words: Sources) -> tuple[str, str]:
    name, *fields = _names(rng, words, 3, 5)
    ask = rng.choice(
        (
            f"Write a Python class {name.title()} whose __init__ stores {', '.join(fields)}.",
            f"Python class {name.title()} with an __init__ for {', '.join(fields)}, please.",
        )
    )
    body = "\n".join(f"        self.{field} = {field}" for field in fields)
    return ask, f"class {name.title()}:\n    def __init__(self, {', '.join(fields)}):\n{body}"


def _function(rng: Random, words: Sources) -> tuple[str, str]:
    verb, (first, second) = rng.choice(words.verbs), rng.sample(words.nouns, 2)
    name = f"{verb}_{first}"
    does, sign = rng.choice(list(OPERATIONS.items()))
    ask = rng.choice(
        (
            f"Write a Python function {name} that {does} {first} and {second}.",
            f"Define {name}({first}, {second}): it {does} the two.",
        )
    )
    return ask, f"def {name}({first}, {second}):\n    return {first} {sign} {second}"


def _test(rng: Random, words: Sources) -> tuple[str, str]:
    name = f"{rng.choice(words.verbs)}_{rng.choice(words.nouns)}"
    cases = [
        (rng.randint(0, 99), rng.randint(0, 99), rng.randint(0, 999))
        for _ in range(rng.randint(1, 3))
    ]
    told = ", ".join(f"{name}({a}, {b}) is {c}" for a, b, c in cases)
    ask = rng.choice((f"Write a pytest test: {told}.", f"Test in Python that {told}."))
    body = "\n".join(f"    assert {name}({a}, {b}) == {c}" for a, b, c in cases)
    return ask, f"def test_{name}():\n{body}"


def _table(rng: Random, words: Sources) -> tuple[str, str]:
    table, *columns = _names(rng, words, 3, 5)
    typed = [(column, rng.choice(SQL_TYPES)) for column in columns]
    listed = ", ".join(f"{column} {kind.lower()}" for column, kind in typed)
    ask = rng.choice(
        (
            f"Write SQL that creates the table {table} with {listed}.",
            f"SQL: new table {table}, columns {listed}",
        )
    )
    body = ",\n".join(f"    {column} {kind} NOT NULL" for column, kind in typed)
    return ask, f"CREATE TABLE {table} (\n    id INTEGER PRIMARY KEY,\n{body}\n);"


def _select(rng: Random, words: Sources) -> tuple[str, str]:
    table, where, *columns = _names(rng, words, 3, 5)
    value = rng.choice(words.cities)
    listed = ", ".join(columns)
    ask = rng.choice(
        (
            f"Write SQL that reads {listed} from {table} where {where} is {value}.",
            f"SQL: {listed} of {table}, only rows with {where} equal to {value}",
        )
    )
    return ask, f"SELECT {listed}\nFROM {table}\nWHERE {where} = '{value}'\nORDER BY {columns[0]};"


SPECS = (_dataclass, _class, _function, _test, _table, _select)


def coding(rng: Random, words: Sources) -> Example:
    """A specification -> a dataclass, class, function, test, table or query, fenced."""
    spec = rng.choice(SPECS)
    ask, body = spec(rng, words)
    language = "sql" if spec in (_table, _select) else "python"
    return Example("coding", chat(ask), f"```{language}\n{body}\n```")
