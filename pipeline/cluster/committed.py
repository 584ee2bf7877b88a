"""What a stage has committed: told as an event each time, and counted by condition or kind and status."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.cluster.jobs import Ended
from pipeline.storage.shards import Shard


class Committed:
    """Around `done`, which commits jobs that have ended."""

    def __init__(
        self, label: str, done: Callable[[Ended[Any]], object], event: Callable[..., object]
    ) -> None:
        self.rows: Counter[str] = Counter()  # by condition or kind
        self._label, self._done, self._event = label, done, event

    def commit(self, ended: Ended[Any]) -> None:
        start = time.monotonic()
        self._done(ended)
        shards = list(_shards(ended))
        by_status: Counter[tuple[str, str]] = Counter()
        for shard in shards:
            name = str(shard.metadata.get("name") or shard.metadata["kind"])
            for counted in shard.light.column("status").value_counts().to_pylist():
                by_status[name, str(counted["values"])] += counted["counts"]
        nested: dict[str, dict[str, int]] = {}
        for (name, status), count in by_status.items():
            nested.setdefault(name, {})[status] = count
            self.rows[name] += count
        self._event(
            "commit",
            stage=self._label,
            jobs=len(ended),
            shards=len(shards),
            bytes=sum(shard.bytes for shard in shards),
            rows=nested,
            seconds=round(time.monotonic() - start, 3),
        )


def _shards(ended: Ended[Any]) -> Iterator[Shard]:
    """What jobs made, where that is shards with rows of some status."""
    for _, result in ended:
        for one in result if isinstance(result, list) else [result]:
            if isinstance(one, Shard) and "status" in one.light.column_names:
                yield one
