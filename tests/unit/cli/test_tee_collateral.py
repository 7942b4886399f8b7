# SPDX-License-Identifier: Apache-2.0
"""`attest tee fetch-collateral` against loopback servers: what is asked, what is kept, and what is never kept."""

from __future__ import annotations

import json
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import intel_sgx
import pytest
from amd_pki import NOW, AmdForge
from azure_forge import AzureForge
from click.testing import CliRunner, Result
from corpus import corpus_bytes, needs_corpus
from device_forge import NitroForge
from intel_sgx import FMSPC, TdxForge, forged_root
from maker_servers import MakerServer, Served, amd_answers, forged_amd, intel_answers, maker_server, pem

from quotary_attest.tee.archive import read_support, stored
from quotary_cli import tee_fetch
from quotary_cli.collateral.amd import fetch_snp
from quotary_cli.collateral.intel import fetch_tdx
from quotary_cli.collateral.web import web_fetch
from quotary_cli.main import cli
from quotary_cli.output import ExitCode, Failure
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import AmdRoots, Generation, SigningKey
from quotary_verifier.evidence.tee.lines import Bound, verify_tee_line
from quotary_verifier.evidence.tee.snp_report import parse_snp_report
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral

LEAF = {
    Generation.MILAN: "?blSPL=10&teeSPL=01&snpSPL=27&ucodeSPL=200",
    Generation.GENOA: "?blSPL=10&teeSPL=01&snpSPL=27&ucodeSPL=200",
    Generation.TURIN: "?fmcSPL=03&blSPL=10&teeSPL=01&snpSPL=27&ucodeSPL=200",
}


def leaf_path(forge: AmdForge) -> str:
    return forge.chip.hex() + LEAF[forge.generation]


def quiet(_url: str) -> None:
    """Nothing is said."""


# --- AMD


@pytest.mark.parametrize("generation", Generation)
def test_amd_is_asked_for_the_chip_and_each_component_of_its_firmware(generation: Generation) -> None:
    forge = AmdForge(generation)
    said: list[str] = []
    with maker_server(forged_amd(forge, leaf_path(forge))) as amd:
        found, claims = fetch_snp(
            forge.report(), web_fetch(said.append), NOW, base=amd.url, roots=forge.roots()
        )
        name = generation.value
        paths = [f"/vcek/v1/{name}/{leaf_path(forge)}", f"/vcek/v1/{name}/cert_chain", f"/vcek/v1/{name}/crl"]
        assert amd.asked == paths
        assert said == [f"{amd.url}{path}" for path in paths]
    assert found.crls
    assert "revocation" in claims.shown


def test_a_report_that_does_not_name_its_generation_is_asked_for_under_each() -> None:
    forge = AmdForge(Generation.GENOA, version=2)
    with maker_server(forged_amd(forge, leaf_path(forge))) as amd:
        fetch_snp(forge.report(), web_fetch(quiet), NOW, base=amd.url, roots=forge.roots())
        assert [path.split("/")[3] for path in amd.asked] == ["Milan", "Genoa", "Genoa", "Genoa"]


def test_without_a_crl_the_certificates_are_kept_and_revocation_is_not_shown() -> None:
    forge = AmdForge()
    answers = forged_amd(forge, leaf_path(forge))
    del answers["/vcek/v1/Genoa/crl"]
    with maker_server(answers) as amd:
        found, claims = fetch_snp(forge.report(), web_fetch(quiet), NOW, base=amd.url, roots=forge.roots())
    assert found.crls == ()
    assert "revocation" in claims.not_shown


def amd_trouble() -> list[tuple[str, Any, type[Exception], str]]:
    """What a server may give, and what comes of it."""
    forge = AmdForge()
    leaf, chain = f"/vcek/v1/Genoa/{leaf_path(forge)}", "/vcek/v1/Genoa/cert_chain"
    other = AmdForge(tcb=dict(forge.tcb, microcode=1))
    rogue = forge.issuer(ark="rogue")
    return [
        (leaf, Served(status=404), UnsupportedError, "knows no Genoa"),
        (leaf, Served(other.leaf()), EvidenceError, "tcb|TCB|microcode"),
        (leaf, Served(b"\x30\x03"), MalformedError, "."),
        (leaf, Served(status=429), Failure, "answered 429"),
        (leaf, Served(status=302, headers={"Location": "/elsewhere"}), Failure, "answered 302"),
        (leaf, Served(bytes((1 << 20) + 1)), Failure, "more than"),
        (chain, Served(b""), MalformedError, "0 certificates"),
        (chain, Served(pem(forge.issuer())), MalformedError, "1 certificates"),
        (chain, Served(pem(rogue, forge.ark("rogue", "rogue"))), EvidenceError, "did not sign"),
        ("/vcek/v1/Genoa/crl", Served(forge.crl({5: NOW})), EvidenceError, "revoked"),
        ("/vcek/v1/Genoa/crl", Served(b"no crl"), MalformedError, "crl"),
    ]


@pytest.mark.parametrize(("path", "answer", "kind", "message"), amd_trouble())
def test_what_amds_server_gives_counts_only_where_it_verifies_with_the_evidence(
    path: str, answer: Served, kind: type[Exception], message: str
) -> None:
    forge = AmdForge()
    with (
        maker_server(forged_amd(forge, leaf_path(forge)) | {path: answer}) as amd,
        pytest.raises(kind, match=message),
    ):
        fetch_snp(forge.report(), web_fetch(quiet), NOW, base=amd.url, roots=forge.roots())


@pytest.mark.parametrize(
    ("forge", "changes", "message"),
    [
        (AmdForge(signing_key=SigningKey.VLEK), {}, "publishes no vlek"),
        (AmdForge(), {0x1A0: bytes(64)}, "does not name its chip"),
    ],
)
def test_what_amd_cannot_be_asked_for_is_told_without_asking(
    forge: AmdForge, changes: dict[int, bytes], message: str
) -> None:
    with maker_server({}) as amd, pytest.raises(UnsupportedError, match=message):
        fetch_snp(forge.report(changes), web_fetch(quiet), NOW, base=amd.url, roots=forge.roots())
    assert amd.asked == []


def test_a_server_that_is_not_there_is_told_with_its_address() -> None:
    with maker_server({}) as gone:
        url = gone.url
    with pytest.raises(Failure, match=url) as caught:
        fetch_snp(AmdForge().report(), web_fetch(quiet), NOW, base=url)
    assert caught.value.code is ExitCode.FAILURE
    with pytest.raises(Failure, match="no http address"):
        fetch_snp(AmdForge().report(), web_fetch(quiet), NOW, base="file:///etc")


# --- Intel


def fetched(server: MakerServer, quote: bytes, at: datetime = NOW) -> TdxCollateral:
    collateral, claims = fetch_tdx(
        quote, web_fetch(quiet), at, base=server.url, certificates=server.url, root=forged_root()
    )
    assert "tcb-info" in claims.shown or claims.shown
    return collateral


def test_intel_is_asked_for_the_platform_and_its_documents_stay_as_they_were_published() -> None:
    made = intel_sgx.collateral()
    with maker_server(intel_answers(made, FMSPC.hex())) as intel:
        assert fetched(intel, TdxForge().quote()) == made
        assert len(intel.asked) == 4


def intel_trouble() -> list[tuple[str, Served, type[Exception], str]]:
    """What a server may give, and what comes of it."""
    tcb, identity = f"/tdx/certification/v4/tcb?fmspc={FMSPC.hex()}", "/tdx/certification/v4/qe/identity"
    good = intel_answers(intel_sgx.collateral(), FMSPC.hex())
    spaced = good[tcb].body.replace(b'"version":3', b'"version": 3')
    late = intel_answers(intel_sgx.collateral(intel_sgx.tcb_info(nextUpdate=intel_sgx.stamp(0))), FMSPC.hex())
    return [
        (tcb, Served(good[tcb].body), MalformedError, "lacks the header"),
        (tcb, Served(spaced, good[tcb].headers), EvidenceError, "signature of the tcb info"),
        (tcb, good[identity], MalformedError, "not a tcbInfo"),
        (tcb, Served(b"{}", good[tcb].headers), MalformedError, "not a tcbInfo"),
        (tcb, late[tcb], UnsupportedError, "valid from"),
        (tcb, Served(status=404), Failure, "nothing is published"),
        ("/IntelSGXRootCA.der", Served(b"no crl"), MalformedError, "crl"),
    ]


@pytest.mark.parametrize(("path", "answer", "kind", "message"), intel_trouble())
def test_what_intels_server_gives_counts_only_where_it_verifies_with_the_quote(
    path: str, answer: Served, kind: type[Exception], message: str
) -> None:
    answers = intel_answers(intel_sgx.collateral(), FMSPC.hex()) | {path: answer}
    with maker_server(answers) as intel, pytest.raises(kind, match=message):
        fetched(intel, TdxForge().quote())


# --- the command


def run(*arguments: object) -> Result:
    """The command as people run it: errors are those of `attest`."""
    return CliRunner().invoke(cli, ["tee", *map(str, arguments)])


def genoa() -> dict[str, Served]:
    """AMD's answers for the corpus' processor, by AMD's own certificates."""
    report = parse_snp_report(corpus_bytes("tee/snp/genoa-v5-report.bin"))
    path = f"{report.chip_id.hex()}?blSPL=10&teeSPL=00&snpSPL=27&ucodeSPL=27"
    names = ("genoa-v5-vcek", "ask-genoa", "ark-genoa")
    leaf, ask, ark = (corpus_bytes(f"tee/snp/{name}.der") for name in names)
    return amd_answers(path, "Genoa", leaf, ask, ark)


@needs_corpus
def test_real_evidence_is_kept_with_what_vouches_for_it_and_verifies_from_there(tmp_path: Path) -> None:
    data = corpus_bytes("tee/snp/genoa-v5-report.bin")
    file, kept = tmp_path / "report", tmp_path / "kept"
    file.write_bytes(data)
    with maker_server(genoa()) as amd:
        result = run("fetch-collateral", file, file, "--out", kept, "--amd", amd.url + "/", "--json")
        assert result.exit_code == 0, result.output
        assert len(set(amd.asked)) == 3
        assert amd.asked.count(amd.asked[0]) == 1  # though it is needed twice
        assert result.stderr.splitlines() == [f"contacting {amd.url}{path}" for path in amd.asked]
    found = json.loads(result.stdout)
    assert found["schema"] == "quotary-tee-collateral/v1"
    assert found["kept"][0]["kind"] == "sev-snp"
    [support] = stored(kept, "quotary/sev-snp/v1")
    bound = parse_snp_report(data).report_data
    assert verify_tee_line(data, support, Bound(bound[:32], bound[32:]), datetime.now(UTC))


@needs_corpus
def test_a_real_quote_is_kept_with_intels_collateral_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tee_fetch, "now", lambda: datetime(2025, 6, 20, tzinfo=UTC))
    made = TdxCollateral.from_json(corpus_bytes("tee/tdx/tdx-v4-collateral.json"))
    fmspc = json.loads(made.tcb_info)["fmspc"].lower()
    file = tmp_path / "quote"
    file.write_bytes(corpus_bytes("tee/tdx/tdx-v4-quote.bin"))
    with maker_server(intel_answers(made, fmspc)) as intel:
        urls = ("--intel", intel.url, "--intel-certificates", intel.url)
        result = run("fetch-collateral", file, "-o", tmp_path / "kept", *urls)
    assert result.exit_code == 0, result.output
    assert "tdx, verified" in result.stdout
    [support] = stored(tmp_path / "kept", "quotary/tdx/v1")
    assert support.endorsements["tcb_info"] == (made.tcb_info,)


def test_nothing_is_kept_of_evidence_that_does_not_verify(tmp_path: Path) -> None:
    forge = AmdForge()  # under roots that are not AMD's
    file = tmp_path / "report"
    file.write_bytes(forge.report())
    with maker_server(forged_amd(forge, leaf_path(forge))) as amd:
        result = run("fetch-collateral", file, "-o", tmp_path / "kept", "--amd", amd.url)
    assert result.exit_code != 0
    assert isinstance(result.exception, Failure)
    assert result.exception.code is ExitCode.REJECTED
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "evidence",
    [NitroForge().document(), b"", AzureForge(kind=4).report()],
    ids=["nitro", "nothing", "azure with tdx"],  # the bytes differ between workers
)
def test_evidence_for_which_no_maker_publishes_anything_is_told(evidence: bytes, tmp_path: Path) -> None:
    file = tmp_path / "evidence"
    file.write_bytes(evidence)
    result = run("fetch-collateral", file, "-o", tmp_path / "kept")
    assert isinstance(result.exception, Failure)
    assert result.exception.code is ExitCode.NOT_CHECKED
    assert "contacting" not in result.output


def test_an_azure_report_is_kept_with_the_certificates_of_its_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge = AzureForge()
    roots: AmdRoots = forge.amd.roots()
    monkeypatch.setattr("quotary_verifier.evidence.tee.snp.amd_roots", lambda: roots)
    monkeypatch.setattr(tee_fetch, "now", lambda: NOW)
    file = tmp_path / "hcl"
    file.write_bytes(forge.report())
    with maker_server(forged_amd(forge.amd, leaf_path(forge.amd))) as amd:
        result = run("fetch-collateral", file, "-o", tmp_path, "--amd", amd.url, "--json")
    assert result.exit_code == 0, result.output
    [kept] = json.loads(result.stdout)["kept"]
    assert kept["kind"] == "azure-vtpm"
    assert "ak-binding" in kept["shown"]
    assert set(read_support(Path(kept["file"])).endorsements) == {"leaf", "issuer", "crls"}


def test_a_file_of_endorsements_that_was_changed_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "one.support").write_bytes(b"\xa0\0")
    with pytest.raises(MalformedError):
        read_support(tmp_path / "one.support")


@pytest.mark.parametrize("chunk", [b"-1", b"-9", b"zz"])
def test_a_server_whose_answer_would_never_end_is_given_up(chunk: bytes) -> None:
    """http.client takes a negative size of a chunk for a number, and would read until memory ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + b"\r\nbody"
                )
                connection.recv(1)  # until the client has gone

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(Failure) as caught:
            web_fetch(quiet)(f"http://127.0.0.1:{listener.getsockname()[1]}/x")
        thread.join(10)
    assert caught.value.code is ExitCode.FAILURE
    assert not thread.is_alive()
