"""`python -m batchrouter.server`: the router without the rest of the command line."""

import argparse
import sys

from batchrouter.errors import ConfigError, WorkerDiedError
from batchrouter.server.config import load_config
from batchrouter.server.serve import DEFAULT_HOST, DEFAULT_PORT, serve


def main(arguments: list[str] | None = None) -> int:
    """Serve, or check a configuration; returns the exit code.

    2: something is set up wrong; 12: others have its work, start it again.
    """
    parser = argparse.ArgumentParser(
        prog="python -m batchrouter.server", description="Serve the embedded batch router."
    )
    parser.add_argument("--data", metavar="DIR", help="the data folder")
    parser.add_argument("--config", metavar="FILE", help="router.toml; without it, simulated lanes")
    parser.add_argument("--host", default=DEFAULT_HOST, help="the address to listen on")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes any free port")
    parser.add_argument(
        "--allow-public-host",
        action="store_true",
        help="listen on an address that other machines can reach",
    )
    parser.add_argument("--database", metavar="URL", help="postgresql://…; without it, SQLite")
    parser.add_argument("--objects", metavar="URL", help="s3://…; without it, the data folder")
    parser.add_argument("--role", choices=["both", "api", "worker"], default="both")
    parser.add_argument("--check", action="store_true", help="check the configuration only")
    given = parser.parse_args(arguments)
    try:
        if given.check:
            config = load_config(given.config)
            sys.stdout.write(
                f"batchrouter: the configuration is good: {len(config.lanes)} lanes,"
                f" {len(config.workflows)} workflows\n"
            )
            return 0
        if given.data is None:
            parser.error("--data DIR is needed")
        serve(
            given.data,
            given.config,
            given.host,
            given.port,
            allow_public_host=given.allow_public_host,
            database=given.database,
            objects=given.objects,
            role=given.role,
        )
    except ConfigError as error:
        sys.stderr.write(f"batchrouter: {error}\n")
        return 2
    except WorkerDiedError as error:
        sys.stderr.write(f"batchrouter: {error}\n")
        return 12
    return 0


if __name__ == "__main__":
    sys.exit(main())
