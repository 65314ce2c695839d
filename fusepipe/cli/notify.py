"""Telling the service manager how far we are: sd_notify(3), through the package sdnotify."""

import sdnotify


def notify(state: str) -> None:
    """Send a state such as "READY=1" to $NOTIFY_SOCKET; nothing happens where there is none."""
    sdnotify.SystemdNotifier().notify(state)
