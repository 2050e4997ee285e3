"""`python -m services.inference`"""

from services.inference.app import build
from services.inference.settings import InferenceSettings

if __name__ == "__main__":
    build(InferenceSettings()).run()
