"""Which machine of a cluster takes which worker; what is said while there is no room; which machine is at fault."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from trainer import cluster, network
from trainer.cluster import Machine
from trainer.config.compose import resolve
from trainer.machines import anywhere, deal, differing, lacking, look, wait_for
from trainer.placement import Placement, distance_faults, placement_faults, placement_of


def machine(number: int, cpus: float = 4, gpus: float = 0) -> Machine:
    """The machine of this number; the first is the controller's."""
    return Machine(f"id{number}", f"10.0.0.{number}", cpus, gpus, number == 1)


THREE = [machine(1), machine(2), machine(3)]


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (2, 1), (2, 3), (3, 4)])
def test_ranks_fill_one_machine_after_the_other(nodes: int, per_node: int) -> None:
    seats = deal(THREE, Placement("cpu", nodes * per_node, nodes=nodes))
    assert seats.ranks == tuple(THREE[number] for number in range(nodes) for _ in range(per_node))


def test_machines_without_room_get_no_rank() -> None:
    small = [machine(1, cpus=1), *THREE[1:]]
    assert deal(small, Placement("cpu", 4, nodes=2)).ranks == (THREE[1],) * 2 + (THREE[2],) * 2


def test_samplers_spread_before_they_crowd() -> None:
    seats = deal(THREE, Placement("cpu", 1, samplers=3))
    assert set(seats.samplers) == set(THREE)
    assert seats.samplers[-1] == THREE[0], "the controller's machine has a rank already"
    six = deal(THREE, Placement("cpu", 1, samplers=6)).samplers
    assert all(six.count(one) == 2 for one in THREE)


def test_on_gpus_the_first_sampler_is_beside_rank_0_and_verifiers_keep_to_other_machines() -> None:
    cpus = machine(1, cpus=64)
    eight = [machine(2, 32, 4), machine(3, 32, 4)]
    seats = deal([cpus, *eight], Placement("cuda", 6, samplers=3, nodes=2))
    assert seats.ranks == (eight[0],) * 3 + (eight[1],) * 3
    assert seats.samplers[0] == eight[0]
    assert sorted(one.address for one in seats.samplers[1:] if one) == [one.address for one in eight]
    assert seats.verifiers == (cpus,)
    assert seats.cpus == 64
    assert deal(eight, Placement("cuda", 6, nodes=2)).verifiers == tuple(eight)


def test_without_a_cluster_nobody_is_sent_anywhere() -> None:
    seats = anywhere(Placement("cpu", 2, samplers=3))
    assert (len(seats.ranks), len(seats.samplers), seats.used) == (2, 3, [])


@pytest.mark.parametrize(
    ("machines", "placement", "words"),
    [
        (THREE[:1], Placement("cpu", 2, nodes=2), ["2 machines with 1 free CPU cores", "NNODES=2", "10.0.0.1 has 4"]),
        (THREE, Placement("cuda", 2, nodes=2), ["1 free GPUs", "there: 3 machines", "0 GPUs free"]),
        (THREE[:1], Placement("cpu", 1, teachers=2, samplers=3), ["6 cores", "3 samplers", "2 teachers"]),
        ([machine(1, 9, 2)], Placement("cuda", 2, samplers=2), ["3 GPUs"]),
    ],
)
def test_what_is_lacking_is_told_beside_what_is_there(
    machines: list[Machine], placement: Placement, words: list[str]
) -> None:
    said = lacking(machines, placement)
    assert said is not None
    assert all(word in said for word in words), said


def test_a_wait_for_machines_ends_when_they_come_or_with_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="mopd")
    two, seen = Placement("cpu", 2, nodes=2), iter([THREE[:1], THREE[:2]])
    assert wait_for(two, 60, lambda: next(seen)) == THREE[:2]
    assert "waiting for room in the cluster" in caplog.text
    with pytest.raises(cluster.DeadlineError, match=r"trainer\.deadline_s=0\.1 s; asked: 2 machines"):
        wait_for(two, 0.1, lambda: THREE[:1])


def test_the_machine_at_fault_is_named(tmp_path: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "out"
    for folder in (model, output):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    (output / "mark").touch()
    own = look("", [str(model)], [str(output)], "mark")
    address = next(own for own in network.addresses().values() if network.is_loopback(own))
    assert differing(replace(own, address="10.0.0.7", interface="eth0"), own) == []
    [loopback] = differing(look(address, [str(model)], [str(output)], "mark"), own)
    assert "--node-ip-address" in loopback
    [no_interface] = differing(replace(own, address="192.0.2.1", interface=network.interface_of("192.0.2.1")), own)
    assert "none of its interfaces" in no_interface
    (model / "config.json").write_text("other")
    seen = look("10.0.0.7", [str(model)], [str(output)], "elsewhere")
    said = differing(replace(seen, interface="eth0", versions={**seen.versions, "torch": "1.0"}), own)
    for words in ("holds other files", "is not the one that the controller sees", "torch is 1.0 there"):
        assert [line for line in said if line.startswith("machine 10.0.0.7: ") and words in line], said
    [gone, *_] = differing(replace(seen, folders={str(model): None}), own)
    assert f"there is no {model}" in gone


@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_are_those_of_all_nodes(nodes: int) -> None:
    overrides = [f"trainer.nnodes={nodes}", "trainer.n_gpus_per_node=2", "actor_rollout_ref.rollout.n_samplers=3"]
    placement = placement_of(resolve("mopd", overrides, {}).config, gpus=0)
    assert (placement.ranks, placement.per_node, placement.nodes) == (2 * nodes, 2, nodes)


def test_several_nodes_want_a_cluster_and_only_it_tells_what_it_has() -> None:
    config = resolve("mopd", ["trainer.nnodes=2", "trainer.device=cuda", "trainer.n_gpus_per_node=8"], {}).config
    [devices, nodes] = placement_faults(config, 0, {})
    assert "0 GPUs are visible" in devices
    assert "RAY_ADDRESS names no cluster" in nodes
    assert "set NNODES=1" in nodes
    assert placement_faults(config, 0, {"RAY_ADDRESS": "10.0.0.1:6379"}) == []
    assert distance_faults(config, 0, {"RAY_ADDRESS": "10.0.0.1:6379"}) == []


def test_an_address_that_nobody_else_reaches_is_refused() -> None:
    interface = network.interface_of("127.0.0.1")
    assert interface is not None
    with pytest.raises(ValueError, match=r"no other machine reaches.*MOPD_INTERFACE"):
        network.own_address(interface, "")
    with pytest.raises(ValueError, match=f"no interface nowhere0 .*{interface} "):
        network.own_address("nowhere0", "")
    with pytest.raises(ValueError, match="no other machine reaches"):
        network.own_address("", "127.0.0.1")


def test_traffic_between_machines_takes_the_interface_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "addresses", lambda: {"lo": "127.0.0.1", "hsn0": "10.0.0.1"})
    for name in (*network.INTERFACES, "VLLM_HOST_IP"):
        monkeypatch.delenv(name, raising=False)
    network.use("127.0.0.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    network.use("10.0.0.1")
    chosen = {name: os.environ.pop(name) for name in (*network.INTERFACES, "VLLM_HOST_IP")}
    assert chosen == {"GLOO_SOCKET_IFNAME": "hsn0", "NCCL_SOCKET_IFNAME": "ib0", "VLLM_HOST_IP": "10.0.0.1"}
