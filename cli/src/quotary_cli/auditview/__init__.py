# SPDX-License-Identifier: Apache-2.0
"""An audit's result for people: as text for a terminal, and as one HTML file that needs nothing else."""
