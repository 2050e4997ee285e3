"""Settings of the verdict: only what every service has."""

from llamaduo.settings import ServiceSettings


class VerdictSettings(ServiceSettings):
    """Read from the environment, prefix `LLAMADUO_`."""
