"""The engine's and the endpoint's numbers in the text format of Prometheus."""

from collections.abc import Mapping

from octavo.engine.request import EngineStats
from octavo.server.board import RequestState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text(stats: EngineStats, totals: Mapping[RequestState, int], num_live: int) -> str:
    """Counters begin anew with each loaded model; their names end in `_total`."""
    gauges: dict[str, tuple[str, float]] = {
        "requests_live": ("Requests of this endpoint that are worked on.", num_live),
        "sequences_running": ("Sequences that the engine computes.", stats.num_running),
        "sequences_waiting": ("Sequences that wait for a place.", stats.num_waiting),
        "kv_blocks": ("Blocks of the KV cache.", stats.num_blocks),
        "kv_blocks_used": ("Blocks that sequences hold.", stats.num_used_blocks),
        "kv_blocks_cached": ("Free blocks that hold a cached prefix.", stats.num_cached_blocks),
        "kv_block_size_tokens": ("Tokens of one block.", stats.block_size),
    }
    counters: dict[str, tuple[str, float]] = {
        "engine_steps_total": ("Steps of the engine.", stats.num_steps),
        "prompt_tokens_computed_total": (
            "Prompt tokens that were not in the prefix cache.",
            stats.prompt_tokens_computed,
        ),
        "output_tokens_total": ("Tokens that were generated.", stats.output_tokens),
        "prefix_cache_queried_tokens_total": (
            "Prompt tokens that were looked up.",
            stats.prefix_queried_tokens,
        ),
        "prefix_cache_hit_tokens_total": ("Prompt tokens found.", stats.prefix_hit_tokens),
    }
    lines: list[str] = []
    for kind, entries in (("gauge", gauges), ("counter", counters)):
        for name, (text, value) in entries.items():
            lines += [*_header(name, kind, text), f"octavo_{name} {value}"]
    lines += _header("requests_total", "counter", "Requests of this endpoint that ended, by how.")
    for state in (
        RequestState.FINISHED,
        RequestState.FAILED,
        RequestState.CANCELLED,
        RequestState.DISCONNECTED,
    ):
        lines.append(f'octavo_requests_total{{outcome="{state}"}} {totals.get(state, 0)}')
    return "\n".join(lines) + "\n"


def _header(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP octavo_{name} {text}", f"# TYPE octavo_{name} {kind}"]
