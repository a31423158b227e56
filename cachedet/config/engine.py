"""Where the blocks of an extraction are computed: in this process, or on Ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cachedet.config.detector import Config, Count


def _require_direct(address: str) -> str:
    if "://" in address:
        raise ValueError(
            "expected auto, HOST:PORT or local; run the command on a machine of the cluster, as "
            "`ray job submit` does"
        )
    return address


class LocalEngine(Config):
    """This process, with others that the user starts."""

    kind: Literal["local"] = "local"


class RayEngine(Config):
    """Workers on a cluster of Ray, which this process gives blocks to; needs cachedet[ray]."""

    kind: Literal["ray"] = "ray"
    address: Annotated[str, AfterValidator(_require_direct)] = "auto"  # of this machine; or local
    workers: Count | None = None  # None: as many as have room, also later
    gpus_per_worker: Annotated[float, Field(ge=0, le=64)] | None = None  # None: 1 if it has any
    cpus_per_worker: Annotated[float, Field(gt=0, le=1024)] = 1.0  # as many threads decode


def _name_kind(engine: Any) -> Any:
    return {"kind": engine} if isinstance(engine, str) else engine


Engine = Annotated[
    LocalEngine | RayEngine, BeforeValidator(_name_kind), Field(discriminator="kind")
]
