"""Which variant is recommended, and which headers are read to find that out."""

import dataclasses
from collections.abc import Callable

import pytest

from octavo.errors import DownloadError, UnsupportedModelError
from octavo.hub.hub_files import HubVariant
from octavo.ui.models.fit import judge_variant
from octavo.ui.models.variant_checks import (
    Finding,
    candidates,
    next_to_check,
    recommend,
)
from tests.ui.fakes import CPU, make_model, make_plan
from tests.ui.hub_fakes import GIB, VARIANTS, make_variant

FREE = Finding(plan=make_plan(make_model(num_parameters=10**9)))
TIGHT = Finding(plan=make_plan(make_model(num_parameters=7 * 10**9)))
FULL = Finding(plan=make_plan(make_model(num_parameters=9 * 10**9)))
REFUSED = Finding(refusal=UnsupportedModelError("The quantisation is not supported yet."))


def find_best(
    variants: tuple[HubVariant, ...], read: Callable[[HubVariant], Finding]
) -> tuple[str, list[str]]:
    """The label of the recommended variant, and those whose headers were read for it."""
    findings: dict[str, Finding] = {}
    while (variant := next_to_check(variants, findings)) is not None:
        findings[variant.label] = read(variant)
    best = recommend(variants, findings)
    return best.label if best is not None else "", list(findings)


@pytest.mark.parametrize(
    ("largest_gib", "best"), [(8, "Q8_0"), (6, "Q6_K"), (4, "Q4_K_M"), (3, "Q3_K_M"), (2, "")]
)
def test_the_best_that_fits_is_found_by_halving(largest_gib: int, best: str) -> None:
    found, read = find_best(VARIANTS, lambda v: FREE if v.size_bytes <= largest_gib * GIB else FULL)
    assert found == best
    assert read[0] == "Q5_K_M"
    assert len(read) <= 3


def test_twenty_variants_take_five_headers() -> None:
    variants = tuple(make_variant(f"V{size:02}", size * GIB // 4) for size in range(1, 21))
    found, read = find_best(variants, lambda v: FREE if v.label <= "V13" else FULL)
    assert found == "V13"
    assert len(read) <= 5


def test_a_tight_one_is_taken_only_where_no_other_fits() -> None:
    sizes = {"Q3_K_M": FREE, "Q4_K_M": TIGHT}
    assert find_best(VARIANTS, lambda v: sizes.get(v.label, FULL))[0] == "Q3_K_M"
    assert find_best(VARIANTS, lambda v: {"Q3_K_M": TIGHT}.get(v.label, FULL))[0] == "Q3_K_M"


def test_what_cannot_run_is_passed_over() -> None:
    found, _ = find_best(VARIANTS, lambda v: REFUSED if v.label in ("Q5_K_M", "Q8_0") else FREE)
    assert found == "Q6_K"
    assert find_best(VARIANTS, lambda v: REFUSED)[0] == ""


def test_a_hub_that_fails_is_not_asked_again() -> None:
    failed = Finding(failure=DownloadError("The hub cannot be reached."))
    assert find_best(VARIANTS, lambda v: failed) == ("", ["Q5_K_M"])


def test_files_larger_than_the_memory_are_not_read() -> None:
    sizes_gib = {"Q4_0": 4, "Q5_0": 5, "Q6_K": 6, "Q8_0": 16, "Q8_1": 17}
    variants = tuple(make_variant(label, size * GIB) for label, size in sizes_gib.items())
    assert find_best(variants, lambda v: FREE) == ("Q6_K", ["Q6_K"])


def test_unquantised_weights_are_recommended_only_among_their_like() -> None:
    assert [variant.label for variant in candidates(VARIANTS)][-1] == "Q8_0"
    assert [variant.label for variant in candidates(VARIANTS[5:])] == ["F16"]
    assert [variant.label for variant in candidates(VARIANTS[6:])] == ["safetensors"]


def test_verdicts_in_words() -> None:
    whole = judge_variant(make_plan(make_model()))
    assert (whole.word, whole.tone) == ("Fits", "good")
    assert whole.sentence.startswith("Room for its whole context of 8,192 tokens; needs 576.6 MiB")
    part = judge_variant(make_plan(make_model(context_length=131_072)))
    assert part.sentence.startswith("Room for 16,384 tokens of context;")
    plan = make_plan(make_model(), dataclasses.replace(CPU, free_bytes=GIB // 4))
    large = judge_variant(plan)
    assert (large.word, large.tone) == ("Too large", "bad")
    assert large.sentence == "Needs 576.6 MiB, 256.0 MiB are free."
