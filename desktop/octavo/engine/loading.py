"""Makes an engine from a checkpoint: header, plan, tokenizer, weights, blocks."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import psutil
import torch

from octavo.checkpoint.identity import identity_of
from octavo.engine.block_manager import BlockManager
from octavo.engine.checkpoint_parts import CheckpointParts, read_parts
from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, default_cpu_threads, detect_devices
from octavo.engine.device_errors import device_errors, free_device_memory
from octavo.engine.engine import Engine
from octavo.engine.executor import Executor
from octavo.engine.executors import choose_executor
from octavo.engine.freed_memory import return_freed_memory
from octavo.engine.gpu_formats import multiplies_packed
from octavo.engine.kernel_upgrade import KernelUpgrade
from octavo.engine.kv_groups import kv_groups
from octavo.engine.load_report import LoadReport
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.model_runner import ModelRunner
from octavo.engine.models.decoder import Decoder, build_model
from octavo.engine.planning import kernel_forms, plan_load, plan_meanwhile
from octavo.engine.prompt_pace import (
    STREAMED_CPU_STEP_S,
    STREAMED_STEP_S,
    PromptPace,
    attention_reach,
)
from octavo.engine.scheduler import Scheduler
from octavo.engine.tile_store import Bytes, StoredMatrix, TileStore
from octavo.engine.tokenizer import Tokenizer
from octavo.engine.weights.destinations import Destinations
from octavo.engine.weights.load import load_weights
from octavo.jobs import JobCancelled, JobControl, Progress

if TYPE_CHECKING:
    from octavo.engine.kernels.cpu.kernel_cache import ReportParts

logger = logging.getLogger(__name__)

_TORCH_THREADS = torch.get_num_threads()
"""As torch chose them for this machine."""


@device_errors()
def load_engine(
    source: Path | CheckpointParts, config: EngineConfig, control: JobControl
) -> tuple[Engine, LoadReport]:
    """Loads a GGUF file or a folder of safetensors; blocking, on the thread that steps the engine.

    Where the CPU's kernels must be compiled first and the configuration does not wait for them,
    torch computes until then, and the engine has an `upgrade`.

    Args:
        source: the file or folder, or what has been read of it.
        config: what was chosen.
        control: of the load.

    Raises:
        ModelError: the file is damaged or of a kind Octavo does not run.
        InsufficientMemoryError: it does not fit; nothing was allocated.
        JobCancelled: `control` was cancelled.
        DeviceMemoryError, DeviceLostError: as `device_errors` says.
    """
    load = _Load(source, config, control)
    plan = load.plan()
    plan.require_fit()
    meanwhile = None
    if plan.uses_kernels and not config.waits_for_kernels and not load.are_kernels_compiled():
        meanwhile = plan_meanwhile(plan, load.parts.model_config, config)
    used_plan = meanwhile or plan
    if used_plan.uses_kernels:
        load.compile_kernels(_progress_of(control, "Preparing the processor's kernels, once"))
    executor = load.executor(used_plan, control)
    # Pinned buffers and scratch of the reading.
    free_device_memory()
    parts = load.parts
    engine = assemble_engine(executor, parts.tokenizer, parts.model_config, used_plan, config)
    report = load.report(executor, used_plan)
    if meanwhile is not None:
        report = dataclasses.replace(report, is_temporary=True)
        engine.upgrade = KernelUpgrade(engine, load, plan, report)
    name = load.parts.header.path.name
    logger.info("Loaded %s in %.2f s on %s", name, report.load_s, plan.device.name)
    return engine, report


def assemble_engine(
    executor: Executor,
    tokenizer: Tokenizer,
    model_config: ModelConfig,
    plan: MemoryPlan,
    config: EngineConfig,
) -> Engine:
    """Puts scheduler, runner and blocks around an executor."""
    runner = _make_runner(executor, tokenizer, model_config, plan, config)
    block_manager = BlockManager(
        plan.num_group_blocks,
        plan.block_size,
        windows=[group.window for group in kv_groups(model_config, plan.max_model_len)],
        max_step_tokens=plan.max_num_batched_tokens,
        enable_prefix_caching=config.enable_prefix_caching,
    )
    scheduler = Scheduler(
        block_manager,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        max_model_len=plan.max_model_len,
        pace=PromptPace(
            plan.max_num_batched_tokens,
            reach=attention_reach(model_config),
            step_s=STREAMED_CPU_STEP_S if plan.device.kind == "cpu" else STREAMED_STEP_S,
        ),
    )
    return Engine(runner, tokenizer, scheduler, block_manager, max_model_len=plan.max_model_len)


def _make_runner(
    executor: Executor,
    tokenizer: Tokenizer,
    model_config: ModelConfig,
    plan: MemoryPlan,
    config: EngineConfig,
) -> ModelRunner:
    if plan.uses_kernels:
        # What is left to torch in a step is small, and its threads would wait for the cores of the
        # kernels'. The number belongs to the thread that computes, which is this one.
        torch.set_num_threads(1)
    return ModelRunner(
        executor, model_config, plan, config, stop_token_ids=tokenizer.stop_token_ids
    )


class _Load:
    """What one load has read of its checkpoint, and what it makes of it."""

    def __init__(
        self, source: Path | CheckpointParts, config: EngineConfig, control: JobControl
    ) -> None:
        self._started_at = time.perf_counter()
        self._rss_before = psutil.Process().memory_info().rss
        self._config = config
        torch.set_num_threads(_TORCH_THREADS)
        control.report(Progress("Reading the model file"))
        self.parts = read_parts(source) if isinstance(source, Path) else source
        self._header = self.parts.header

    def plan(self) -> MemoryPlan:
        device = choose_device(self._config, detect_devices())
        return plan_load(self._header, self.parts.model_config, self._config, device)

    def are_kernels_compiled(self) -> bool:
        from octavo.engine.kernels.cpu.kernel_cache import kernel_folder, missing_parts

        folder = kernel_folder(self._config.kernel_cache_dir)
        return not missing_parts(folder, kernel_forms(self._header))

    def compile_kernels(self, report: "ReportParts", *, in_child_only: bool = False) -> None:
        """As `prepare_kernels`."""
        # Imported here: what this module imports compiles the kernels.
        from octavo.engine.kernels.cpu.preparation import prepare_kernels

        prepare_kernels(
            kernel_forms(self._header),
            self._config.kernel_cache_dir,
            report,
            in_child_only=in_child_only,
        )

    def executor(self, plan: MemoryPlan, control: JobControl) -> Executor:
        """Reads the weights, for the kernels or for torch."""
        model_config, config = self.parts.model_config, self._config
        model = build_model(model_config, plan)
        if plan.uses_kernels:
            return self._cpu_executor(model, plan, control)
        if plan.device.kind == "cuda" and not plan.keeps_packed:
            # Kernels are compiled meanwhile, which asks only where the weights are.
            with ThreadPoolExecutor(1, "octavo-load") as pool:
                reading = pool.submit(load_weights, model, self._header, model_config, control)
                return choose_executor(
                    model, model_config, plan, config, await_weights=reading.result
                )
        load_weights(model, self._header, model_config, control)
        control.report(Progress("Preparing the KV cache"))
        return choose_executor(model, model_config, plan, config)

    def _cpu_executor(self, model: Decoder, plan: MemoryPlan, control: JobControl) -> Executor:
        """Out of the tiles that an earlier load has kept, or of the checkpoint."""
        from octavo.engine.cpu_executor import CPUExecutor
        from octavo.engine.cpu_weights import put_tiles, take_tiles, tiles_version

        config, model_config = self._config, self.parts.model_config
        store, key = None, ""
        if config.tile_cache_dir is not None:
            store = TileStore(Path(config.tile_cache_dir))
            key = f"{identity_of(self._header)}-{tiles_version()}"
        kept = None if store is None else store.open(key)
        # Of the layers while they are empty; the executor takes the model apart.
        slots = Destinations(model).slots
        has_tiles = kept is not None and put_tiles(slots, kept)
        load_weights(model, self._header, model_config, control, with_packed=not has_tiles)
        control.report(Progress("Arranging the weights for the processor"))
        num_threads = config.cpu_threads or default_cpu_threads()
        executor = CPUExecutor(model, model_config, plan, config, num_threads=num_threads)
        # What the weights were loaded as; nothing of it is needed any more.
        return_freed_memory()
        tiles = None if store is None or has_tiles else take_tiles(slots)
        if store is not None and tiles is not None:
            keep = partial(_keep_tiles, store, key, self._header.path, tiles, control)
            # Beside the first answers. Not a daemon: it ends by itself, at once if cancelled.
            Thread(target=keep, name="octavo-tiles").start()
        return executor

    def runner(self, executor: Executor, plan: MemoryPlan) -> ModelRunner:
        """To be called on the thread that steps."""
        parts = self.parts
        return _make_runner(executor, parts.tokenizer, parts.model_config, plan, self._config)

    def report(self, executor: Executor, plan: MemoryPlan) -> LoadReport:
        """What has been reached until now."""
        reasons = (plan.why_not_kernels, executor.reason)
        return LoadReport(
            plan=plan,
            load_s=time.perf_counter() - self._started_at,
            resident_growth_bytes=psutil.Process().memory_info().rss - self._rss_before,
            executor=executor.name,
            executor_reason=" ".join(filter(None, reasons)),
            weights_note=_weights_note(self.parts.model_config, plan),
            left_out_note=self._header.left_out,
        )


def _keep_tiles(
    store: TileStore,
    key: str,
    model: Path,
    tiles: Mapping[str, tuple[StoredMatrix, Bytes]],
    control: JobControl,
) -> None:
    with contextlib.suppress(JobCancelled):
        store.write(key, model, tiles, control)


def _progress_of(control: JobControl, stage: str) -> "ReportParts":
    return lambda done, total: control.report(Progress(stage, done, total, "kernels"))


def _weights_note(model_config: ModelConfig, plan: MemoryPlan) -> str:
    if plan.uses_kernels:
        return (
            f"The file's {model_config.quantization} weights stay packed, arranged for the"
            " processor's vectors, and are multiplied as they are."
        )
    has_kernels = plan.device.kind == "cuda" and plan.dtype != "float32"
    if plan.keeps_packed and has_kernels and multiplies_packed(model_config):
        return (
            f"The file's {model_config.quantization} weights stay packed, arranged for the card's"
            f" kernels, and are multiplied as they are, in {plan.dtype}."
        )
    if plan.keeps_packed:
        return (
            f"The file's {model_config.quantization} weights stay packed as they are stored;"
            f" each step unpacks them anew and computes in {plan.dtype}."
        )
    return (
        f"The file's {model_config.quantization} weights are unpacked to {plan.dtype} in memory"
        " and computed in it."
    )
