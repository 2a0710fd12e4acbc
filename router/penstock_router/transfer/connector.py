"""The connectors by the name that a worker registers with; dispatch looks them up here and nowhere else."""

from types import MappingProxyType

from penstock_router.transfer.contract import Connector, TransferBroken
from penstock_router.transfer.mooncake import Mooncake
from penstock_router.transfer.nixl import Nixl
from penstock_router.transfer.sglang import SgLang

CONNECTORS: MappingProxyType[str, Connector] = MappingProxyType({each.name: each for each in (Nixl(), SgLang(), Mooncake())})


def connector_named(name: str) -> Connector:
    """Raises TransferBroken for `none` and for names this router does not know."""
    try:
        return CONNECTORS[name]
    except KeyError:
        raise TransferBroken(f"connector is {name!r}; allowed: {', '.join(sorted(CONNECTORS))}") from None
