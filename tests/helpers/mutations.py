"""Ways to break a file, chosen by a seeded generator."""

import copy
import json
from random import Random
from typing import Any

ODD = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    -0.0,
    1e308,
    2**24,
    2**31,
    2**63,
    10**400,
    "",
    "0",
    "\x00",
    "\ud800",
    "../../x.png",
    "/dev/zero",
    "[/red]",
    "x" * 3000,
    [],
    {},
    [None],
    [[[[[]]]]],
    float("nan"),
    float("inf"),
]
"""Values that a field of JSON or YAML may hold and hardly any code expects."""


def break_bytes(data: bytes, random: Random) -> bytes:
    """Cut, flip, overwrite, double or replace parts of a file."""
    kind = random.randrange(7)
    at = random.randrange(max(len(data), 1))
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(random.choice((1, 3, 20))):
            flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
        return bytes(flipped)
    if kind == 2:
        size = random.choice((1, 4, 64))
        return data[:at] + random.choice((b"\xff", b"\0", b"9")) * size + data[at + size :]
    if kind == 3:
        return data[:at] + data[at : at + 50] * 3 + data[at + 50 :]
    if kind == 4:
        return data[:at] + data[at + random.choice((1, 8, 100)) :]
    if kind == 5:
        return random.choice(
            (b"", b"\0" * 100, b"%!PS\nshowpage\n", b"PK\x03\x04", b"<svg/>", b"GIF89a", b"[" * 10**5)
        )
    return data + random.randbytes(random.choice((1, 1000)))


def break_value(content: Any, random: Random) -> Any:
    """Change one to three places of nested lists and mappings: another value, none, twice, or another name."""
    content = copy.deepcopy(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(content))
        if not places:
            break
        holder, key = random.choice(places)
        kind = random.randrange(6)
        if kind <= 2:
            holder[key] = random.choice(ODD)
        elif kind == 3:
            del holder[key]
        elif kind == 4 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == 4:
            holder[f"{key}s"] = holder.pop(key)
        else:
            other, name = random.choice(places)
            holder[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
    return content


def break_json(content: Any, random: Random) -> bytes:
    """A JSON file with broken values, or a broken file."""
    if random.random() < 0.2:
        return break_bytes(json.dumps(content).encode(), random)
    return json.dumps(break_value(content, random)).encode("utf-8", "surrogatepass")


def _places(content: Any) -> Any:
    """Every (holder, key) below `content`."""
    for key in _keys(content):
        yield content, key
        yield from _places(content[key])


def _keys(content: Any) -> Any:
    if isinstance(content, dict):
        return list(content)
    return range(len(content)) if isinstance(content, list) else ()
