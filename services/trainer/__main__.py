"""`python -m services.trainer`"""

from services.trainer.app import build
from services.trainer.settings import TrainerSettings

if __name__ == "__main__":
    build(TrainerSettings()).run()
