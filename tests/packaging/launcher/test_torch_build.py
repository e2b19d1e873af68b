import tomllib
from pathlib import Path

import pytest
from launcher.console import SetupError
from launcher.pip import Plan
from launcher.torch_build import TORCH_VERSION, Ask, Request, choose_build, plan_cuda
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]

CPU_PLAN = (("torch", "2.13.0+cpu"), ("sympy", "1.14.0"), ("nvidia-ml-py", "13.0"))
PLAIN_CPU_PLAN = (("torch", "2.13.0"), ("sympy", "1.14.0"))
CUDA_PLAN = (("torch", "2.13.0"), ("nvidia-cudnn-cu13", "9.20"), ("cuda-toolkit", "13.0.3"))
BUNDLED_CUDA_PLAN = (("torch", "2.13.0+cu130"),)


def pip_with(**plans: Plan) -> Ask:
    """A pip that has plans for `local` (+cpu, own sources), `page` and `plain`."""

    def ask(request: Request) -> Plan | None:
        own_sources = "local" if "+cpu" in request[0] else "plain"
        return plans.get("page" if len(request) > 1 else own_sources)

    return ask


def test_the_tested_torch_is_one_that_pyproject_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = next(
        requirement
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name == "torch"
    )
    assert torch.specifier.contains(TORCH_VERSION)


@pytest.mark.parametrize(
    ("plan", "cuda"),
    [
        (CPU_PLAN, None),
        (PLAIN_CPU_PLAN, None),
        ((), None),
        (CUDA_PLAN, 13),
        (BUNDLED_CUDA_PLAN, 13),
        ((("torch", "2.9.1"), ("nvidia-cuda-runtime-cu12", "12.8.90")), 12),
        ((("torch", "2.9.1"), ("nvidia-cublas", "1")), 0),
    ],
)
def test_a_plan_tells_its_cuda(plan: Plan, cuda: int | None) -> None:
    assert plan_cuda(plan) == cuda


@pytest.mark.parametrize(
    ("option", "platform", "driver_cuda", "plans", "kind", "request_part"),
    [
        ("", "linux", None, {"local": CPU_PLAN, "plain": CUDA_PLAN}, "cpu", "2.13.0+cpu"),
        ("", "linux", None, {"page": CPU_PLAN, "plain": CUDA_PLAN}, "cpu", "/whl/cpu"),
        ("", "linux", None, {"plain": PLAIN_CPU_PLAN}, "cpu", "torch==2.13.0"),
        ("", "linux", 13, {"plain": CUDA_PLAN, "local": CPU_PLAN}, "cuda", "torch===2.13.0"),
        ("", "linux", 0, {"plain": CUDA_PLAN, "local": CPU_PLAN}, "cuda", "torch===2.13.0"),
        ("cpu", "linux", 13, {"plain": CUDA_PLAN, "local": CPU_PLAN}, "cpu", "2.13.0+cpu"),
        ("cuda", "linux", None, {"plain": CUDA_PLAN, "local": CPU_PLAN}, "cuda", "torch===2.13.0"),
        ("cuda", "linux", None, {"page": BUNDLED_CUDA_PLAN}, "cuda", "/whl/cu130"),
        ("", "win32", None, {"plain": PLAIN_CPU_PLAN}, "cpu", "torch==2.13.0"),
        ("", "win32", 13, {"page": BUNDLED_CUDA_PLAN}, "cuda", "/whl/cu130"),
        ("", "darwin", None, {"plain": PLAIN_CPU_PLAN}, "cpu", "torch==2.13.0"),
    ],
)
def test_which_torch(
    option: str,
    platform: str,
    driver_cuda: int | None,
    plans: dict[str, Plan],
    kind: str,
    request_part: str,
) -> None:
    build = choose_build(option, platform, driver_cuda, pip_with(**plans))
    assert build.kind == kind
    assert any(word.endswith(request_part) for word in build.request)
    assert build.note == ""


@pytest.mark.parametrize(
    ("driver_cuda", "plans", "words"),
    [
        (
            12,
            {"plain": CUDA_PLAN, "local": CPU_PLAN},
            "runs CUDA 12 and this PyTorch needs CUDA 13",
        ),
        (13, {"local": CPU_PLAN}, "pip finds no CUDA build"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_said(
    driver_cuda: int, plans: dict[str, Plan], words: str
) -> None:
    build = choose_build("", "linux", driver_cuda, pip_with(**plans))
    assert build.kind == "cpu"
    assert words in build.note


def test_a_wish_for_cuda_stands_and_the_old_driver_is_said() -> None:
    build = choose_build("cuda", "linux", 12, pip_with(plain=CUDA_PLAN, local=CPU_PLAN))
    assert build.kind == "cuda"
    assert "update the driver" in build.note


@pytest.mark.parametrize(
    ("option", "platform", "plans", "words"),
    [
        ("", "linux", {"plain": CUDA_PLAN}, "add `--torch cuda` to accept them"),
        ("", "linux", {}, "check the network"),
        ("cuda", "linux", {"local": CPU_PLAN}, "no CUDA build"),
        ("cuda", "darwin", {"plain": PLAIN_CPU_PLAN}, "no CUDA on macOS"),
    ],
)
def test_no_torch_of_the_right_kind_is_one_sentence(
    option: str, platform: str, plans: dict[str, Plan], words: str
) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        choose_build(option, platform, None, pip_with(**plans))
    assert "\n" not in str(caught.value)


def test_any_other_word_goes_to_pip_as_it_stands() -> None:
    spec = "torch==2.12.1+cu126 --extra-index-url https://download.pytorch.org/whl/cu126"
    build = choose_build(spec, "linux", None, pip_with())
    assert build.request == tuple(spec.split())
    assert build.kind == spec


def test_a_wheels_path_counts_from_where_the_person_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.whl").write_text("")
    build = choose_build("torch.whl", "linux", None, pip_with())
    assert build.request == (str(tmp_path.resolve() / "torch.whl"),)
