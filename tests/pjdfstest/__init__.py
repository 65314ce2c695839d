"""The POSIX suite: what POSIX and Linux promise of a filesystem, checked from outside, on any directory."""
