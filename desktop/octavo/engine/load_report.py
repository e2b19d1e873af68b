"""`LoadReport`: what a load planned and what it measured; no torch."""

from dataclasses import dataclass

from octavo.engine.memory import MemoryPlan


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The receipt of a load, shown beside the plan."""

    plan: MemoryPlan
    load_s: float
    resident_growth_bytes: int
    """How much the process grew in RAM while it loaded."""
    executor: str
    """What computes the forward pass, in a word or two."""
    executor_reason: str
    """Why that, as a sentence."""
    weights_note: str
    """How the weights lie in memory, as a sentence."""
    is_temporary: bool = False
    """Whether something faster is being prepared; another report will follow."""
    left_out_note: str = ""
    """What of the checkpoint is not used, as a sentence; empty: nothing."""
