# SPDX-License-Identifier: Apache-2.0
"""Evidence made by confidential-computing hardware: one module a kind, all of one shape (`shape`).

`verify` takes evidence, what vouches for its key, the time and the roots, and raises or returns claims: what the
hardware said, who vouches for it, what was shown and what was not. `appraise` holds claims against the rules of a
relying party and returns every finding. docs/spec/tee.md is the specification.
"""
