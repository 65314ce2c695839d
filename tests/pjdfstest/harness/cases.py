"""Tables of conditions: a test runs once for every combination of its axes, under a name that says which."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest


def cases(
    name: str, /, *, where: Callable[..., bool] | None = None, **axes: Iterable[Any] | Mapping[str, Any]
) -> pytest.MarkDecorator:
    """Parametrize a test over all combinations of the axes.

    `name` is the case's name, for example `"rename/sticky/dir-{directory}-file-{file}/{kind}"`; axes that it does not
    mention are added at its end.  An axis is a list of values, each labelled by its `name` attribute or else by `str`,
    or a mapping from label to value.  `where` leaves combinations out.
    """
    labelled = {axis: _labelled(values) for axis, values in axes.items()}
    template = name + "".join(f"/{{{axis}}}" for axis in axes if f"{{{axis}}}" not in name)
    parameters = []
    for combination in itertools.product(*labelled.values()):
        values = {axis: value for axis, (_, value) in zip(axes, combination, strict=True)}
        if where is None or where(**values):
            labels = {axis: label for axis, (label, _) in zip(axes, combination, strict=True)}
            parameters.append(pytest.param(*values.values(), id=template.format(**labels)))
    return pytest.mark.parametrize(list(axes), parameters)


def _labelled(values: Iterable[Any] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(values, Mapping):
        return list(values.items())
    return [(str(getattr(value, "name", value)), value) for value in values]
