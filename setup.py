"""The part of the build that pyproject.toml cannot say: the two cffi extension modules."""

from setuptools import setup

setup(cffi_modules=["fusepipe/syscalls/_build.py:ffi", "fusepipe/device/_build.py:ffi"])
