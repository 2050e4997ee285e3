"""`python -m services.gateway`"""

import sys

from llamaduo.errors import UserInputError
from llamaduo.settings import read_settings
from services.gateway.app import run
from services.gateway.settings import GatewaySettings

if __name__ == "__main__":
    try:
        run(read_settings(GatewaySettings))
    except UserInputError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
