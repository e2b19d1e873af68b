"""What quantising cost and kept: `Evaluation`, `QuantizeReport`, and the JSON file of a report."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from octavo.errors import StorageError

REPORT_SUFFIX = ".report.json"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a model predicts a text, and how close it stays to another model there."""

    text_name: str
    num_tokens: int
    """Tokens that were predicted."""
    dtype: str
    """In which it was computed."""
    perplexity: float
    against_perplexity: float | None = None
    """Of the model it is compared with; this and the following are None where there is none."""
    kl_divergence: float | None = None
    """Mean over the tokens, of this model from the other, in nats."""
    top1_agreement: float | None = None
    """Share of tokens where both think the same one likeliest, 0 to 1."""


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """One finished quantisation. Numbers of the evaluation are None until there is one."""

    source_name: str
    method: str
    source_bytes: int
    output_bytes: int
    bits_per_weight: float
    """All of the output's tensors by the number of parameters."""
    seconds: float
    """Of the quantising; an evaluation comes on top."""
    source: str = ""
    """The file or folder it was made from; empty in reports of old."""
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    kl_divergence: float | None = None
    """Mean over the tokens, of the result from the original, in nats."""
    top1_agreement: float | None = None
    """Share of tokens where both think the same one likeliest, 0 to 1."""
    num_tokens: int = 0
    text_name: str = ""
    dtype: str = ""
    """In which the evaluation was computed."""
    note: str = ""
    """Why there is no evaluation though one was asked for, in a sentence."""
    remark: str = ""
    """What somebody should know who gives the model to other programs; empty: nothing."""

    @property
    def is_measured(self) -> bool:
        """Whether it has the numbers of an evaluation."""
        return self.kl_divergence is not None


def report_file(output: Path) -> Path:
    """Where a model's report lies: beside it."""
    return output.with_name(output.name + REPORT_SUFFIX)


def write_report(report: QuantizeReport, output: Path) -> None:
    """Writes the report beside the model.

    Raises:
        StorageError: it cannot be written.
    """
    path = report_file(output)
    try:
        # In one step: a report that is measured anew must not be lost to a full disk.
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise StorageError(
            f"The report {path} cannot be written: {error.strerror or error}.",
            hint="The model itself is finished and can be used.",
            path=path,
        ) from error


def read_report(output: Path) -> QuantizeReport | None:
    """The report of a model that Octavo quantised; None if there is none or it is another's."""
    with suppress(OSError, ValueError, TypeError):
        content = json.loads(report_file(output).read_text(encoding="utf-8"))
        known = {field.name for field in fields(QuantizeReport)}
        report = QuantizeReport(**{key: content[key] for key in content if key in known})
        if report.output_bytes == weights_bytes(output):
            return report
    return None


def weights_bytes(model: Path) -> int:
    """Bytes on disk of a GGUF file, or of a folder's safetensors.

    Raises:
        OSError: it cannot be looked at.
    """
    if model.is_dir():
        return sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return model.stat().st_size
