"""Which network the workers of a training meet on: that by which Ray reaches their machines.

Gloo takes the address that the machine's name stands for, which is 127.0.0.1 or 127.0.1.1 on many: workers on other
machines then cannot connect. NCCL leaves loopback out by itself.
"""

import os
import socket
import struct
from contextlib import suppress
from typing import Any

import ray
from ray.train.torch import TorchConfig

_SIOCGIFADDR = 0x8915  # of Linux
_NAME_BYTES = 256


class OnRaysNetwork(TorchConfig):
    """Process groups of torch on that network; a GLOO_SOCKET_IFNAME of the machine's own is left alone."""

    @property
    def backend_cls(self) -> Any:
        """Of Ray Train."""

        class Backend(super().backend_cls):  # type: ignore[misc]
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                worker_group.execute(use_network_of_ray)
                super().on_start(worker_group, backend_config)

        return Backend


def use_network_of_ray() -> None:
    """In a worker, before its process group is made."""
    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has this IPv4 address; null where none is found."""
    with suppress(ImportError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        from fcntl import ioctl

        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                answer = ioctl(asked.fileno(), _SIOCGIFADDR, struct.pack(f"{_NAME_BYTES}s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
