"""The rules that docker-compose.yml and the Dockerfile keep. `make test-image` builds and runs them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
COMPOSE: Mapping[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: Mapping[str, Mapping[str, Any]] = COMPOSE["services"]
ONE_SHOT = {"migrate", "enrol"}
STANDING = sorted(set(SERVICES) - ONE_SHOT)
OURS = sorted(name for name, service in SERVICES.items() if str(service["image"]).startswith("pruneloop/"))
ROLES = ("server", "build", "agent")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OWNERS = packages_distributions()
PACKAGES = {"domain", "pruning", "search", "db", "workers", "api", "client", "bootstrap", "settings"}


# --- compose --------------------------------------------------------------------------------------------------------
def test_every_part_is_a_service() -> None:
    wanted = {"postgres", "broker", "migrate", "api", "search", "build", "build-cuda", "reaper", "enrol", "agent"}
    assert set(SERVICES) == wanted
    assert SERVICES["reaper"]["deploy"]["replicas"] >= 2
    assert SERVICES["build-cuda"]["profiles"] == ["cuda"]
    (gpu,) = SERVICES["build-cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["driver"] == "nvidia"


def test_only_the_api_is_published_and_to_this_host_unless_said_otherwise() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["${PRUNELOOP_LISTEN:-127.0.0.1:8420}:8420"]}
    assert not [name for name, service in SERVICES.items() if service.get("network_mode")]


def test_an_agent_shares_no_network_with_the_database() -> None:
    def hosts(network: str) -> set[str]:
        return {name for name, service in SERVICES.items() if network in service["networks"]}

    assert "postgres" in hosts("data") and not hosts("data") & {"agent", "enrol", "broker"}
    assert not hosts("door") & {"postgres", "broker"}
    assert all(COMPOSE["networks"][name]["internal"] for name in ("data", "wakes"))


@pytest.mark.parametrize("name", STANDING)
def test_what_stands_is_checked_limited_and_started_again(name: str) -> None:
    service = SERVICES[name]
    check = service["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"} and check["interval"] and check["retries"]
    assert service["restart"] == "unless-stopped"
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"] and limits["pids"]


@pytest.mark.parametrize("name", sorted(ONE_SHOT))
def test_what_runs_once_is_not_started_again(name: str) -> None:
    assert SERVICES[name]["restart"] == "no"
    waiting = [
        other
        for other, service in SERVICES.items()
        if service.get("depends_on", {}).get(name, {}).get("condition") == "service_completed_successfully"
    ]
    assert waiting


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_change_nothing_but_their_volumes(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service and "user" not in service  # the image says who


def test_there_is_no_default_secret() -> None:
    assert set(COMPOSE["secrets"]) == {"postgres_password", "broker_password", "admin_token"}
    for secret in COMPOSE["secrets"].values():
        assert str(secret["file"]).startswith("./secrets/")
    assert "/secrets/" in (ROOT / ".gitignore").read_text() and "secrets" in (ROOT / ".dockerignore").read_text()
    for name, service in SERVICES.items():
        for variable, value in (service.get("environment") or {}).items():
            is_secret = re.search(r"PASSWORD|TOKEN|SECRET|KEY", variable)
            assert not is_secret or (variable.endswith("_FILE") and str(value).startswith(("/run/secrets/", "/join/"))), (
                name, variable,
            )  # fmt: skip
            assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), (name, variable)


def test_a_service_holds_the_secrets_it_reads_and_no_other() -> None:
    for name, service in SERVICES.items():
        text = yaml.safe_dump(dict(service)) + (
            (ROOT / "deploy/broker/start.sh").read_text() if name == "broker" else ""
        )
        read = set(re.findall(r"/run/secrets/(\w+)", text))
        assert read == set(service.get("secrets", [])), name
    assert not SERVICES["agent"].get("secrets")


def test_draining_has_the_time_it_needs() -> None:
    for name in ("search", "build", "build-cuda", "agent", "api"):
        assert int(str(SERVICES[name]["stop_grace_period"]).removesuffix("s")) >= 30, name


def test_files_that_services_mount_are_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, named, _ = volume.partition(":")
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            elif named:
                assert source in COMPOSE["volumes"], source


def test_every_variable_is_a_setting_somebody_reads() -> None:
    from settings import ApiSettings, BuildSettings
    from workers.agent.settings import AgentSettings

    server = {f"PRUNELOOP_{field}".upper() for role in (ApiSettings, BuildSettings) for field in role.model_fields}
    agent = {f"PRUNELOOP_AGENT_{field}".upper() for field in AgentSettings.model_fields}
    client = {"PRUNELOOP_URL", "PRUNELOOP_TOKEN"}
    known = server | agent | client
    for name in OURS:
        for variable in SERVICES[name]["environment"]:
            if variable.startswith("PRUNELOOP_"):
                assert variable in known or variable.removesuffix("_FILE") in known, (name, variable)


def test_the_broker_keeps_its_file_evicts_nothing_and_has_one_narrow_user() -> None:
    script = (ROOT / "deploy/broker/start.sh").read_text()
    assert "--appendonly yes" in script and "--maxmemory-policy noeviction" in script
    assert "user default off" in script
    (rules,) = re.findall(r"^user pruneloop (.+)$", script, re.MULTILINE)
    words = rules.split()
    assert "~prune:*" in words and "-@dangerous" in words and "-@admin" in words
    assert not {"nopass", "allkeys", "~*", "allchannels", "&*"} & set(words)


# --- Dockerfile -----------------------------------------------------------------------------------------------------
def stages() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines():
        if match := re.match(r"FROM \S+ AS (\w[\w-]*)$", line):
            name = match[1]
            found[name] = [line]
        elif name and line and not line.startswith("#"):
            found[name].append(line)
    return found


def copied(role: str) -> Iterator[tuple[str, str]]:
    for line in stages()[role]:
        match = re.match(r"COPY (?!--from)(.+)", line)
        if match:
            *sources, target = match[1].split()
            for source in sources:
                yield source, target


@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_as_a_user_without_rights(role: str) -> None:
    users = [line.split()[1] for line in stages()[role] if line.startswith("USER ")]
    assert users == ["10001"]
    after = stages()[role][stages()[role].index("USER 10001") :]
    assert not [line for line in after if line.startswith(("RUN", "COPY"))]


@pytest.mark.parametrize("role", ROLES)
def test_an_image_is_made_in_stages_and_holds_no_build_context(role: str) -> None:
    assert any(line.startswith(f"COPY --from={role}-deps /venv") for line in stages()[role])
    assert not [source for source, _ in copied(role) if source in {".", "./"}]
    assert "-c constraints.txt" in " ".join(stages()[f"{role}-deps"])


@pytest.mark.parametrize("role", [*ROLES, "pinned"])
def test_what_is_copied_exists_and_is_not_ignored(role: str) -> None:
    ignored = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().split()}
    for source, _ in copied(role):
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] not in ignored, source


ENTRIES = {
    "server": ("client/__main__.py", "api/main.py", "workers/main.py", "workers/search.py", "workers/reaper.py"),
    "build": ("workers/main.py", "workers/build.py", "pruning/builder.py"),
    "agent": ("workers/agent/__main__.py", "workers/agent/tasks.py", "workers/agent/measure_child.py"),
}


@pytest.mark.parametrize("role", ROLES)
def test_an_image_holds_what_its_role_imports(role: str) -> None:
    """Follow every import that is not put off to the moment of use, from the role's entry points: our modules and packages."""
    places = [source for source, _ in copied(role)]
    installed = closure([role, "otel"] if role != "agent" else [role])
    todo, seen = [ROOT / entry for entry in ENTRIES[role]], set[Path]()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        name = str(path.relative_to(ROOT))
        assert any(name == place or name.startswith(f"{place}/") for place in places), f"{role} lacks {name}"
        for module in imported(path):
            top = module.split(".")[0]
            if top in PACKAGES:
                file = ROOT / Path(*module.split("."))
                todo += [one for one in (file.with_suffix(".py"), file / "__init__.py") if one.exists()]
            elif top not in sys.stdlib_module_names:
                owners = {plain(owner) for owner in OWNERS.get(top, ())}
                assert owners & installed, f"{name} imports {top}, which the image of {role} does not install"
    assert len(seen) > 20


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a module imports as it is imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module.split(".")[0] in PACKAGES:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def closure(extras: list[str]) -> set[str]:
    """Return every distribution that the project's base and these extras bring, by its plain name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    found: set[str] = set()
    while todo:
        requirement = Requirement(todo.pop())
        name = plain(requirement.name)
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        wanted = [Requirement(need) for need in needs]
        for need in wanted:
            extras_of_it = ("", *requirement.extras)
            if need.marker is not None and not any(need.marker.evaluate({"extra": one}) for one in extras_of_it):
                continue
            if plain(need.name) not in found:
                todo.append(str(need).split(";")[0])
        found.add(name)
    return found


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_agents_image_has_no_torch_no_sql_and_no_credentials() -> None:
    places = {source for source, _ in copied("agent")}
    assert places == {"domain", "workers/__init__.py", "workers/agent"}
    assert not [name for name in SERVICES["agent"]["environment"] if "DATABASE" in name or "BROKER" in name]
