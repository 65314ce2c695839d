"""`-o name=value,...`: every long option, in the order of mount(8), with clear errors."""

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusepipe.cli.main import fusepipe
from fusepipe.cli.mount_options import FOR_OTHERS, split


def command(name: str) -> click.Command:
    found = fusepipe.get_command(click.Context(fusepipe), name)
    assert found is not None
    return found


def parsed(*args: str, name: str = "bind") -> dict[str, Any]:
    return command(name).make_context(name, [*args, "src" if name == "bind" else "unix:s/v", "mnt"]).params


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


@given(st.lists(st.text(min_size=1)))
def test_split_takes_back_what_was_joined(items: list[str]) -> None:
    assert split(",".join(map(escaped, items))) == items


@given(st.text())
def test_split_never_fails_and_never_gives_empty_items(text: str) -> None:
    assert all(split(text))


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        ("ro", ["ro"]),
        ("ro,suid", ["ro", "suid"]),
        (",ro,,suid,", ["ro", "suid"]),
        (r"trace=client\,wire,ro", ["trace=client,wire", "ro"]),
        (r"fsname=a\\,ro", ["fsname=a\\", "ro"]),
        ("fsname=a\\", ["fsname=a\\"]),
    ],
)
def test_split(text: str, items: list[str]) -> None:
    assert split(text) == items


FLAGS = [
    param
    for param in command("mount").params
    if isinstance(param, click.Option) and param.is_flag and param.name != "help"
]
VALUES = {
    "--readers": st.integers(1, 256).map(str),
    "--cache": st.sampled_from(["none", "ttl:1", "ttl:2.5"]),
    "--locks": st.sampled_from(["local", "shared"]),
    "--native": st.sampled_from(["auto", "off"]),
    "--connect-timeout": st.floats(0, 1e6).map(str),
    "--on-disconnect": st.sampled_from(["wait", "fail", "0", "1.5", "30s", "10m", "24h", "7d"]),
    "--log-level": st.sampled_from(["debug", "info", "warning", "error"]),
    "--log-format": st.sampled_from(["text", "json"]),
    "--log-file": st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(lambda s: "/" + s),
    "--trace": st.sampled_from(["client", "client,wire", "wire,server,client"]),
}
"""The long options of mount that take a value, and values for them."""


def test_every_long_option_of_mount_is_tried_below() -> None:
    with_value = {
        param.opts[0] for param in command("mount").params if isinstance(param, click.Option) and not param.is_flag
    }
    assert with_value - {"-o"} == VALUES.keys()


options = st.one_of(
    st.sampled_from([opt for param in FLAGS for opt in [*param.opts, *param.secondary_opts]]).map(
        lambda opt: (opt, "")
    ),
    st.sampled_from(sorted(VALUES)).flatmap(lambda opt: VALUES[opt].map(lambda value: (opt, value))),
)


@given(st.lists(options), st.randoms())
def test_a_list_means_what_the_long_options_mean(chosen: list[tuple[str, str]], random: Any) -> None:
    long = [f"{opt}={value}" if value else opt for opt, value in chosen]
    items = []
    for opt, value in chosen:
        name = opt.removeprefix("--")
        name = name.replace("-", random.choice(["-", "_"]))
        items.append(escaped(f"{name}={value}" if value else name))
    expected = parsed(*long, name="mount")
    assert parsed("-o", ",".join(items), name="mount") == expected
    assert parsed("-o" + ",".join(["rw", *items]), name="mount") == expected
    assert parsed(*(part for item in items for part in ("-o", item)), name="mount") == expected


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["-o", "ro"], "read_only", True),
        (["-o", "rw"], "read_only", False),
        (["-o", "ro,rw"], "read_only", False),
        (["-o", "ro", "--read-write"], "read_only", False),
        (["--read-write", "-o", "ro"], "read_only", True),
        (["-o", "suid"], "suid", True),
        (["-o", "suid,nosuid"], "suid", False),
        (["-o", "dev"], "dev", True),
        (["-o", "dev,nodev"], "dev", False),
        (["-o", "allow_other"], "allow_other", True),
        (["-o", "noallow_other"], "allow_other", False),
        (["-o", "nonempty"], "nonempty", True),
        (["-o", "daemon"], "daemon", True),
        (["-o", "readers=3"], "readers", 3),
        (["-oreaders=3,ro"], "readers", 3),
        (["-o", "readers=3,readers=4"], "readers", 4),
        (["--readers", "3", "-o", "readers=4"], "readers", 4),
        (["-o", "readers=4", "--readers", "3"], "readers", 3),
        (["-o", r"trace=client\,wire"], "trace", frozenset({"client", "wire"})),
    ],
)
def test_spellings(args: list[str], name: str, value: object) -> None:
    assert parsed(*args)[name] == value


@pytest.mark.parametrize("name", [*sorted(FOR_OTHERS), "x-systemd.automount", "x-mount.mkdir=0700", "comment=mine"])
def test_names_for_others_are_passed_over(name: str) -> None:
    assert parsed("-o", name) == parsed()


def test_after_two_hyphens_nothing_is_an_option() -> None:
    params = command("bind").make_context("bind", ["--", "-o", "mnt"]).params
    assert (params["src"], params["mnt"]) == ("-o", "mnt")


def test_the_value_of_another_option_is_not_a_list() -> None:
    assert parsed("--log-file", "-oro")["log_file"] == "-oro"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("readres=3", ["no option 'readres'", "Did you mean readers"]),
        ("alow_other", ["no option 'alow_other'", "allow-other"]),
        ("uid=3", ["no option 'uid'"]),
        ("noexec", ["no option 'noexec'"]),
        ("help", ["no option 'help'"]),
        ("o=ro", ["no option 'o'"]),
        ("=3", ["no option ''", "--help"]),
        ("readers", ["-o readers", "needs a value", "readers=VALUE"]),
        ("ro=1", ["-o ro=1", "takes no value"]),
        ("readers=0", ["'--readers'", "0 is not in the range"]),
        ("readers=", ["'--readers'"]),
        ("readers=many", ["'--readers'", "'many'"]),
    ],
)
def test_errors(text: str, says: list[str]) -> None:
    with pytest.raises(click.UsageError) as caught:
        parsed("-o", text)
    for words in says:
        assert words in caught.value.format_message()


def test_a_list_is_missing() -> None:
    with pytest.raises(click.UsageError, match="-o needs a list"):
        command("bind").make_context("bind", ["src", "mnt", "-o"])
