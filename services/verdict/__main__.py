"""`python -m services.verdict`"""

from services.verdict.app import build
from services.verdict.settings import VerdictSettings

if __name__ == "__main__":
    build(VerdictSettings()).run()
