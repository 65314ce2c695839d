"""Runs system calls as real users on the filesystem under test and counts what is checked."""
