"""What the environment says of Ray. Every process of Ray reads it: it is cleaned before Ray starts.

This file imports no Ray: `ray` reads some of these variables while it is imported.
"""

from __future__ import annotations

from collections.abc import MutableMapping

STEP_ADDRESS = "RANKRL_RAY_ADDRESS"
"""The variable by which slurm/sweep.sh tells its own step of the cluster: JOB@HOST:PORT."""
FOREIGN = ("RAY_ADDRESS", "RAY_REDIS_ADDRESS", "RAY_GCS_SERVER_PORT", "RAY_CLIENT_MODE", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""Variables by which Ray would join a cluster that is not rankrl's; slurm/sweep.sh has them too."""


def step_address(environment: MutableMapping[str, str]) -> str | None:
    """The address of the Ray cluster of this Slurm job; None if Ray is to be started here."""
    job, _, address = environment.get(STEP_ADDRESS, "").partition("@")
    return address if job and job == environment.get("SLURM_JOB_ID") else None  # or it is left over


def left_over(environment: MutableMapping[str, str]) -> list[str]:
    """The variables that would lead to a foreign cluster. Importing Ray sets one of them to 0."""
    stale = [STEP_ADDRESS] if environment.get(STEP_ADDRESS) and not step_address(environment) else []
    return [name for name in FOREIGN if environment.get(name, "") not in ("", "0")] + stale


def drop_left_over(environment: MutableMapping[str, str]) -> list[str]:
    """Removes what is left over from `environment`. Returns the names."""
    names = left_over(environment)
    for name in names:
        del environment[name]
    return names
