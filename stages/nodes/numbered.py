"""Roles of teachers: numbered in the order that is meant, so that no name enters a key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ensdistill.pipeline.node import NodeId


def numbered(role: str, nodes: Iterable[NodeId]) -> dict[str, NodeId]:
    """Return ``role00``, ``role01``, ... to nodes, whose order is part of a key."""
    return {f"{role}{k:02}": node_id for k, node_id in enumerate(nodes)}


def called(uses: Mapping[str, NodeId]) -> dict[str, str]:
    """Return role to the teacher whose labels it stands for."""
    return {role: node_id.of for role, node_id in uses.items() if node_id.of is not None}
