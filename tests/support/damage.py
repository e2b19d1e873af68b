"""Ways to damage files: random, and the same in every run."""

import copy
import random
import struct
from collections.abc import Iterator
from typing import Any

INTERESTING = (0, 1, 2, 3, 255, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63, 2**64 - 1)
"""Numbers at which readers break."""
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**40,
    2**70,
    1e308,
    -0.5,
    float("inf"),
    float("nan"),
    "",
    "x",
    "\0",
    "\udc80",
    "9" * 5000,
    [],
    [0],
    [None],
    ["x"] * 300,
    {},
    {"type": "x"},
    [[[[[]]]]],
)


def damaged_bytes(content: bytes, random_: random.Random, header_bytes: int) -> bytes:
    """One to three changes, most of them in the header."""
    changed = bytearray(content)
    for _ in range(random_.randint(1, 3)):
        # What comes first decides most.
        end = random_.choice((64, header_bytes, header_bytes, len(changed)))
        place = random_.randrange(max(1, min(end, len(changed))))
        match random_.randrange(7):
            case 0:
                del changed[place:]
            case 1:
                changed[place : place + 1] = bytes([random_.randrange(256)])
            case 2:
                changed[place : place + 8] = struct.pack("<Q", random_.choice(INTERESTING))
            case 3:
                changed[place : place + 4] = struct.pack("<I", random_.choice(INTERESTING) % 2**32)
            case 4:
                del changed[place : place + random_.randrange(1, 40)]
            case 5:
                changed[place:place] = random_.randbytes(random_.randrange(1, 40))
            case 6:
                other = random_.randrange(max(1, min(end, len(changed))))
                changed[place : place + 16] = changed[other : other + 16]
    return bytes(changed)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values inside a JSON value, of long lists only to the first few."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in list(value)[:60]:
            yield from places_in(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(3, len(value))):
            yield from places_in(value[index], (*path, index))


def damaged_json(value: Any, random_: random.Random) -> Any:
    """One or two values replaced, removed, moved or nested deeply."""
    changed = copy.deepcopy(value)
    for _ in range(random_.randint(1, 2)):
        places = list(places_in(changed))
        if not places:
            return random_.choice(ODD_VALUES)
        *way, key = random_.choice(places)
        holder = changed
        for step in way:
            holder = holder[step]
        match random_.randrange(5):
            case 0:
                del holder[key]
            case 1 | 2:
                holder[key] = copy.deepcopy(random_.choice(ODD_VALUES))
            case 3:
                nested: Any = holder[key]
                for _ in range(random_.choice((2, 200))):
                    nested = [nested] if random_.random() < 0.5 else {"a": nested}
                holder[key] = nested
            case 4 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] = holder[key] * random_.choice((-1, 2, 0.5, 1000)) + random_.choice(
                    (0, 1, -1)
                )
            case _:
                if isinstance(holder, dict):
                    holder[f"{key}x"] = holder.pop(key)
    return changed
