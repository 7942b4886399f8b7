# SPDX-License-Identifier: Apache-2.0
"""The serving link: an agent used from other processes of its host (docs/spec/serving.md, "The serving link")."""
