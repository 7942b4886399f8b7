# SPDX-License-Identifier: Apache-2.0
"""Templates of policies, for who begins without a host to learn from."""

from __future__ import annotations

from typing import Final

STRICT: Final = """\
# Strict: what you have not decided is refused. Go through it from the top, and fill the empty lists; `attest policy
# check` says what is still missing, with the digests to put in. `attest policy learn` fills most of it from good boots.
{trust}
[tpm]
software = false               # a software TPM binds to no hardware
unauthenticated_ak = false     # true only for cloud vTPMs
safe_clock = false             # true refuses evidence after a power cut, until the TPM's clock is safe again

[platform.secure_boot]
enabled = true
db = []                        # who may sign what boots, as x509:<SHA-256 of the certificate>: nobody yet
kek = []                       # who may change db and dbx: nobody yet
pk = []                        # who may change KEK: nobody yet
authorities = []               # which entries of db may have been used: none yet
dbx = []                       # entries that must be refused, as sha256:<digest>; the firmware may refuse more

[platform.boot]
applications = []              # boot loaders and kernels by Authenticode SHA-256: none yet
files = []                     # what boot loaders read (initrd, configuration) by SHA-256: nothing yet
command_lines = []             # patterns that fit a whole command line: none yet

[platform.ima]
# The files that may run: none yet. `attest policy import` makes lists and prints the lines to put here, such as
# [[platform.ima.list]]
# file = "debian.sha256sum"
# sha256 = "..."
violations = false             # true accepts files that were written while they were measured

{models}
# An agent shows consumers the model that answered and its engine, and of other measurements only digests. Auditors see
# all of them; for them these can be set:
# [workload]
# opaque = false               # every measurement must come in full
# only_models = true           # no model but those above may be ready to serve

[output]
states = ["complete"]          # answers that were cut off are refused

[freshness]
nonce = true                   # the caller must have sent a nonce
"""

CLOUD_VTPM: Final = """\
# Cloud vTPM: a virtual machine whose TPM the cloud's hypervisor emulates. The cloud can forge all of this; it says what
# booted as far as you trust the cloud. Its firmware changes without notice, so PCR 0 is not asked for.
{trust}
[tpm]
software = false
unauthenticated_ak = true      # any process with the TPM can use the AK, so root on the host can quote

[platform.secure_boot]
enabled = true
# authorities = [...]          # who signed what booted; `attest policy learn` finds out

# What booted and ran. Left out: anything that Secure Boot lets through. `attest policy learn` writes these tables.
# [platform.boot]
# applications = [...]
# command_lines = [...]

{models}
[output]
states = ["complete"]
"""

MODEL_ONLY: Final = """\
# Model only: who served which model, and nothing of what else ran there. Claims on the model are then the host's
# word, as nothing says which programs wrote its log; verdicts say so. Good to begin with, and for hosts of people you
# trust.
{trust}
[tpm]
software = false

{models}
[output]
states = ["complete"]
"""

CONFIDENTIAL_VM: Final = """\
# Confidential VM: an origin without a TPM, whose commits the processor alone binds; here AMD SEV-SNP. Pin the origin.
# There are no PCRs and no workload log: what runs is what the launch measurement covers, and from there on the guest's
# program speaks for itself. Only witnesses would catch two histories. For Intel TDX and AWS Nitro: docs/spec/policy.md.
{trust}
[tee]
required = ["sev-snp"]         # of a whole machine: sev-snp, tdx, nitro, cca

[tee.sev-snp]
generations = ["genoa", "turin"]  # the keys of Milan are said to be out
measurements = []              # launch measurements of images: none yet. Verdicts and `attest inspect` show the host's
debug = false                  # true accepts guests that the host can read and change
alias_check = true             # the firmware must have looked for memory that appears twice
# devices = []                 # chip ids: name the machines that you believe to be in good hands

# [tee.sev-snp.committed.genoa]  # least versions, as AMD's bulletins give them
# microcode = 84

# Without these a model is the host's word. Write one only if the measurement covers all that runs, weights included.
# [[tee.sev-snp.image]]
# weights = "sha256:..."
# registers = {{ launch = ["..."] }}

{models}
[output]
states = ["complete"]
"""

NO_MODEL: Final = """\
# The models that may serve: none yet, as no weights have this digest.
[[model]]
weights = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
link = "checked"               # at least: configured, checked, started
"""
"""What stands in place of models that have not been decided."""

TEMPLATES: Final = {
    "strict": STRICT,
    "cloud-vtpm": CLOUD_VTPM,
    "confidential-vm": CONFIDENTIAL_VM,
    "model-only": MODEL_ONLY,
}
