# SPDX-License-Identifier: Apache-2.0
"""Reads the rules of a policy on TEE lines from the table `[tee]` (docs/spec/policy.md, "Rules on TEEs")."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Final, TypeVar

from quotary_verifier.errors import MalformedError
from quotary_verifier.evidence.tee.amd_certs import AmdRoots, Generation, SigningKey
from quotary_verifier.evidence.tee.azure import AzureRules, names_paravisor
from quotary_verifier.evidence.tee.cca import CcaRules, PlatformKey, platform_key_pem
from quotary_verifier.evidence.tee.cca_token import (
    HASHES,
    IMPLEMENTATION_BYTES,
    INSTANCE_BYTES,
    PERSONALIZATION_BYTES,
    PROFILES,
)
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.intel_pki import IntelRoot
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.evidence.tee.nitro import KIND_ENCLAVE, KIND_TPM, NitroRules
from quotary_verifier.evidence.tee.nvidia import Architecture, NvidiaRules
from quotary_verifier.evidence.tee.snp_report import Tcb
from quotary_verifier.evidence.tee.snp_rules import SnpRules
from quotary_verifier.evidence.tee.tdx_rules import NO_SERVICE_TD, TdxRules
from quotary_verifier.evidence.tee.tdx_tcb import UP_TO_DATE
from quotary_verifier.pki.anchors import pem_certificates
from quotary_verifier.policy.load_images import read_images
from quotary_verifier.policy.table import Table
from quotary_verifier.policy.tee import AZURE, TEE_NAMES, TeeRules

_GENERATIONS: Final = {"milan": Generation.MILAN, "genoa": Generation.GENOA, "turin": Generation.TURIN}
_SIGNING_KEYS: Final = {"vcek": SigningKey.VCEK, "vlek": SigningKey.VLEK}
_ARCHITECTURES: Final = {
    "hopper": Architecture.HOPPER,
    "blackwell": Architecture.BLACKWELL,
    "nvswitch": Architecture.NVSWITCH,
}
_NITRO_KINDS: Final = {"enclave": KIND_ENCLAVE, "nitro-tpm": KIND_TPM}
_STATUSES: Final = {
    name: name
    for name in (
        UP_TO_DATE,
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
    )
}
_CCA_PROFILES: Final = {profile: profile for profile in PROFILES}
_CCA_HASHES: Final = {name: name for name in HASHES}
_REMS: Final = range(4)
_HASH_BYTES: Final = tuple(HASHES.values())
_VERSIONS: Final = (2, 3, 4, 5)
_VMPLS: Final = range(4)
_RTMRS: Final = range(4)
_NITRO_PCRS: Final = range(32)
_NVIDIA_MEASUREMENTS: Final = range(1, 256)
_BYTE: Final = 255
_U32: Final = 1 << 32
_HEXADECIMAL: Final = frozenset("0123456789abcdef")
_DIGEST, _LONG, _FMSPC, _PPID = (32,), (48,), (6,), (16,)
_CHIPS: Final = (8, 64)
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_MAX_AGE: Final = 100 * 366 * 86_400

T = TypeVar("T")


def read_tee(table: Table) -> TeeRules:
    """Read the table `[tee]`.

    Raises:
        PolicyError: it has an unknown key, or asks for what cannot be had.
    """
    names = {name: name for name in (*TEE_NAMES.values(), AZURE)}
    required = _among(table, "required", names) or frozenset()
    given = set(table.names())
    kinds = {name: table.table(name) for name in names if name in given}
    images = tuple(image for name, kind in kinds.items() for image in read_images(name, kind))
    keys = _platform_keys(kinds["cca"]) if "cca" in kinds else ()
    rules = TeeRules(
        required=required,
        snp=_snp(kinds["sev-snp"]) if "sev-snp" in kinds else None,
        tdx=_tdx(kinds["tdx"]) if "tdx" in kinds else None,
        nitro=_nitro(kinds["nitro"]) if "nitro" in kinds else None,
        nvidia=_nvidia(kinds["nvidia"]) if "nvidia" in kinds else None,
        cca=_cca(kinds["cca"]) if "cca" in kinds else None,
        azure=_azure(kinds[AZURE]) if AZURE in kinds else None,
        roots=_roots(table.table("roots"), keys),
        images=images,
    )
    table.finish()
    return rules


def _snp(table: Table) -> SnpRules:
    generations = _among(table, "generations", _GENERATIONS)
    if not generations:
        table.fail("generations", f"must name some of {', '.join(_GENERATIONS)}")
    rules = SnpRules(
        generations=generations,
        versions=_numbers(table, "versions", _VERSIONS, (3, 4, 5)),
        signing_keys=_among(table, "signing_keys", _SIGNING_KEYS) or frozenset(SigningKey),
        debug=table.take("debug", bool, False),
        migration_agent=table.take("migration_agent", bool, False),
        vmpls=_numbers(table, "vmpls", _VMPLS, (0,)),
        masked_chip=table.take("masked_chip", bool, False),
        provisional=table.take("provisional", bool, False),
        alias_check=table.take("alias_check", bool, False),
        revocation=table.take("revocation", bool, False),
        smt=table.take("smt", bool, True),
        measurements=_digests(table, "measurements", _LONG),
        host_data=_digests(table, "host_data", _DIGEST),
        id_keys=_digests(table, "id_keys", _LONG),
        author_keys=_digests(table, "author_keys", _LONG),
        devices=_digests(table, "devices", _CHIPS),
        providers=_texts(table, "providers"),
        guest_svn=_number(table, "guest_svn", _U32 - 1),
        reported=_least(table.table("reported")),
        committed=_least(table.table("committed")),
        launch=_least(table.table("launch")),
    )
    table.finish()
    return rules


def _least(table: Table) -> dict[Generation, Tcb]:
    """Read least versions by generation; a component that is left out may have any."""
    found = {}
    for name in table.names():
        if name not in _GENERATIONS:
            table.fail(name, f"is not one of {', '.join(_GENERATIONS)}")
        inner = table.table(name)
        if not inner.names():
            table.fail(name, "names no component")
        generation = _GENERATIONS[name]
        found[generation] = Tcb(
            bootloader=_number(inner, "bootloader", _BYTE),
            tee=_number(inner, "tee", _BYTE),
            snp=_number(inner, "snp", _BYTE),
            microcode=_number(inner, "microcode", _BYTE),
            fmc=_number(inner, "fmc", _BYTE) if generation is Generation.TURIN else None,
        )
        inner.finish()
    return found


def _tdx(table: Table) -> TdxRules:
    service = _digests(table, "service_tds", _LONG)
    rules = TdxRules(
        statuses=_among(table, "statuses", _STATUSES) or frozenset({UP_TO_DATE}),
        advisories=_texts(table, "advisories"),
        evaluation=_number(table, "evaluation", _U32 - 1),
        sept_ve_disable=table.take("sept_ve_disable", bool, True),
        migratable=table.take("migratable", bool, False),
        service_tds=frozenset({NO_SERVICE_TD}) if service is None else service,
        mr_tds=_digests(table, "mrtd", _LONG),
        rtmrs=_numbered(table.table("rtmr"), _RTMRS, _LONG),
        mr_seams=_digests(table, "mrseam", _LONG),
        mr_config_ids=_digests(table, "mrconfigid", _LONG),
        mr_owners=_digests(table, "mrowner", _LONG),
        mr_owner_configs=_digests(table, "mrownerconfig", _LONG),
        devices=_digests(table, "devices", _PPID),
        platforms=_digests(table, "platforms", _FMSPC),
    )
    table.finish()
    return rules


def _nitro(table: Table) -> NitroRules:
    age = table.maybe("max_age", int)
    if age is not None and not 0 < age <= _MAX_AGE:
        table.fail("max_age", "must be a positive number of seconds")
    rules = NitroRules(
        kinds=_among(table, "kinds", _NITRO_KINDS) or frozenset({KIND_ENCLAVE}),
        debug=table.take("debug", bool, False),
        pcrs=_numbered(table.table("pcrs"), _NITRO_PCRS, _LONG) or None,
        modules=_texts(table, "modules"),
        max_age=None if age is None else timedelta(seconds=age),
    )
    table.finish()
    return rules


def _nvidia(table: Table) -> NvidiaRules:
    architectures = _among(table, "architectures", _ARCHITECTURES)
    if not architectures:
        table.fail("architectures", f"must name some of {', '.join(_ARCHITECTURES)}")
    rules = NvidiaRules(
        architectures=architectures,
        drivers=_texts(table, "drivers"),
        vbioses=_texts(table, "vbioses"),
        measurements=_numbered(table.table("measurements"), _NVIDIA_MEASUREMENTS, (32, 48, 64)) or None,
        devices=_digests(table, "devices", _DIGEST),
        firmware=table.take("firmware", bool, False),
    )
    table.finish()
    return rules


def _azure(table: Table) -> AzureRules:
    given = set(table.names())
    rules = AzureRules(
        snp=_snp(table.table("sev-snp")) if "sev-snp" in given else None,
        tdx=_tdx(table.table("tdx")) if "tdx" in given else None,
        any_paravisor=table.take("any_paravisor", bool, False),
        secure_boot=table.take("secure_boot", bool, True),
        console=table.take("console", bool, True),
        vms=_vms(table),
    )
    if rules.snp is None and rules.tdx is None:
        table.fail("", "accepts no hardware: it needs a table sev-snp or tdx of its own")
    for name, hardware in (("sev-snp", rules.snp), ("tdx", rules.tdx)):
        if hardware is not None and not rules.any_paravisor and not names_paravisor(hardware):
            table.fail(name, "does not name the paravisor, so that nothing could be accepted")
    table.finish()
    return rules


def _vms(table: Table) -> frozenset[str] | None:
    vms = table.texts("vms")
    if vms is not None and not all(_UUID.fullmatch(vm) for vm in vms):
        table.fail("vms", "must be a list of unique ids of vms, such as 911b0ef8-9dba-48b0-b275-4e4df2d39252")
    return None if vms is None else frozenset(vm.lower() for vm in vms)


def _platform_keys(table: Table) -> tuple[PlatformKey, ...]:
    """Read the keys of Arm CCA platforms, one PEM block each; there is no root that could stand for them."""
    texts = table.texts("keys")
    if not texts:
        table.fail("keys", "must bring the public keys of platforms: there is no root for them")
    keys = tuple(table.convert("keys", text, platform_key_pem) for text in texts)
    if len({key.sha256 for key in keys}) != len(keys):
        table.fail("keys", "names one key twice")
    return keys


def _cca(table: Table) -> CcaRules:
    rules = CcaRules(
        debug=table.take("debug", bool, False),
        profiles=_among(table, "profiles", _CCA_PROFILES) or frozenset(PROFILES),
        hashes=_among(table, "hashes", _CCA_HASHES) or frozenset(HASHES),
        rims=_digests(table, "rim", _HASH_BYTES),
        rems=_numbered(table.table("rem"), _REMS, _HASH_BYTES),
        personalizations=_digests(table, "personalizations", (PERSONALIZATION_BYTES,)),
        implementations=_digests(table, "implementations", (IMPLEMENTATION_BYTES,)),
        devices=_digests(table, "devices", (INSTANCE_BYTES,)),
        components=_digests(table, "components", _HASH_BYTES),
    )
    table.finish()
    return rules


def _roots(table: Table, keys: tuple[PlatformKey, ...]) -> TeeRoots:
    """Read roots that stand in place of the makers' own: those of AMD by generation."""
    amd = table.table("amd")
    arks = {}
    for name in amd.names():
        if name not in _GENERATIONS:
            amd.fail(name, f"is not one of {', '.join(_GENERATIONS)}")
        arks[_GENERATIONS[name]] = _root(amd, name, lambda der: der)
    roots = TeeRoots(
        amd=amd.convert("", "", lambda _: AmdRoots.from_der(arks)) if arks else None,
        intel=_root(table, "intel", IntelRoot) if "intel" in table.names() else None,
        nitro=_root(table, "nitro", PinnedRoot) if "nitro" in table.names() else None,
        nvidia=_root(table, "nvidia", PinnedRoot) if "nvidia" in table.names() else None,
        cca=keys,
    )
    table.finish()
    return roots


def _root(table: Table, key: str, make: Callable[[bytes], T]) -> T:
    return table.convert(key, table.take(key, str), lambda text: make(_one_certificate(text)))


def _one_certificate(text: str) -> bytes:
    found = pem_certificates(text)
    if len(found) != 1:
        raise MalformedError(f"one certificate is expected, and there are {len(found)}")
    return found[0]


def _among(table: Table, key: str, known: Mapping[str, T]) -> frozenset[T] | None:
    """Read a list of words; None where it is left out. An empty one is refused, as nothing could be accepted."""
    words = table.texts(key)
    if words is None:
        return None
    if not words:
        table.fail(key, "is empty")
    for word in words:
        if word not in known:
            table.fail(key, f"must be among {', '.join(known)}")
    return frozenset(known[word] for word in words)


def _texts(table: Table, key: str) -> frozenset[str] | None:
    texts = table.texts(key)
    return None if texts is None else frozenset(texts)


def _numbers(table: Table, key: str, allowed: Iterable[int], default: Iterable[int]) -> frozenset[int]:
    numbers = table.maybe(key, list)
    if numbers is None:
        return frozenset(default)
    if not numbers or any(type(number) is not int or number not in allowed for number in numbers):
        table.fail(key, f"must be a list of some of {', '.join(map(str, allowed))}")
    return frozenset(numbers)


def _number(table: Table, key: str, most: int) -> int:
    number = table.maybe(key, int) or 0
    if not 0 <= number <= most:
        table.fail(key, f"must be between 0 and {most}")
    return number


def _digests(table: Table, key: str, sizes: tuple[int, ...]) -> frozenset[bytes] | None:
    """Read a list of values of one of these sizes in bytes; None where it is left out, an empty one allows none."""
    texts = table.texts(key)
    if texts is None:
        return None
    return frozenset(table.convert(key, text, lambda text: _hexadecimal(text, sizes)) for text in texts)


def _hexadecimal(text: str, sizes: tuple[int, ...]) -> bytes:
    value = bytes.fromhex(text) if _HEXADECIMAL.issuperset(text) and len(text) % 2 == 0 else b""
    if value.hex() != text or len(value) not in sizes:
        wanted = " or ".join(str(2 * size) for size in sizes)
        raise MalformedError(f"{wanted} lower-case hexadecimal digits are expected")
    return value


def _numbered(table: Table, allowed: range, sizes: tuple[int, ...]) -> dict[int, frozenset[bytes]]:
    """Read registers by their number, and the values that each may have."""
    found = {}
    for key in table.names():
        if (
            len(key) > 3
            or not key.isdecimal()
            or not key.isascii()
            or str(int(key)) != key
            or int(key) not in allowed
        ):
            table.fail(key, f"is not a number from {allowed[0]} to {allowed[-1]}")
        values = _digests(table, key, sizes)
        if not values:
            table.fail(key, "allows no value")
        found[int(key)] = values
    return found
