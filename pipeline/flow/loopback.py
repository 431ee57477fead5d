"""A Ray that is started here listens on the loopback address alone: nobody on the network can reach it."""

import os


def keep_to_loopback(address: str | None) -> None:
    """Call it before Ray is imported. Does nothing for a cluster that stands at `address`, whose nodes must be reached.

    Ray binds to the address by which others reach this node; told that it is no cluster, that is 127.0.0.1. Set the
    variable to 1 to let others reach it all the same.
    """
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
