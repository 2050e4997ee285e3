"""`python -m services.synthesizer`"""

from services.synthesizer.app import build
from services.synthesizer.settings import SynthesizerSettings

if __name__ == "__main__":
    build(SynthesizerSettings()).run()
