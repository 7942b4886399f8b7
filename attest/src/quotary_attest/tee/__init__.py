# SPDX-License-Identifier: Apache-2.0
"""Roots beside a TPM, or in its place: confidential-computing hardware and NVIDIA devices (docs/howto/tee.md).

One module for each way to a device. A device answers in a thread (`calls`), and whatever it gives is verified with the
verifier's own code before it is handed out (`root`). `opening` makes a root by its name, `probe` tells which there are.
"""
