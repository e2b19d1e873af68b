"""`AttentionTiling`: how decode attention cuts its work; measured for some cards, or a default.

Of our kernels this one gains most from numbers of the card it runs on: it is bound by how many
loads are on their way at a time. Tables are TOML: one ships with Octavo, and `octavo bench --tune`
writes one for the card at hand, which comes first. Nothing is ever measured while a model runs.
"""

import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octavo.paths import resources_dir

logger = logging.getLogger(__name__)

TABLE_NAME = "gpu_tuning.toml"
_KEY = "decode_attention"


@dataclass(frozen=True, slots=True)
class AttentionTiling:
    """The numbers of one launch."""

    keys: int = 64
    """Keys a program takes at a time: a power of two from 16 up."""
    stages: int = 2
    """Loads under way at a time."""
    warps: int = 4
    programs: int = 2
    """For each multiprocessor at most: into so many the contexts of few sequences are cut."""


@dataclass(frozen=True, slots=True)
class TunedTiling:
    """What was measured best for a card, up to so many sequences in a step."""

    card: str
    head_dim: int
    sequences: int
    tiling: AttentionTiling


class AttentionTilings:
    """Of one card and size of heads."""

    def __init__(self, tuned: Sequence[TunedTiling] = ()) -> None:
        self._tuned = sorted(tuned, key=lambda one: one.sequences)

    def find(self, num_seqs: int) -> AttentionTiling:
        """The nearest that was measured, or the default."""
        for one in self._tuned:
            if num_seqs <= one.sequences:
                return one.tiling
        return self._tuned[-1].tiling if self._tuned else AttentionTiling()


def load_tilings(card: str, head_dim: int, own_table: Path | None = None) -> AttentionTilings:
    """Reads what is known of a card.

    Args:
        card: its name, as the driver gives it.
        head_dim: channels of a head, padded to a power of two.
        own_table: written on this machine; it counts before the one that ships. One that cannot
            be read is passed over, as it only holds speeds.
    """
    for path in filter(None, (own_table, resources_dir() / TABLE_NAME)):
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            rows = [_read_row(row) for row in table.get(_KEY, ())]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("The tuning table %s is passed over: %s", path, error)
            continue
        found = [row for row in rows if row.card == card and row.head_dim == head_dim]
        if found:
            return AttentionTilings(found)
    return AttentionTilings()


def table_of(rows: Sequence[TunedTiling]) -> dict[str, list[dict[str, Any]]]:
    """As it stands in the file."""
    return {
        _KEY: [
            {
                "card": row.card,
                "head_dim": row.head_dim,
                "sequences": row.sequences,
                **asdict(row.tiling),
            }
            for row in rows
        ]
    }


def _read_row(row: Mapping[str, Any]) -> TunedTiling:
    tiling = AttentionTiling(row["keys"], row["stages"], row["warps"], row["programs"])
    numbers = {**asdict(tiling), "head_dim": row["head_dim"], "sequences": row["sequences"]}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}")
    for name in ("keys", "warps"):
        if numbers[name] & (numbers[name] - 1):
            raise ValueError(f"{name} is {numbers[name]}, which is no power of two")
    if tiling.keys < 16:
        raise ValueError(f"keys is {tiling.keys}; the matrix units take no fewer than 16")
    return TunedTiling(str(row["card"]), row["head_dim"], row["sequences"], tiling)
