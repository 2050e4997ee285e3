"""`python -m services.judge --evaluator NAME`"""

import argparse

from services.judge.app import build
from services.judge.catalogue import NAMES
from services.judge.settings import JudgeSettings

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run one evaluator until SIGTERM.")
    parser.add_argument("--evaluator", choices=sorted(NAMES), help="overrides LLAMADUO_EVALUATOR")
    chosen = parser.parse_args().evaluator
    settings = JudgeSettings()
    build(settings.model_copy(update={"evaluator": chosen}) if chosen else settings).run()
