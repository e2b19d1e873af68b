"""The numbers of real models, for what needs only numbers."""

from octavo.engine.model_config import ModelConfig, RopeConfig

SMOLLM2_135M = ModelConfig(
    architecture="llama",
    name="SmolLM2 135M Instruct",
    num_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope=RopeConfig(rotary_dim=64, theta=100_000.0),
    tie_word_embeddings=True,
    num_parameters=134_515_008,
    checkpoint_bytes=96_580_000,
    quantization="Q4_1",
)

LLAMA_8B = ModelConfig(
    architecture="llama",
    name="Llama 3.1 8B Instruct",
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    rope=RopeConfig(rotary_dim=128, theta=500_000.0, scaling="factors"),
    tie_word_embeddings=False,
    num_parameters=8_030_261_312,
    checkpoint_bytes=4_920_000_000,
    quantization="Q4_K_M",
)
