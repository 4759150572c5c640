"""The cache's indexes give what a scan over all objects finds, whatever came, changed and went."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from shoal.master.model import Key, Object, Record, key_of
from shoal.master.store.apply import Applied, Cache
from shoal.proto.v1 import objects_pb2 as o
from tests.memory_view import MemoryView

NAMES = ("a", "b")
STEPS = 150


def made(rng: random.Random) -> Object:
    """Any pod, claim or volume of few names, so that they meet."""
    name, other = rng.choice(NAMES), rng.choice(NAMES)
    found: Object
    match rng.randrange(3):
        case 0:
            found = o.Pod(kind="Pod")
            found.spec.nodeName = rng.choice(("", *NAMES))
            found.status.phase = rng.choice(("Pending", "Running", "Succeeded"))
            found.spec.volumes.add(name="v").persistentVolumeClaim.claimName = other
        case 1:
            found = o.PersistentVolumeClaim(kind="PersistentVolumeClaim")
            found.spec.volumeName = rng.choice(("", *NAMES))
            found.spec.storageClassName = rng.choice(("", *NAMES))
            found.status.phase = rng.choice(("Pending", "Bound", "Lost"))
        case _:
            found = o.PersistentVolume(kind="PersistentVolume")
            found.spec.storageClassName = rng.choice(("", *NAMES))
            found.spec.claimRef.uid = rng.choice(("", *NAMES))
            term = found.spec.nodeAffinity.required.nodeSelectorTerms.add()
            term.matchExpressions.add(key="kubernetes.io/hostname", operator="In", values=rng.sample(NAMES, 1))
    found.metadata.name, found.metadata.uid = name, f"{found.kind}-{name}"
    found.metadata.labels["l"] = other
    found.metadata.ownerReferences.add(uid=other)
    return found


def keys(found: Iterable[Object]) -> list[Key]:
    return sorted(map(key_of, found))


@pytest.mark.parametrize("seed", range(3))
def test_indexes_answer_as_scans_do(seed: int) -> None:
    rng, cache, scans = random.Random(seed), Cache(), MemoryView()
    found_any: set[str] = set()
    for revision in range(1, STEPS):
        obj = made(rng)
        key = key_of(obj)
        record = None if rng.random() < 0.2 else Record(key, obj, b"", revision, revision)
        cache.apply(revision, [Applied(key, record)])
        scans.records.pop(key, None)
        if record is not None:
            scans.records[key] = record
        for name in ("", *NAMES):
            asked = {
                question: (getattr(cache, question)(name), getattr(scans, question)(name))
                for question in ("owned", "pods_on", "claims_on", "claims_waiting", "volumes_on", "volumes_free")
                if name or question in ("claims_waiting", "volumes_free")
            }
            asked["referring"] = (
                cache.referring("PersistentVolumeClaim", "", "a", name),
                scans.referring("PersistentVolumeClaim", "", "a", name),
            )
            asked["labelled"] = (cache.labelled("Pod", "", "l", name), scans.labelled("Pod", "", "l", name))
            asked["volumes_of"] = (cache.volumes_of(name or "c"), scans.volumes_of(name or "c"))
            for question, (indexed, scanned) in asked.items():
                assert keys(indexed) == keys(scanned), (question, name, revision)
                found_any |= {question} if scanned else set()
    assert len(found_any) == 9  # each question had an answer at times
