"""The same tests in other environments: newest and lowest versions, every Python we promise.

`make test` runs the tested versions; these sessions ask what else they hold for:

    nox -s core                          the tested versions, on 3.11 to 3.13 where present
    nox -s newest                        what the package index gives today
    nox -s lowest                        the oldest versions that pyproject.toml declares
    nox -s "lowest(member='dagster')"    the same of one package for an orchestrator
    nox -s lowest_airflow                the provider on the oldest Airflow that it declares

Each orchestrator joins with its own member folder: a new entry in `MEMBERS`.
"""

import nox

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["core"]
nox.options.error_on_missing_interpreters = False

MEMBERS = {
    "airflow": "airflow_provider",
    "core": ".",
    "dagster": "dagster_batchrouter",
    "prefect": "prefect_batchrouter",
}
"""The folder of each distribution, by the name of its file in tests/constraints/."""

EXTRAS = "[all,delta,iceberg,otel,postgres,s3,sqlite]"
"""Of the core, for its own tests; a member's `test` group names what it needs of them."""

OLDEST, *NEWER = ["3.11", "3.12", "3.13"]


def _test(session: nox.Session, member: str, *how_to_resolve: str) -> None:
    folder = MEMBERS[member]
    if member == "core":
        packages = ["--editable", f".{EXTRAS}", "--editable", "kernel", "--group", "test"]
        tests = ["core/src", "tests/core", "tests/server"]
    else:
        packages = [
            "--editable",
            ".",
            "--editable",
            folder,
            "--group",
            f"{folder}/pyproject.toml:test",
        ]
        config = ["--config-file", f"{folder}/pyproject.toml", "--rootdir", "."]
        tests = [*config, f"{folder}/src", f"tests/on_{member}"]
    session.install(*packages, *how_to_resolve)
    session.run(
        "pytest", "-n", "2", "--dist", "loadgroup", "-m", "not drill", *tests, *session.posargs
    )


@nox.session(python=[OLDEST, *NEWER])
def core(session: nox.Session) -> None:
    """Test with the versions of tests/constraints/core.txt."""
    _test(session, "core", "--constraint", "tests/constraints/core.txt")


@nox.session(python=OLDEST)
@nox.parametrize("member", sorted(MEMBERS))
def newest(session: nox.Session, member: str) -> None:
    """Test with what the package index gives today."""
    _test(session, member, "--upgrade")


@nox.session(python=OLDEST)
@nox.parametrize("member", sorted(MEMBERS.keys() - {"airflow"}))
def lowest(session: nox.Session, member: str) -> None:
    """Test with the lowest versions that pyproject.toml declares."""
    _test(session, member, "--resolution", "lowest-direct")


@nox.session(python=OLDEST)
def lowest_airflow(session: nox.Session) -> None:
    """Test the provider on Airflow 3.2: its unit tests and one end-to-end run."""
    # It sets no upper bound on FastAPI, and its api-server dies at start with a newer one.
    _test(session, "airflow", "apache-airflow==3.2.2", "fastapi<0.137")
