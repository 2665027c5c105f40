"""Making, starting and stopping an embedded server; the caller holds the home directory's lock."""

import os
import re
import secrets
import socket
from pathlib import Path

from tasks.cluster_settings import free_port
from tasks.errors import Refused
from tasks.folders import make_folder
from tasks.postmaster import find_postmaster, stop_postmaster
from tasks.private_cluster import ClusterDidNotStart, PrivateCluster
from tasks.processes import TimeoutExpired, running
from tasks.programs import Installation, default_server, discover, server_programs
from tasks.server_log import complaints, size_of

SUPERUSER = "onevault"

_START_SECONDS = 120
_ATTEMPTS = 3
_PORT_TAKEN = "Address already in use"


def create(home: Path, name: str) -> Path:
    """Make a new cluster of the default programs' version and return its folder."""
    installation = default_server()
    directory = make_folder(home / f"pg{installation.major}-{name}", 0o711)
    password = _password(directory / "password")
    cluster = PrivateCluster(directory, installation, superuser=SUPERUSER)
    cluster.create(password=password, durable=True)
    return directory


def start(directory: Path) -> None:
    """Start the server of a folder, on the port it had before if that is free.

    Raises ClusterDidNotStart with PostgreSQL's own complaint.
    """
    stop_postmaster(directory / "data" / "postmaster.pid")  # one that is half up or half down
    cluster = PrivateCluster(directory, _programs(directory), superuser=SUPERUSER)
    port = _former_port(cluster.conf / "postgresql.conf")
    for _ in range(_ATTEMPTS):
        said = _start_once(cluster, port or free_port())
        if said is None:
            return
        port = 0
        if _PORT_TAKEN not in said:
            break
    message = f"The embedded PostgreSQL {cluster.installation.version} did not start (log: {cluster.log_path}): {said}"
    raise ClusterDidNotStart(message)


def stop(directory: Path) -> bool:
    """Stop the server of a folder; say whether it was running."""
    return stop_postmaster(directory / "data" / "postmaster.pid")


def _password(path: Path) -> str:
    # A first attempt that was killed may have left one; the cluster does not know it yet.
    password = secrets.token_urlsafe(24)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(password + "\n")
    return password


def _programs(directory: Path) -> Installation:
    major = int((directory / "data" / "PG_VERSION").read_text())
    fitting = [i for i in discover() if i.has_server and i.major == major]
    try:
        return fitting[0] if fitting else server_programs(major)
    except Refused as error:
        message = (
            f"{error}. Or delete {directory} with its data and start afresh (onevault down --wipe)"
        )
        raise Refused(message) from error


def _former_port(configuration: Path) -> int:
    if not configuration.exists():
        return 0
    found = re.search(r"^port = '(\d+)'$", configuration.read_text(), re.MULTILINE)
    port = int(found[1]) if found else 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


def _start_once(cluster: PrivateCluster, port: int) -> str | None:
    cluster.write_configuration(
        {
            "data_directory": str(cluster.data),
            "hba_file": str(cluster.conf / "pg_hba.conf"),
            "ident_file": str(cluster.conf / "pg_ident.conf"),
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "cluster_name": cluster.directory.name,
        }
    )
    log_size = size_of(cluster.log_path)
    # pg_ctl finds the data folder through the configuration, and the server outlives it and us.
    argv: list[str | Path] = [cluster.installation.program("pg_ctl"), "-D", cluster.conf]
    argv += ["-w", "-t", str(_START_SECONDS), "start"]
    with (
        cluster.open_log() as log,
        running(argv, account=cluster.account, stdout=log, stderr=log) as process,
    ):
        try:
            ended = process.wait(_START_SECONDS + 10)
        except TimeoutExpired:
            ended = -1
    if ended == 0 and find_postmaster(cluster.data / "postmaster.pid"):
        return None
    return complaints(cluster.log_path, after_bytes=log_size)
