import pytest

from octavo.errors import InvalidInputError, ModelNotFoundError, UnsupportedModelError
from octavo.hub.hub_files import (
    HubAddress,
    HubFile,
    choose_file,
    is_model_file,
    parse_address,
    quantization_in,
)

REPOSITORY = HubAddress("acme/Tiny-GGUF")


def files(*paths: str) -> list[HubFile]:
    return [HubFile(path, 1 << 20, "0" * 64) for path in paths]


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
    there = files("t-Q8_0.gguf", "t-Q4_0.gguf", "t-Q4_K_M.gguf", "deep/t-F16.gguf")
    assert choose_file(HubAddress("acme/Tiny-GGUF", quant), there).path == chosen


def test_the_only_file_needs_no_quantisation_in_its_name() -> None:
    assert choose_file(REPOSITORY, files("model.gguf")).path == "model.gguf"


def test_an_absent_quantisation_lists_what_there_is() -> None:
    with pytest.raises(ModelNotFoundError) as failure:
        choose_file(HubAddress("acme/Tiny-GGUF", "Q2_K"), files("t-Q8_0.gguf", "t-Q4_0.gguf"))
    assert "has no Q2_K. There is: Q8_0 (1.0 MiB), Q4_0 (1.0 MiB)." in failure.value.message


def test_several_files_of_one_quantisation_are_named() -> None:
    two = files("a-Q4_0.gguf", "b-Q4_0.gguf")
    with pytest.raises(ModelNotFoundError, match=r"2 files .* are Q4_0: a-Q4_0.gguf, b-Q4_0.gguf"):
        choose_file(HubAddress("acme/Tiny-GGUF", "Q4_0"), two)
    with pytest.raises(ModelNotFoundError, match=r"no file that is the obvious choice. There is"):
        choose_file(REPOSITORY, two)


def test_a_split_model_is_refused_and_never_the_default() -> None:
    parts = files("t-Q4_K_M-00001-of-00002.gguf", "t-Q4_K_M-00002-of-00002.gguf", "t-Q8_0.gguf")
    assert choose_file(REPOSITORY, parts).path == "t-Q8_0.gguf"
    with pytest.raises(UnsupportedModelError, match=r"split into 2 files.*Q4_K_M \(2.0 MiB\)"):
        choose_file(HubAddress("acme/Tiny-GGUF", "Q4_K_M"), parts)


def test_no_files_at_all() -> None:
    with pytest.raises(ModelNotFoundError, match="has no GGUF files"):
        choose_file(REPOSITORY, [])
