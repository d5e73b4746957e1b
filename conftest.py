"""nbval finds its sanitising file from whatever folder pytest is started in."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.option.nbval_sanitize_with = str(config.rootpath / "tests" / "nbval_sanitize.cfg")
