"""`octavo evaluate`: how well a model predicts a text, and how close it stays to another."""

import argparse
import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from octavo.cli.quantize import comparison_sentence
from octavo.cli.terminal import ProgressLine, find_model, make_core, print_table
from octavo.jobs import JobControl
from octavo.paths import AppPaths
from octavo.quantize.job import evaluate


def evaluate_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo evaluate MODEL`."""
    core = make_core(options, paths)
    model = find_model(core, options.model)
    other = find_model(core, options.against) if options.against else None
    against = None if other is None else other.path
    text = Path(options.text).expanduser().absolute() if options.text else None
    line = ProgressLine()
    try:
        evaluation = asyncio.run(evaluate(model.path, against, JobControl(line.show), text=text))
    finally:
        line.clear()
    if options.json:
        names = {"model": model.name, "against": None if other is None else other.name}
        print(json.dumps({**names, **asdict(evaluation)}, indent=2))
        return 0
    rows = [(model.name, f"{evaluation.perplexity:.4f}")]
    if other is not None and evaluation.against_perplexity is not None:
        rows.insert(0, (other.name, f"{evaluation.against_perplexity:.4f}"))
    print_table(("MODEL", "PERPLEXITY"), rows)
    far, agreement = evaluation.kl_divergence, evaluation.top1_agreement
    if other is not None and far is not None and agreement is not None:
        print(comparison_sentence(far, agreement, other.name))
    print(
        f"Measured in {evaluation.dtype} on {evaluation.num_tokens:,} tokens of"
        f" {evaluation.text_name}."
    )
    return 0
