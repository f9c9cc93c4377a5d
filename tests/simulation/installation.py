"""What every world begins with: a server with two domains and all clients enrolled, made once."""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.records import seal_domain, seal_identity
from holdfast_agent.jobs.enrol import Identity
from holdfast_contract.format.domain import EpochCheck
from holdfast_contract.format.identity import identity_hash
from holdfast_contract.ids import ClientName
from holdfast_server.auth.tokens import TokenKind, hash_token, new_token
from holdfast_server.catalog import tokens
from holdfast_server.repository import Repository
from tests.simulation import loop as loops
from tests.simulation.loop import SimLoop
from tests.simulation.machines import Server
from tests.simulation.network import Network, context_of
from tests.simulation.stand_ins import FORGER, simulated
from tests.support.filesystem import SimulatedDirectory
from tests.support.samples import domain_body, identity_body, noise
from tests.support.uploads import domain_keys

SMALL_FILE_BYTES: Final = 4096
"""Longer files are cut: without this every file of these small volumes would be bundled."""
CLIENTS: Final = ("shop/web-0", "shop/web-1", FORGER, "bank/spy-0", "shop/raw-0")
ADMIN_TOKEN: Final = new_token(TokenKind.API, lambda count: noise("admin", count))


@dataclass(frozen=True)
class Installation:
    """Disk and catalog of a server that has stopped, and who its clients are."""

    root: SimulatedDirectory
    catalog: bytes
    identities: dict[ClientName, Identity]

    def put_into(self, server: Server) -> None:
        """Give a server its disk and its catalog."""
        server.disk.root = copy.deepcopy(self.root)
        (server.folder / "catalog.sqlite").write_bytes(self.catalog)


@cache
def installed() -> Installation:
    """Return the installation."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-sim-"))
    rng = Random(0)
    try:
        with simulated(rng):
            loop = SimLoop(rng)
            loops.enter(loop)
            try:
                return loop.run_until_complete(_install(folder, rng))
            finally:
                loops.leave()
                loop.close()
    finally:
        shutil.rmtree(folder)


async def _install(folder: Path, rng: Random) -> Installation:
    def trace(*words: object) -> None:
        pass

    server = Server(folder, Network(rng, trace), rng, trace)
    assert await server.start()

    async def enrol() -> Any:
        return await loops.loop_now().run_in_executor(None, _enrol_all, server)

    task = loops.loop_now().create_task(enrol(), context=context_of(server.machine))
    identities = await task
    await server.crash(is_power_lost=True)
    return Installation(server.disk.root, server.flat_catalog().read_bytes(), identities)


def _enrol_all(server: Server) -> dict[ClientName, Identity]:
    repository, catalog = server.repository, server.catalog
    assert repository is not None and catalog is not None
    tokens.create(catalog, token_hash=hash_token(ADMIN_TOKEN), role="admin", domains=[])
    for domain in ("shop", "bank"):
        keys = domain_keys(domain)
        checks = tuple(EpochCheck(*each) for each in keys.epoch_checks.items())
        body = domain_body(
            domain=keys.domain_id,
            name=domain,
            key_check=keys.key_check,
            epoch_checks=checks,
            small_file_bytes_max=SMALL_FILE_BYTES,
        )
        repository.create_domain(domain, seal_domain(body, keys))
    return {name: _enrolled(repository, name) for name in map(ClientName, CLIENTS)}


def _enrolled(repository: Repository, name: ClientName) -> Identity:
    keys = domain_keys(name.domain)
    key = IdentityKey(noise(f"sign {name}"), noise(f"box {name}"))
    body = identity_body(
        domain=keys.domain_id,
        client=str(name),
        sign_key=key.sign_public,
        box_key=key.box_public,
    )
    record = seal_identity(body, keys)
    assert repository.enrol(name, record, key.sign_public) == identity_hash(record)
    return Identity(key, record)
