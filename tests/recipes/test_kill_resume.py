"""Trainings that are killed and resumed, through the script that does it in numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "kill_resume.py"


def endings(*options: str) -> str:
    """What the script says; it fails if an ending is different."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT), *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_killed_training_ends_as_an_undisturbed_one() -> None:
    assert "2 endings after kills" in endings("--kills", "2", "--recipes", "digits")


@pytest.mark.slow
def test_trainings_of_all_kinds_survive_many_kills() -> None:
    assert "50 endings after kills" in endings("--kills", "50")
