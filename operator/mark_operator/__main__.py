"""Read the settings, serve probes, wait for the Lease, watch. Nothing of the behaviour is here."""

import argparse
import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

from mark_operator.cluster import Cluster
from mark_operator.health import Health
from mark_operator.lease import Lease
from mark_operator.logs import configure
from mark_operator.reconcile import Reconciler
from mark_operator.settings import Settings, load_settings
from mark_operator.watch import watch

log = logging.getLogger(__name__)


def main() -> None:
    """The command `mark-operator`."""
    parser = argparse.ArgumentParser(prog="mark-operator", description="Watch runs, plan them, start what was confirmed.")
    parser.add_argument("--settings", type=Path, help="settings file, YAML or JSON")
    options = parser.parse_args()
    settings = load_settings(os.environ, options.settings)
    configure(settings.log_level)
    sys.exit(asyncio.run(serve(settings)))


async def serve(settings: Settings) -> int:
    """Run until told to stop; 0 after a signal, 1 when something broke and a fresh process should try again."""
    cluster = await Cluster.connect()
    health = Health()
    probes = await health.serve(settings.health_port)
    ticking = asyncio.create_task(health.tick())
    identity = f"{os.environ.get('POD_NAME', socket.gethostname())}_{secrets.token_hex(4)}"
    lease = Lease(cluster, settings, identity)
    health.watch_lease(lambda: lease.held)
    health.ready()
    reconciler = Reconciler(cluster, settings, lambda: datetime.now(UTC), lambda: None)
    leading = asyncio.create_task(lease.lead(lambda: watch(cluster, settings, reconciler, health)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leading.cancel)
    try:
        await leading
    except asyncio.CancelledError:
        log.info("told to stop")
    except Exception:
        log.exception("the operator ends, to be started afresh")
        return 1
    finally:
        ticking.cancel()
        await probes.cleanup()
        await cluster.close()
    return 0


if __name__ == "__main__":
    main()
