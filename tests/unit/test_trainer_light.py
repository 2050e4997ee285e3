"""The trainer's own process stays light: torch is loaded in the child only."""

from __future__ import annotations

import subprocess
import sys


def test_the_engines_import_no_ml_library() -> None:
    code = (
        "import sys, services.trainer.trl_engine, services.trainer.fake_engine, services.trainer.trl_child\n"
        "import llamaduo.base_models\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets', 'huggingface_hub') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
