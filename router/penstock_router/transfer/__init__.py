"""How KV travels from a prefill to a decode endpoint: one module a connector, one Protocol (`connector`).

Dispatch asks `connector_named`; nothing outside this package knows which connector it holds.
"""

from penstock_router.transfer.connector import CONNECTORS, connector_named
from penstock_router.transfer.contract import Connector, Extra, TransferBroken

__all__ = ["CONNECTORS", "Connector", "Extra", "TransferBroken", "connector_named"]
