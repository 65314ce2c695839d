"""Assertions of the helper modules say as much as those of the tests."""

import pytest

pytest.register_assert_rewrite("wire.simulation", "wire.reference")
