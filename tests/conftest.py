"""What tests share: exactly solvable models, and the built-in student loaded once."""

import os
import sys

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
from gradalign_cli import console
from gradalign_cli.main import main

from gradalign.models import LoadOptions, load_model
from gradalign.testbed import TabularModel

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tabular() -> TabularModel:
    """Four tokens, four steps, 256 sequences."""
    return TabularModel.random(vocabulary=4, length=4, seed=3)


@pytest.fixture(scope="session")
def small():
    """`builtin:small`, loaded once."""
    return load_model("builtin:small", LoadOptions(device="cpu"))


@pytest.fixture
def gradalign(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder; returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.output, "_width", 200)
    monkeypatch.setattr(console.errors, "_width", 200)

    def run(*arguments: str) -> tuple[int, str, str]:
        if arguments[0] == "score" and "--report" not in arguments:
            arguments = (*arguments, "--no-report")
        monkeypatch.setattr(sys, "argv", ["gradalign", *arguments])
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
