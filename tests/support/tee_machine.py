# SPDX-License-Identifier: Apache-2.0
"""A confidential VM in a process of its own: programs of this project on a kernel with an emulated configfs-tsm.

    python tee_machine.py MACHINE attest ARGUMENT...
    python tee_machine.py MACHINE crash STATE POINT SKIP BODIES
    python tee_machine.py MACHINE proxy STATE UPSTREAM

`attest` is the command as it is; below its file access is `tee_devices.FakeTsm`, and where AMD's root is pinned
stands that of MACHINE, a folder that `make_machine` filled; tpm2-pytss cannot be imported. `crash` is
`engine_child.py` for an origin without a TPM, `proxy` is `proxy_child.py` for one. While MACHINE has a file
`broken`, the kernel answers every request for a report with EIO.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization as pem

from quotary_verifier.evidence.tee import amd_roots

PROGRAM = Path(__file__).resolve()
_ROLES = ("ark", "ask", "leaf")
_DAYS = (-4000, 20_000)
_EIO = 5


def make_machine(folder: Path) -> Path:
    """Fill a folder with a processor's keys, its root certificate and the table that its host hands out."""
    from amd_pki import AmdForge, ca_extensions, certificate, leaf_key, rsa_key
    from tee_devices import cert_table

    from quotary_attest.tee.certtable import ASK, VCEK

    folder.mkdir(parents=True)
    forge = AmdForge()
    ark, ask = rsa_key("ark", forge.bits), rsa_key("ask", forge.bits)
    for role, key in zip(_ROLES, (ark, ask, leaf_key()), strict=True):
        (folder / role).write_bytes(
            key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
        )
    name = forge.ark_name
    root = certificate(name, name, ark, ark, ca_extensions(), serial=1, days=_DAYS)
    (folder / "ark.der").write_bytes(root)
    (folder / "ark.pem").write_bytes(x509.load_der_x509_certificate(root).public_bytes(pem.Encoding.PEM))
    table = cert_table((VCEK, forge.leaf(days=_DAYS)), (ASK, forge.issuer(days=_DAYS)))
    (folder / "table").write_bytes(table)
    return folder


def emulate(folder: Path) -> None:
    """Put the machine below this process: its processor, its kernel's interface, its maker. It has no TPM software."""
    sys.modules["tpm2_pytss"] = None  # type: ignore[assignment]
    amd_roots.ARK_GENOA = (folder / "ark.der").read_bytes()  # type: ignore[misc]

    import amd_pki
    from tee_devices import FakeTsm, snp_mint

    from quotary_attest.tee.configfs import KernelFiles

    keys = {role: pem.load_pem_private_key((folder / role).read_bytes(), None) for role in _ROLES}
    amd_pki.rsa_key = lambda role, _bits=2048: keys[role]  # type: ignore[assignment,return-value,misc]
    amd_pki.leaf_key = lambda: keys["leaf"]  # type: ignore[assignment,return-value,misc]
    kernel = FakeTsm(snp_mint(amd_pki.AmdForge()), auxblob=(folder / "table").read_bytes())

    def answer(_: KernelFiles, entry: str, attribute: str) -> bytes:
        broken = (folder / "broken").exists() and attribute == "outblob"
        kernel.failing = {"outblob": _EIO} if broken else {}
        return kernel.read(entry, attribute)

    KernelFiles.make = lambda _, entry: kernel.make(entry)  # type: ignore[method-assign]
    KernelFiles.write = lambda _, entry, name, data: kernel.write(entry, name, data)  # type: ignore[method-assign]
    KernelFiles.read = answer  # type: ignore[method-assign]
    KernelFiles.remove = lambda _, entry: kernel.remove(entry)  # type: ignore[method-assign]


async def crash(folder: Path, point: str, skip: int, bodies: int) -> None:
    """Run an agent until it kills itself, or until all outputs are acknowledged and it is closed."""
    from crashing import Crash, attest_all

    from quotary_attest.agent import World

    at = Crash(point, skip)
    agent = await _agent(folder, World(crash=at))
    at.started = True
    await attest_all(agent, bodies)


async def proxy(folder: Path, upstream: str) -> None:
    """Serve with a proxy until standard input ends; its port is printed first."""
    from quotary_attest.serving.proxy import Proxy, ProxyConfig

    agent = await _agent(folder)
    try:
        async with Proxy(agent, ProxyConfig(upstream, model="llama")) as door:
            print(await door.listen("127.0.0.1", 0), flush=True)
            await asyncio.to_thread(sys.stdin.read)
    finally:
        await agent.close()


async def _agent(folder: Path, world: object = None) -> object:
    from quotary_attest.agent import Agent
    from quotary_attest.engine.further import FurtherRoot
    from quotary_attest.tee.opening import open_root
    from quotary_attest.workload import ServedModel, Workload

    roots = [FurtherRoot(open_root("sev-snp"), required=True)]
    return await Agent.start(
        folder, workload=Workload((ServedModel("llama", bytes(range(32))),)), world=world, roots=roots
    )  # type: ignore[arg-type]


def main(machine: Path, what: str, arguments: list[str]) -> None:
    """Run one of the programs."""
    emulate(machine)
    if what == "attest":
        from quotary_cli.main import run

        sys.exit(run(arguments))
    elif what == "crash":
        folder, point, skip, bodies = arguments
        asyncio.run(crash(Path(folder), point, int(skip), int(bodies)))
    else:
        asyncio.run(proxy(Path(arguments[0]), arguments[1]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
