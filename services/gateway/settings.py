"""Settings of the gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from llamaduo.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """Read from the environment, prefix `LLAMADUO_`."""

    gateway_file: Path = Field(Path("gateway.yaml"), description="the aliases and who answers them")
    gateway_host: str = Field("127.0.0.1", description="where applications call")
    gateway_port: int = Field(8088, ge=0, le=65535, description="0: a free port")
    gateway_port_file: Path | None = Field(None, description="where to write the port that was taken")
    gateway_keys_file: Path | None = Field(None, description="keys of which callers must show one; unset: any caller")
    gateway_max_body_bytes: int = Field(16 * 1024 * 1024, ge=1, description="larger requests get 413")
    gateway_on_bus: bool = Field(
        True, description="off: no bus is looked for; local models are those of the gateway's file alone"
    )
    gateway_spool_max_bytes: int = Field(
        1024**3, ge=1, description="captured rows on disk that wait for the bus; what is above is not captured"
    )
    gateway_segment_bytes: int = Field(8 * 1024 * 1024, ge=1, description="a file of captured rows")
    gateway_segment_s: float = Field(60.0, ge=0, description="seconds until captured rows are shipped")
