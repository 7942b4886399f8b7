# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: one TOML file, checked as a whole before anything runs."""

from quotary_attest.config.keys import ConfigError, Problem
from quotary_attest.config.load import claimed_model, load_config, missing_files
from quotary_attest.config.sections import AgentConfig

__all__ = ["AgentConfig", "ConfigError", "Problem", "claimed_model", "load_config", "missing_files"]
