"""nbval finds its sanitising file from any folder; Hypothesis draws few examples unless asked for more."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "short",
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,  # tests.support.answers measures the time of the reader alone
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.register_profile("long", settings.get_profile("short"), max_examples=500, derandomize=False)
settings.load_profile("short")


def pytest_configure(config: pytest.Config) -> None:
    config.option.nbval_sanitize_with = str(config.rootpath / "tests" / "nbval_sanitize.cfg")
