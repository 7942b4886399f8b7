# SPDX-License-Identifier: Apache-2.0
"""A loopback server in the place of AMD's and Intel's: answers by path and query, and what was asked."""

from __future__ import annotations

import threading
from base64 import encodebytes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

from amd_pki import AmdForge

from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral


@dataclass(frozen=True)
class Served:
    """One answer."""

    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass
class MakerServer:
    """`answers`: path with query → answer; everything else is not found. `asked`: in order."""

    url: str
    answers: dict[str, Served]
    asked: list[str] = field(default_factory=list)


@contextmanager
def maker_server(answers: dict[str, Served]) -> Iterator[MakerServer]:
    """Serve on a loopback port until the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            running.asked.append(self.path)
            answer = running.answers.get(self.path, Served(status=404))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running = MakerServer(f"http://127.0.0.1:{server.server_address[1]}", answers)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()


def pem(*certificates: bytes) -> bytes:
    """Certificates as AMD writes them."""
    marks = (b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n")
    return b"".join(marks[0] + encodebytes(der) + marks[1] for der in certificates)


def amd_answers(
    leaf_path: str, generation: str, leaf: bytes, *chain: bytes, crl: bytes = b""
) -> dict[str, Served]:
    """What AMD's server has for one processor."""
    base = f"/vcek/v1/{generation}"
    made = {f"{base}/{leaf_path}": Served(leaf), f"{base}/cert_chain": Served(pem(*chain))}
    return made | ({f"{base}/crl": Served(crl)} if crl else {})


def forged_amd(forge: AmdForge, leaf_path: str) -> dict[str, Served]:
    """The same for a forged processor."""
    return amd_answers(
        leaf_path, forge.generation.value, forge.leaf(), forge.issuer(), forge.ark(), crl=forge.crl()
    )


def intel_answers(collateral: TdxCollateral, fmspc: str, ca: str = "platform") -> dict[str, Served]:
    """What Intel's servers have for one model of platform."""

    def signed(name: str, document: bytes, signature: bytes) -> bytes:
        return b'{"%s":%s,"signature":"%s"}' % (name.encode(), document, signature.hex().encode())

    def chain(name: str, value: bytes) -> dict[str, str]:
        return {name: quote(value)}

    return {
        f"/tdx/certification/v4/tcb?fmspc={fmspc}": Served(
            signed("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature),
            chain("TCB-Info-Issuer-Chain", collateral.tcb_info_issuer_chain),
        ),
        "/tdx/certification/v4/qe/identity": Served(
            signed("enclaveIdentity", collateral.qe_identity, collateral.qe_identity_signature),
            chain("SGX-Enclave-Identity-Issuer-Chain", collateral.qe_identity_issuer_chain),
        ),
        f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der": Served(
            collateral.pck_crl, chain("SGX-PCK-CRL-Issuer-Chain", collateral.pck_crl_issuer_chain)
        ),
        "/IntelSGXRootCA.der": Served(collateral.root_ca_crl),
    }
