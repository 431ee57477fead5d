"""Workers meet on the network by which Ray reaches their machines."""

import os
import socket

import ray

from tokenmill.training.run.network import interface_of, use_network_of_ray


def test_an_address_has_the_interface_that_it_stands_on():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None


def test_gloo_is_told_the_interface_of_rays_address_unless_somebody_has_said_one(local_ray, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_network_of_ray()
    name = os.environ["GLOO_SOCKET_IFNAME"]
    assert name in [each for _, each in socket.if_nameindex()]
    assert name == interface_of(ray.util.get_node_ip_address())
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_network_of_ray()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
