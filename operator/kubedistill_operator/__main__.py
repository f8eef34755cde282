"""`python -m kubedistill_operator`: run the operator. All its settings are environment variables."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from kubedistill_operator.handlers.installation import (
    HELP,
    Installation,
    InvalidEnvironmentError,
    read_installation,
)
from kubedistill_operator.handlers.operator import Operator

EXIT_FAILURE = 1
EXIT_CONFIGURATION = 64

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m kubedistill_operator",
        description="The KubeDistill operator. It is configured by environment variables:",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    try:
        installation = read_installation()
    except InvalidEnvironmentError as error:
        print(f"kubedistill: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    configure_logging(installation.log_level)
    return asyncio.run(_run(installation))


async def _run(installation: Installation) -> int:
    try:
        return await Operator(installation).run()
    except Exception:
        log.exception("the operator ends, and begins anew where somebody starts it again")
        logging.shutdown()
        # What was ours has ended. When one of kopf's watchers fails, the others take a cancellation for a pause and go
        # on, and the end of the event loop would wait for them for ever.
        os._exit(EXIT_FAILURE)


def configure_logging(level: str) -> None:
    """One line a record, on standard error. Libraries speak only when something is wrong."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    for noisy in ("kopf", "kubernetes", "aiohttp", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


if __name__ == "__main__":
    sys.exit(main())
