"""Tool calls: tools in the system prompt and a wish -> the call in Qwen's form."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from example import Example, chat
from records import Value, code, date, full_name, thing
from sources import Sources

JSON_TYPES = {str: "string", int: "integer", float: "number"}

WISHES = {
    "get_weather": ("What will the weather be in {city} for the next {days} days?",
                    "Weather in {city}, {days} days please."),
    "send_mail": ("Send a mail to {recipient} about the {subject}.",
                  "Write to {recipient}; the subject is {subject}."),
    "book_table": ("Book a table for {guests} in {city} under the name {name}.",
                   "A table in {city} for {guests} people, for {name}."),
    "convert_money": ("How much is {amount} dollars in {currency}?",
                      "Convert {amount} dollars to {currency}."),
    "find_train": ("Find a train from {origin} to {destination} on {date}.",
                   "On {date} I want to go by train from {origin} to {destination}."),
    "add_event": ("Put the {title} in my calendar on {date}.",
                  "On {date} I have the {title}, add it."),
    "order_item": ("Order {quantity} of the {item} for me.", "I need {quantity} of the {item}."),
    "track_parcel": ("Where is parcel {parcel}?", "Track {parcel} for me."),
    "call_person": ("Call {name} at {hour}.", "At {hour} I want to speak to {name}."),
}  # fmt: skip

CURRENCIES = ["euros", "yen", "pounds", "francs", "rupees", "pesos", "crowns"]


def _arguments(tool: str, rng: Random, words: Sources) -> dict[str, Value]:
    city, name = rng.choice(words.cities), full_name(rng, words)
    made: dict[str, dict[str, Value]] = {
        "get_weather": {"city": city, "days": rng.randint(2, 14)},
        "send_mail": {"recipient": name, "subject": thing(rng, words)},
        "book_table": {"city": city, "guests": rng.randint(2, 20), "name": name},
        "convert_money": {"amount": rng.randint(5, 5000), "currency": rng.choice(CURRENCIES)},
        "find_train": {"origin": city, "destination": rng.choice(words.cities), "date": date(rng)},
        "add_event": {"title": thing(rng, words), "date": date(rng)},
        "order_item": {"item": thing(rng, words), "quantity": rng.randint(2, 90)},
        "track_parcel": {"parcel": code(rng)},
        "call_person": {"name": name, "hour": rng.randint(8, 20)},
    }
    return made[tool]


def _schema(name: str, arguments: dict[str, Value]) -> dict[str, Any]:
    properties = {key: {"type": JSON_TYPES[type(value)]} for key, value in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def _new_tool(rng: Random, words: Sources) -> tuple[str, dict[str, Value], str]:
    """A tool nobody has seen, its arguments and a wish that names them."""
    verb, (noun, *keys) = rng.choice(words.verbs), rng.sample(words.nouns, rng.randint(2, 3))
    arguments: dict[str, Value] = {
        key: rng.choice((rng.randint(1, 999), rng.choice(words.nouns))) for key in keys
    }
    told = " and ".join(f"{key} {value}" for key, value in arguments.items())
    return f"{verb}_{noun}", arguments, f"Please {verb} the {noun} with {told}."


def tool_call(rng: Random, words: Sources) -> Example:
    """One to three tools and a wish -> the call of the tool that grants it."""
    known = rng.sample(list(WISHES), rng.randint(1, 2))
    if rng.random() < 0.35:
        name, arguments, wish = _new_tool(rng, words)
        others = known[1:]
    else:
        name, *others = known
        arguments = _arguments(name, rng, words)
        wish = rng.choice(WISHES[name]).format(**arguments)
    schemas = [_schema(name, arguments)]
    schemas += [_schema(other, _arguments(other, rng, words)) for other in others]
    rng.shuffle(schemas)
    call = json.dumps({"name": name, "arguments": arguments})
    answer = f"<tool_call>\n{call}\n</tool_call>"
    return Example("tool_call", chat(wish), answer, tools=schemas)
