"""The rules of a Redis Cluster, each to be broken once, as in `mutations`."""

from __future__ import annotations

from model.mutations import Mutation, steps
from model.terms import Move

_CLUSTER = "glasspoint.l1.cluster"
_CONTACT = "glasspoint.l1.contact"
_DEPARTURES = "glasspoint.l1.departures"
_EPOCH = "glasspoint.l1.epoch"
_STEPS = "glasspoint.l1.steps"

_SLOT_THERE: tuple[Move, ...] = (
    ("slot", "begin, there"),
    ("slot", "carry, there"),
    ("slot", "arrive, there"),
)

# An image that is older than the write stands there, and the reader does not know the slot's new master yet.
_WARMED_UP_THERE: tuple[Move, ...] = (
    *_SLOT_THERE,
    *steps("t", "look here", "epoch here", "epoch there", "slots here", "slots there", "look"),
    *steps("t", "read there", "select", "warm_up there"),
    *steps("r", "read", "select"),
)
_WRITTEN_THERE_AND_LOST: tuple[Move, ...] = (
    ("slot", "begin, carry, arrive, there"),
    *steps("w", "look here", "epoch here", "epoch there", "slots here", "slots there", "look here", "look"),
    *steps("r", "look here", "epoch here", "epoch there", "slots here", "slots there", "look here", "look"),
    *steps("w", "begin there", "put snapshot", "put", "confirm there"),
    ("end", "w", ""),
    *steps("w.end", "commit there"),
    ("promote", "1"),
    ("slot", "begin, carry, arrive, here"),
)

# Its key is away, and the owner serves it again.
_STAYED_WITHOUT_ITS_KEY: tuple[Move, ...] = (
    ("slot", "begin, there"),
    ("slot", "carry, there"),
    ("slot", "stay, there"),
)
_A_ROW = "a row || sweeper, its reader || the slot stays, its key comes later"
_PUT = "put, its sweeper || reader, its sweeper || the slot stays, its key comes later"
_SWEEP_TWICE = "put || sweep, sweep, read || the slot stays, its key comes later"
_LOOKED = ("look here", "epoch here", "epoch there", "slots here")
_SWEPT_IN_VAIN = steps("s", "look", "drop", "delete rows")

RULES_OF_SLOTS = (
    Mutation(
        "a step deletes an entry of another reign",
        (("reign.lua", "if redis.call('HGET', KEY, 'reign') ~= REIGN and", "if false and"),),
        "put || reader || the slot moves",
        ("promote",),
        start=(
            *steps("w", "begin", "put snapshot", "put", "confirm"),
            ("end", "w", ""),
            *steps("w.end", "commit"),
        ),
    ),
    Mutation(
        "the configuration epoch is a part of the reign",
        (
            (
                _EPOCH,
                '_id_in(replication, "master_replid"), config_epoch)',
                '_id_in(replication, "master_replid"))',
            ),
        ),
        "sweep, put || sweep, sweep, read || the slot moves and comes back",
        ("promote",),
        start=_WRITTEN_THERE_AND_LOST,
    ),
    Mutation(
        # Where the slot's arrival changes the epoch of its new master, that makes the master suspect, too.
        "a master that has gained a slot is suspect",
        (
            (
                _CLUSTER,
                "                node.trust.suspect()\n                has_changed",
                "                has_changed",
            ),
        ),
        "put || reader, its sweeper || sweep, read || the slot moves",
        start=_WARMED_UP_THERE,
    ),
    Mutation(
        # Where the slot arrives, its new master is suspect, and believes none of its entries.
        "the scope of a write that met ASK is in quarantine",
        (
            (
                _STEPS,
                '        elif step != "read" and not self._quarantine.enter(scope, "its slot is on the way '
                'to another node"):\n            return self._contact.failed(exc)\n',
                "",
            ),
        ),
        "put_writes, its sweeper and reader || reader, its sweeper || the slot moves, called off",
        start=(
            *_SLOT_THERE[:2],
            *steps("w", "begin", "put_writes", "drop"),
            *steps("v", "read", "select"),
        ),
    ),
    Mutation(
        "a move that was called off begins another era",
        ((_CLUSTER, "self.must_begin_anew = True", "self.must_begin_anew = False"),),
        _A_ROW,
        start=(
            *_STAYED_WITHOUT_ITS_KEY,
            *steps("s", *_LOOKED),
            *_SWEPT_IN_VAIN,
            ("slot", "bring back, there"),
        ),
    ),
    Mutation(
        "the era is a part of the reign",
        (
            (_EPOCH, "self._load(reign._replace(era=era), version)", "self._load(reign, version)"),
            # Otherwise the signature of an older era is wrong, and the image is refused for that.
            (_EPOCH, "Signer(identity.secret, identity.generation)", "Signer(identity.secret)"),
        ),
        _A_ROW,
        start=(
            *_STAYED_WITHOUT_ITS_KEY,
            *steps("s", *_LOOKED, "look", "renew", "look", "look", "drop", "delete rows"),
            ("slot", "bring back, there"),
        ),
    ),
    Mutation(
        "keys that have left a master while no slot was seen to leave it are a move that was called off",
        ((_DEPARTURES, "    is_explained = ", "    is_explained = True or "),),
        _A_ROW,
        start=(
            *_STAYED_WITHOUT_ITS_KEY,
            *steps("s", *_LOOKED),
            *_SWEPT_IN_VAIN,
            ("slot", "bring back, there"),
        ),
    ),
    Mutation(
        "a slot that was seen to be on its way, and stays, is a move that was called off",
        ((_DEPARTURES, "    if stayed:\n", "    if False:\n"),),
        _SWEEP_TWICE,
        start=(
            *_STAYED_WITHOUT_ITS_KEY[:2],
            *steps("r", *_LOOKED, "look"),
            _STAYED_WITHOUT_ITS_KEY[2],
            *steps("r", *_LOOKED, "look"),
            *steps("w", "begin", "put snapshot", "put", "confirm"),
            ("slot", "bring back, there"),
        ),
    ),
    Mutation(
        "a master is suspect as soon as a move was called off",
        (
            (
                _CONTACT,
                "            self.trust.suspect()\n            shard.called_off(",
                "            shard.called_off(",
            ),
        ),
        _PUT,
        start=(
            *_STAYED_WITHOUT_ITS_KEY,
            *steps("w", "begin", "put snapshot", "put", "confirm"),
            ("slot", "bring back, there"),
            *steps("t", "look here", "epoch here", "epoch there", "slots here"),
        ),
    ),
)
