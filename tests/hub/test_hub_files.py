import pytest

from octavo.errors import InvalidInputError, ModelNotFoundError, UnsupportedModelError
from octavo.hub.hub_files import (
    HubAddress,
    HubFile,
    HubRepository,
    choose_variant,
    is_model_file,
    parse_address,
    pickle_in,
    quantization_in,
    variants_of,
)

REPOSITORY = HubAddress("acme/Tiny-GGUF")


def repository(*paths: str) -> HubRepository:
    variants = variants_of([HubFile(path, 1 << 20, "0" * 64, "0" * 64) for path in paths])
    return HubRepository("acme/Tiny-GGUF", "c" * 40, variants, pickle=pickle_in(paths))


def choose(quant: str, *paths: str) -> list[str]:
    variant = choose_variant(HubAddress("acme/Tiny-GGUF", quant), repository(*paths))
    return [file.path for file in variant.files]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/Tiny-GGUF", REPOSITORY),
        ("acme/Tiny-GGUF:q4_k_m", HubAddress("acme/Tiny-GGUF", "q4_k_m")),
        (" hf.co/acme/Tiny-GGUF:Q8_0 ", HubAddress("acme/Tiny-GGUF", "Q8_0")),
        ("https://huggingface.co/acme/Tiny-GGUF", REPOSITORY),
        ("https://huggingface.co/acme/Tiny-GGUF/?not-for-all=1#x", REPOSITORY),
        ("https://hub.test:8/acme/Tiny-GGUF", REPOSITORY),
        ("https://huggingface.co/acme/Tiny-GGUF/tree/main", REPOSITORY),
        (
            "https://huggingface.co/acme/Tiny-GGUF/blob/v2/q/a%20b.gguf",
            HubAddress("acme/Tiny-GGUF", "q/a b.gguf", "v2"),
        ),
        (
            "https://huggingface.co/acme/Tiny-GGUF/resolve/main/a.gguf?download=true",
            HubAddress("acme/Tiny-GGUF", "a.gguf"),
        ),
    ],
)
def test_what_people_type_and_paste(text: str, expected: HubAddress) -> None:
    assert parse_address(text, endpoint="https://hub.test:8") == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "tiny", "a/b/c", "../x", "acme/..", "https://huggingface.co/acme", "a b/c"),
        *("https://huggingface.co/datasets/acme", "https://huggingface.co/acme/x/discussions/1"),
        *("https://evil.test/acme/Tiny", "http://[x/acme/Tiny", "acme/tiny:"),
    ],
)
def test_what_names_no_model(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_address(text)


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("SmolLM2-135M-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Llama-3.2-1B.IQ4_XS.gguf", "IQ4_XS"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("BF16/Qwen3-8B-BF16-00001-of-00002.gguf", "BF16"),
        ("model-fp16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Qwen3-8B.gguf", ""),
        ("q4.notes/readme.gguf", ""),
    ],
)
def test_quantisation_in_a_name(path: str, quant: str) -> None:
    assert quantization_in(path) == quant


@pytest.mark.parametrize(
    ("path", "is_model"),
    [
        ("a.gguf", True),
        ("q/a.GGUF", True),
        ("mmproj-model-f16.gguf", False),
        ("a.safetensors", False),
        ("../a.gguf", False),
        ("/etc/a.gguf", False),
        ("a\\..\\b.gguf", False),
        ("c:a.gguf", False),
        (".hidden.gguf", False),
    ],
)
def test_files_that_are_models_with_names_a_disk_can_carry(path: str, is_model: bool) -> None:
    assert is_model_file(path) is is_model


@pytest.mark.parametrize(
    ("quant", "chosen"),
    [
        ("", "t-Q4_K_M.gguf"),
        ("q8_0", "t-Q8_0.gguf"),
        ("Q4_0", "t-Q4_0.gguf"),
        ("T-q8_0.gguf", "t-Q8_0.gguf"),
        ("deep/t-F16.gguf", "deep/t-F16.gguf"),
    ],
)
def test_the_one_that_is_meant(quant: str, chosen: str) -> None:
    there = ("t-Q8_0.gguf", "t-Q4_0.gguf", "t-Q4_K_M.gguf", "deep/t-F16.gguf")
    assert choose(quant, *there) == [chosen]


def test_the_only_file_needs_no_quantisation_in_its_name() -> None:
    assert choose("", "model.gguf") == ["model.gguf"]


def test_an_absent_quantisation_lists_what_there_is() -> None:
    with pytest.raises(ModelNotFoundError) as failure:
        choose("Q2_K", "t-Q8_0.gguf", "t-Q4_0.gguf", "config.json", "model.safetensors")
    assert (
        "has no Q2_K. There is: Q8_0 (1.0 MiB), Q4_0 (1.0 MiB), safetensors (2.0 MiB)."
        in failure.value.message
    )


def test_several_files_of_one_quantisation_are_named() -> None:
    two = ("a-Q4_0.gguf", "b-Q4_0.gguf")
    with pytest.raises(ModelNotFoundError, match=r"2 models .* are Q4_0: a-Q4_0.gguf, b-Q4_0.gguf"):
        choose("Q4_0", *two)
    with pytest.raises(ModelNotFoundError, match=r"no model that is the obvious choice. There is"):
        choose("", *two)
    # Their labels are their paths then.
    assert choose("B-Q4_0.gguf", *two) == ["b-Q4_0.gguf"]


def test_a_split_model_is_one_variant_of_all_its_parts() -> None:
    parts = tuple(f"q/t-Q4_K_M-0000{n}-of-00003.gguf" for n in (2, 3, 1))
    assert choose("q4_k_m", *parts, "t-Q8_0.gguf") == sorted(parts)
    assert choose(sorted(parts)[1], *parts, "t-Q8_0.gguf") == sorted(parts)
    assert choose("", *parts, "t-Q8_0.gguf") == ["t-Q8_0.gguf"]
    (variant,) = repository(*parts).variants
    assert (variant.label, variant.quantization, variant.size_bytes) == (
        "Q4_K_M",
        "Q4_K_M",
        3 << 20,
    )
    # Without one of its parts nobody can run it.
    assert [each.label for each in repository(*parts[1:], "t-Q8_0.gguf").variants] == ["Q8_0"]


def test_a_folder_is_config_weights_and_the_small_files_beside_and_nothing_else() -> None:
    there = (
        *("README.md", ".gitattributes", "modeling_tiny.py", "picture.png", "model.onnx"),
        *("pytorch_model.bin", "original/consolidated.00.pth", "consolidated.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"),
        *("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"),
        *("model.safetensors.index.json", "onnx/model.safetensors"),
    )
    assert choose("", *there) == [
        *("config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "model-00001-of-00002.safetensors"),
        "model-00002-of-00002.safetensors",
    ]
    # As its reader does: one whole file goes before shards.
    assert "model-00001-of-00002.safetensors" not in choose("", *there, "model.safetensors")


def test_gguf_goes_before_safetensors() -> None:
    assert choose("", "config.json", "model.safetensors", "t-Q3_K.gguf") == ["t-Q3_K.gguf"]
    assert choose("SafeTensors", "config.json", "model.safetensors", "t-Q3_K.gguf") == [
        "config.json",
        "model.safetensors",
    ]


def test_what_is_there_as_a_pickle_only() -> None:
    with pytest.raises(UnsupportedModelError, match=r"only as a pickle \(pytorch_model.bin\)"):
        choose("", "config.json", "pytorch_model.bin")


@pytest.mark.parametrize(
    "paths", [(), ("README.md",), ("config.json",), ("adapter_model.safetensors", "config.json")]
)
def test_no_model_at_all(paths: tuple[str, ...]) -> None:
    with pytest.raises(ModelNotFoundError, match="no language model as GGUF or safetensors"):
        choose("", *paths)
