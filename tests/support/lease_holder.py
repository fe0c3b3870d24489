"""A program that strives for a Lease and writes as long as it may: ``lease_holder.py KUBECONFIG NAMESPACE IDENTITY``.

Each of its writes counts up in the annotation ``count`` of the Service that is named like it. It says on standard
output when it leads, and ends when it does not any more.
"""

import asyncio
import sys

from finetuning_operator.cluster.api import ClusterApi, TokenBucket, connect
from finetuning_operator.cluster.errors import NotLeader
from finetuning_operator.cluster.kinds import SERVICE
from finetuning_operator.cluster.lease import Leadership, LeaseTiming

TIMING = LeaseTiming(duration=3, margin=1, renew_every=0.5, retry_every=0.2)
LEASE = "operator"


async def main(kubeconfig: str, namespace: str, identity: str) -> None:
    """Lead, write until that is over, and say what stopped the writes."""
    client = await connect(kubeconfig)
    bucket = TokenBucket(rate=1000, burst=1000)
    leadership = Leadership(
        ClusterApi(client, bucket=bucket), namespace=namespace, name=LEASE, identity=identity, timing=TIMING
    )
    api = ClusterApi(client, bucket=bucket, may_write=leadership.held)
    writing: list[asyncio.Task[None]] = []

    def start() -> None:
        _say("leading")
        writing.append(asyncio.create_task(_write(api, namespace, identity)))

    try:
        await leadership.run(start)
        await writing[0]
    finally:
        await client.close()


async def _write(api: ClusterApi, namespace: str, identity: str) -> None:
    count = 0
    try:
        while True:
            count += 1
            change = {"metadata": {"annotations": {"count": str(count)}}}
            await api.merge(SERVICE, namespace, identity, change)
            await asyncio.sleep(0.01)
    except NotLeader:
        _say("stopped")


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
