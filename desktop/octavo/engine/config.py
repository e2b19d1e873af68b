"""`EngineConfig`: what can be chosen about an engine before a model is loaded."""

from dataclasses import dataclass

from octavo.errors import InvalidSettingsError

DTYPES = ("auto", "float32", "bfloat16", "float16")
CPU_KERNELS = ("auto", "off")
WEIGHTS = ("auto", "packed", "unpacked")
KV_DTYPES = ("auto", "float16", "bfloat16", "float8_e4m3", "int8")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of one engine; the defaults suit a person's machine."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: str = "auto"
    """Of weights and activations; see `DTYPES`."""
    weights: str = "auto"
    """How matrices lie in memory: `packed` as the checkpoint stores them, `unpacked` to the type
    of the activations, or `auto`: as there is room; see `WEIGHTS`."""
    kv_dtype: str = "auto"
    """Of cached keys and values, `auto` as weights; see `KV_DTYPES`."""
    block_size: int = 16
    """Tokens per KV block."""
    num_kv_blocks: int | None = None
    """Blocks of the KV cache; None: what the memory plan gives."""
    max_num_seqs: int = 64
    """Sequences that run at the same time."""
    max_num_batched_tokens: int | None = None
    """Token budget of one step; longer prompts are prefilled in chunks of it. None: what suits the
    device."""
    max_model_len: int | None = None
    """Longest sequence in tokens; None: what the model was trained for."""
    enable_prefix_caching: bool = True
    cpu_kernels: str = "auto"
    """Whether compiled kernels run models on the CPU: `auto`, where they can, or `off`."""
    cpu_threads: int | None = None
    """Threads of those kernels; None: one for each core."""
    kernel_cache_dir: str | None = None
    """Where compiled kernels are kept; None: where Numba keeps what it compiles."""
    tile_cache_dir: str | None = None
    """Where weights are kept as those kernels read them, for the next load; None: nowhere."""
    waits_for_kernels: bool = True
    """Whether a load waits until the kernels are compiled; else torch answers until then."""
    gpu_tuning_table: str | None = None
    """What `octavo bench --tune` wrote about this machine's card; None: nothing."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidSettingsError(
                f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}."
            )
        if self.weights not in WEIGHTS:
            raise InvalidSettingsError(
                f"weights is {self.weights!r}; it must be one of {', '.join(WEIGHTS)}."
            )
        if self.cpu_kernels not in CPU_KERNELS:
            raise InvalidSettingsError(
                f"cpu_kernels is {self.cpu_kernels!r}; it must be one of {', '.join(CPU_KERNELS)}."
            )
        if self.kv_dtype not in KV_DTYPES:
            raise InvalidSettingsError(
                f"kv_dtype is {self.kv_dtype!r}; it must be one of {', '.join(KV_DTYPES)}."
            )
        for name, least in (
            ("block_size", 1),
            ("max_num_seqs", 1),
            ("max_num_batched_tokens", 1),
            ("max_model_len", 1),
            ("num_kv_blocks", 2),
            ("cpu_threads", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidSettingsError(f"{name} is {value}; it must be at least {least}.")
