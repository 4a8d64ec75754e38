"""Made-up facts: records of seven kinds, and the sentences that state them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from sources import Sources

Value = str | int | float

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
COLOURS = [
    "red",
    "blue",
    "green",
    "black",
    "white",
    "grey",
    "brown",
    "yellow",
    "purple",
    "orange",
    "pink",
    "silver",
]

SENTENCES = {
    "person": (
        "{name}, aged {age}, lives in {city} and works as a {job}.",
        "{name} is a {job} from {city} who is {age} years old.",
        "Meet {name}: {age} years old, {job}, based in {city}.",
        "In {city} you can meet {name}, a {job} of {age}.",
    ),
    "order": (
        "{customer} ordered {quantity} of the {item} for {price} dollars, order {id}.",
        "Order {id}: {quantity} x {item}, {price} dollars, for {customer}.",
        "For order {id}, {customer} pays {price} dollars and gets {quantity} of the {item}.",
    ),
    "event": (
        "The {title} takes place in {city} on {date}, hosted by {host}.",
        "{host} hosts the {title} on {date} in {city}.",
        "On {date}, {city} welcomes the {title}; the host is {host}.",
    ),
    "book": (
        '"{title}" by {author} came out in {year} and has {pages} pages.',
        'In {year} {author} published "{title}", a book of {pages} pages.',
        '{author} wrote "{title}" ({pages} pages, {year}).',
    ),
    "flight": (
        "Flight {number} goes from {origin} to {destination} and has {seats} seats.",
        "There are {seats} seats on flight {number}, which leaves {origin} for {destination}.",
        "From {origin} to {destination} take flight {number}, with {seats} seats.",
    ),
    "product": (
        "The {colour} {product} made by {maker} weighs {weight} grams.",
        "{maker} sells a {product} in {colour} that weighs {weight} grams.",
        "Weight of the {product}: {weight} grams; colour: {colour}; maker: {maker}.",
    ),
    "ticket": (
        "Ticket {id}, opened by {reporter}, is about the {component} and has priority {priority}.",
        "{reporter} reported a fault in the {component}: ticket {id}, priority {priority}.",
        "The {component} is broken, says {reporter} in ticket {id} with priority {priority}.",
    ),
}

QUESTIONS = {
    "person": (("city", "Where does {name} live?"), ("job", "What is the job of {name}?"),
               ("age", "How old is {name}?")),
    "order": (("item", "What did {customer} order?"), ("price", "How much does {customer} pay?"),
              ("id", "Which order is for {customer}?")),
    "event": (("city", "Where does the {title} take place?"), ("host", "Who hosts the {title}?"),
              ("date", "When is the {title}?")),
    "book": (("author", 'Who wrote "{title}"?'), ("year", 'When did "{title}" come out?'),
             ("pages", 'How many pages has "{title}"?')),
    "flight": (("destination", "Where does flight {number} go?"),
               ("origin", "Where does flight {number} start?"),
               ("seats", "How many seats has flight {number}?")),
    "product": (("maker", "Who makes the {product}?"),
                ("weight", "How many grams has the {product}?"),
                ("colour", "What colour is the {product}?")),
    "ticket": (("reporter", "Who reported ticket {id}?"),
               ("component", "What is ticket {id} about?"),
               ("priority", "What priority has ticket {id}?")),
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One made-up thing: its kind, its fields in order, and a sentence that states them all."""

    kind: str
    fields: dict[str, Value]
    sentence: str


def full_name(rng: Random, words: Sources) -> str:
    """A first and a last name."""
    return f"{rng.choice(words.first_names)} {rng.choice(words.last_names)}"


def code(rng: Random) -> str:
    """An identifier such as ``KT-4821``."""
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVWXZ") for _ in range(2))
    return f"{letters}-{rng.randint(100, 9999)}"


def thing(rng: Random, words: Sources) -> str:
    """An adjective and a noun."""
    return f"{rng.choice(words.adjectives)} {rng.choice(words.nouns)}"


def date(rng: Random) -> str:
    """A day and a month."""
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def _person(rng: Random, words: Sources) -> dict[str, Value]:
    return {"name": full_name(rng, words), "age": rng.randint(18, 90),
            "city": rng.choice(words.cities), "job": rng.choice(words.jobs)}  # fmt: skip


def _order(rng: Random, words: Sources) -> dict[str, Value]:
    return {"id": code(rng), "item": thing(rng, words), "quantity": rng.randint(2, 60),
            "price": round(rng.uniform(1, 400), 2), "customer": full_name(rng, words)}  # fmt: skip


def _event(rng: Random, words: Sources) -> dict[str, Value]:
    return {"title": thing(rng, words).title(), "city": rng.choice(words.cities),
            "date": date(rng), "host": full_name(rng, words)}  # fmt: skip


def _book(rng: Random, words: Sources) -> dict[str, Value]:
    return {"title": f"The {thing(rng, words).title()}", "author": full_name(rng, words),
            "year": rng.randint(1900, 2025), "pages": rng.randint(80, 900)}  # fmt: skip


def _flight(rng: Random, words: Sources) -> dict[str, Value]:
    return {"number": code(rng).replace("-", ""), "origin": rng.choice(words.cities),
            "destination": rng.choice(words.cities), "seats": rng.randint(20, 400)}  # fmt: skip


def _product(rng: Random, words: Sources) -> dict[str, Value]:
    return {"product": rng.choice(words.nouns), "colour": rng.choice(COLOURS),
            "weight": rng.randint(10, 5000), "maker": rng.choice(words.last_names)}  # fmt: skip


def _ticket(rng: Random, words: Sources) -> dict[str, Value]:
    return {"id": code(rng), "reporter": full_name(rng, words),
            "component": rng.choice(words.nouns), "priority": rng.randint(1, 5)}  # fmt: skip


MAKERS: dict[str, Callable[[Random, Sources], dict[str, Value]]] = {
    "person": _person, "order": _order, "event": _event, "book": _book,
    "flight": _flight, "product": _product, "ticket": _ticket,
}  # fmt: skip


def record(rng: Random, words: Sources) -> Record:
    """A record of a random kind."""
    kind = rng.choice(list(MAKERS))
    fields = MAKERS[kind](rng, words)
    return Record(kind, fields, rng.choice(SENTENCES[kind]).format(**fields))
