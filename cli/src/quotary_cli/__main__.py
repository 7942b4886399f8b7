# SPDX-License-Identifier: Apache-2.0
"""`python -m quotary_cli`: the command `attest` where it is not on the path."""

from quotary_cli.main import main

if __name__ == "__main__":
    main()
