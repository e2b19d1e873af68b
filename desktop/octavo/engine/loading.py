"""Makes an engine from a checkpoint: header, plan, tokenizer, weights, a first step."""

import logging
import time
from pathlib import Path

import psutil
import torch

from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.engine.block_manager import BlockManager
from octavo.engine.checkpoint_parts import read_model_config, read_tokenizer
from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, default_cpu_threads, detect_devices
from octavo.engine.engine import Engine
from octavo.engine.executor import Executor
from octavo.engine.executors import choose_executor
from octavo.engine.gpu_formats import multiplies_packed
from octavo.engine.kv_groups import kv_groups
from octavo.engine.load_report import LoadReport
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.model_runner import ModelRunner
from octavo.engine.models.decoder import Decoder, build_model
from octavo.engine.planning import kernel_forms, plan_load
from octavo.engine.scheduler import Scheduler
from octavo.engine.tokenizer import Tokenizer
from octavo.engine.weights.load import load_weights
from octavo.jobs import JobControl, Progress

logger = logging.getLogger(__name__)

_TORCH_THREADS = torch.get_num_threads()
"""As torch chose them for this machine."""


def load_engine(path: Path, config: EngineConfig, control: JobControl) -> tuple[Engine, LoadReport]:
    """Loads a GGUF file or a folder of safetensors; blocking, on the thread that steps the engine.

    Raises:
        ModelError: the file is damaged or of a kind Octavo does not run.
        InsufficientMemoryError: it does not fit; nothing was allocated.
        JobCancelled: `control` was cancelled.
    """
    started_at = time.perf_counter()
    torch.set_num_threads(_TORCH_THREADS)
    rss_before = psutil.Process().memory_info().rss
    control.report(Progress("Reading the model file"))
    header = read_checkpoint(path)
    model_config = read_model_config(header)
    device = choose_device(config, detect_devices())
    plan = plan_load(header, model_config, config, device)
    plan.require_fit()
    tokenizer = read_tokenizer(header)
    if plan.uses_kernels:
        _prepare_kernels(header, config, control)
    model = build_model(model_config, plan)
    load_weights(model, header, model_config, control)
    executor = _make_executor(model, model_config, plan, config, control)
    engine = assemble_engine(executor, tokenizer, model_config, plan, config)
    report = LoadReport(
        plan=plan,
        load_s=time.perf_counter() - started_at,
        resident_growth_bytes=psutil.Process().memory_info().rss - rss_before,
        executor=executor.name,
        executor_reason=" ".join(filter(None, (plan.why_not_kernels, executor.reason))),
        weights_note=_weights_note(model_config, plan),
        left_out_note=header.left_out,
    )
    logger.info("Loaded %s in %.2f s on %s", path.name, report.load_s, plan.device.name)
    return engine, report


def assemble_engine(
    executor: Executor,
    tokenizer: Tokenizer,
    model_config: ModelConfig,
    plan: MemoryPlan,
    config: EngineConfig,
) -> Engine:
    """Puts scheduler, runner and blocks around an executor."""
    runner = ModelRunner(
        executor, model_config, plan, config, stop_token_ids=tokenizer.stop_token_ids
    )
    block_manager = BlockManager(
        plan.num_group_blocks,
        plan.block_size,
        windows=[group.window for group in kv_groups(model_config, plan.max_model_len)],
        max_step_tokens=config.max_num_batched_tokens,
        enable_prefix_caching=config.enable_prefix_caching,
    )
    scheduler = Scheduler(
        block_manager,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=plan.max_model_len,
    )
    return Engine(runner, tokenizer, scheduler, block_manager, max_model_len=plan.max_model_len)


def _prepare_kernels(header: CheckpointHeader, config: EngineConfig, control: JobControl) -> None:
    # Imported here: what these modules import compiles the kernels.
    from octavo.engine.kernels.cpu.preparation import prepare_kernels

    def report(done: int, total: int) -> None:
        control.report(Progress("Preparing the processor's kernels, once", done, total))

    prepare_kernels(kernel_forms(header), config.kernel_cache_dir, report)


def _make_executor(
    model: Decoder,
    model_config: ModelConfig,
    plan: MemoryPlan,
    config: EngineConfig,
    control: JobControl,
) -> Executor:
    if not plan.uses_kernels:
        control.report(Progress("Preparing the KV cache"))
        return choose_executor(model, model_config, plan, config)
    from octavo.engine.cpu_executor import CPUExecutor

    control.report(Progress("Arranging the weights for the processor"))
    num_threads = config.cpu_threads or default_cpu_threads()
    executor = CPUExecutor(model, model_config, plan, config, num_threads=num_threads)
    # What is left to torch in a step is small, and its threads would wait for the cores of ours.
    torch.set_num_threads(1)
    return executor


def _weights_note(model_config: ModelConfig, plan: MemoryPlan) -> str:
    if plan.uses_kernels:
        return (
            f"The file's {model_config.quantization} weights stay packed, arranged for the"
            " processor's vectors, and are multiplied as they are."
        )
    if plan.keeps_packed and plan.device.kind == "cuda" and multiplies_packed(model_config):
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
