"""pip's settings on this machine, in a form that the build of an image can use: a directory to be mounted at /pip."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

USED = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert")


def settings() -> dict[str, str]:
    """What `pip config list` says, the environment before the files, as pip itself has it."""
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
    found: dict[str, dict[str, str]] = {"global": {}, ":env:": {}}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        where, _, key = name.rpartition(".")
        if where in found and key in USED:
            found[where][key] = str(ast.literal_eval(value))
    return {**found["global"], **found[":env:"]}


def directory_for_a_build(folder: Path) -> list[str]:
    """Write `folder`/pip.conf, and return the options of `podman build` that mount it and what it refers to."""
    used = settings()
    mounts = {str(folder): "/pip"}
    for key in ("index-url", "extra-index-url", "find-links"):
        for word in used.get(key, "").split():
            path = urlsplit(word).path.rstrip("/") if word.startswith("file:") else word
            if key != "find-links" and path.startswith("/"):
                path = str(Path(path).parent)  # the pages of an index may lead to files beside it
            if path.startswith("/") and Path(path).exists():
                mounts[path] = path
    if "cert" in used:
        shutil.copy(used["cert"], folder / "ca.crt")
        used["cert"] = "/pip/ca.crt"
    lines = [f"{key} = {' '.join(value.split())}" for key, value in used.items()]
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    return [option for source, target in mounts.items() for option in ("-v", f"{source}:{target}:ro")]
