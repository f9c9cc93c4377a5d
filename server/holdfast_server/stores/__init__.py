"""Where packs and manifests lie: the port `Store`, and the local directory behind it.

    store = open_store("file:/srv/holdfast/store")
    with store.begin(name, bytes_max=length) as incoming:
        incoming.write(block)
        incoming.commit()

Stores are synchronous and may be used from several threads; an Incoming belongs to one.
"""

from __future__ import annotations

from holdfast_server.stores.local import LocalStore
from holdfast_server.stores.location import check_store_url, open_store
from holdfast_server.stores.names import check_object_name
from holdfast_server.stores.port import Incoming, Space, Store

__all__ = [
    "Incoming",
    "LocalStore",
    "Space",
    "Store",
    "check_object_name",
    "check_store_url",
    "open_store",
]
