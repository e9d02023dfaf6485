"""Runs the guide's commands for a cluster, with Helm 3 and 4: python helm/tests/cluster.py FOLDER_OF_CHART_TOOLS [current]

Without `current`, the cluster is a stand-in of the API, whose Jobs and Pods are processes of the program, and RabbitMQ that of
RABBITMQ_URL. With it, it is the one of the current context of kubectl: it must have KEDA, and its nodes the image
tasker-worker-rust:latest; everything happens in the namespace `tasker-guide`, which is made, and deleted afterwards.
"""

import base64
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

import check
from apiserver import Cluster, serve
from kubelet import PROGRAM, Kubelet

KUBECTL = check.TOOLS / "bin/kubectl"
NAMESPACE = "tasker-guide"
DEADLINE = 180
STEPS = "tasker.steps."
# A user for each program, with the secrets of their addresses, and KEDA.
USERS = {"tasker-topology": "amqp", "tasker-orchestrator": "amqp", "tasker-scaler": "http"}
APART = ("--set topology.existingSecret=tasker-topology,orchestrator.existingSecret=tasker-orchestrator"
         ",rabbitmq.management.existingSecret=tasker-scaler,rabbitmq.management.urlKey=url,workers.defaults.autoscaling.type=keda")


def must(holds, said):
    if not holds:
        sys.exit(f"cluster: {said}")


def until(what, holds):
    """Asks until there is an answer."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, subprocess.CalledProcessError):
            if answer := holds():
                return answer
        time.sleep(0.2)
    sys.exit(f"cluster: waited {DEADLINE} s for {what}")


def guide():
    """The commands, which the chart's README repeats in part."""
    shown = [re.findall(r"^\$ ((?:kubectl|helm) .*)$", (check.ROOT / file).read_text(), re.M)
             for file in ("docs/operations.md", "helm/tasker-worker-rust/README.md")]
    must(shown[0][:len(shown[1])] == shown[1], f"the chart's README and docs/operations.md differ: {shown}")
    return shown[0]


class Terminal:
    """An operator's, with one of the two Helms, and a kubectl whose context has our namespace."""

    def __init__(self, folder, helm):
        (folder / "bin").mkdir()
        (folder / "bin/helm").symlink_to(check.TOOLS / "bin" / helm)
        (folder / "bin/kubectl").symlink_to(KUBECTL)
        self.environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "KUBECONFIG": f"{folder}/config",
                                          "KUBECACHEDIR": f"{folder}/cache", "HELM_CACHE_HOME": f"{folder}/cache"}

    def run(self, command, refused=False):
        done = subprocess.run(["bash", "-c", command], cwd=check.ROOT, env=self.environment, capture_output=True, text=True)
        if (done.returncode != 0) != refused:
            show = [KUBECTL, "logs", "--selector", "app.kubernetes.io/component=topology"]
            logs = subprocess.run(show, env=self.environment, stdout=subprocess.PIPE, text=True).stdout
            sys.exit(f"cluster: $ {command}\nended with {done.returncode}\n{done.stdout}{done.stderr}{logs}")
        return done.stdout

    def get(self, what):
        return json.loads(self.run(f"kubectl get {what} -o json"))


class RabbitMQ:
    """By its management API, as its administrator."""

    def __init__(self, url):
        address = urllib.parse.urlsplit(url)
        self.url = f"http://{address.hostname}:{address.port}/api"
        login = base64.b64encode(f"{address.username}:{address.password}".encode()).decode()
        self.headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}

    def call(self, method, path, body=None):
        request = urllib.request.Request(self.url + path, json.dumps(body or {}).encode(), self.headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else True

    def empty(self):
        with contextlib.suppress(urllib.error.HTTPError):
            self.call("DELETE", "/vhosts/%2F")
        self.call("PUT", "/vhosts/%2F")
        self.allow("guest")

    def allow(self, user):
        self.call("PUT", f"/permissions/%2F/{user}", {"configure": ".*", "write": ".*", "read": ".*"})

    def names(self, kind):
        return {item["name"] for item in self.call("GET", f"/{kind}/%2F")}


@contextlib.contextmanager
def stand_in(terminal):
    cluster = Cluster()
    server, url = serve(cluster)
    amqp, http = (urllib.parse.urlsplit(os.environ[name]) for name in ("RABBITMQ_URL", "RABBITMQ_MANAGEMENT_URL"))
    Kubelet(cluster, {"rabbitmq:5672": f"{amqp.hostname}:{amqp.port}"})
    context = {"name": "it", "context": {"cluster": "it", "user": "it"}}
    configuration = {"clusters": [{"name": "it", "cluster": {"server": url}}], "users": [{"name": "it", "user": {}}],
                     "contexts": [context], "current-context": "it"}
    pathlib.Path(terminal.environment["KUBECONFIG"]).write_text(yaml.dump(configuration))
    use_namespace(terminal)
    yield RabbitMQ(http.geturl())
    server.shutdown()


@contextlib.contextmanager
def current(terminal):
    view = [KUBECTL, "config", "view", "--minify", "--flatten", "--raw"]
    configuration = subprocess.run(view, check=True, stdout=subprocess.PIPE).stdout
    pathlib.Path(terminal.environment["KUBECONFIG"]).write_bytes(configuration)
    terminal.run("kubectl get scaledobjects")
    use_namespace(terminal)
    try:
        terminal.run("kubectl run rabbitmq --image=rabbitmq:4-management --port=5672 --expose")
        terminal.run(f"kubectl wait pod/rabbitmq --for=condition=Ready --timeout={DEADLINE}s")
        forward = [KUBECTL, "port-forward", "pod/rabbitmq", ":15672"]
        with subprocess.Popen(forward, env=terminal.environment, stdout=subprocess.PIPE, text=True) as forwarding:
            try:
                port = re.search(r"127\.0\.0\.1:(\d+)", forwarding.stdout.readline())[1]
                yield RabbitMQ(f"http://guest:guest@127.0.0.1:{port}")
            finally:
                forwarding.terminate()
    finally:
        terminal.run(f"kubectl delete namespace {NAMESPACE}")


def use_namespace(terminal):
    terminal.run(f"kubectl create namespace {NAMESPACE}")
    terminal.run(f"kubectl config set-context --current --namespace={NAMESPACE}")


def names(objects):
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in objects}


def within(wanted, got):
    """Whether all that is wanted is there; a cluster adds its defaults, and leaves out what is empty."""
    if got is None:
        return not wanted
    if isinstance(wanted, dict):
        return isinstance(got, dict) and all(within(value, got.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(got, list) and len(wanted) == len(got) and all(map(within, wanted, got))
    return wanted == got


def check_stored(terminal, install):
    """What is stored is what is rendered with the same options, and the job ended before any of it was made or changed."""
    rendered = names(item for item in yaml.safe_load_all(terminal.run(install.replace("install", "template", 1))) if item)
    rendered = {name: item for name, item in rendered.items() if "test" not in item["metadata"].get("annotations", {}).get("helm.sh/hook", "")}
    kinds = ",".join(sorted({item["kind"] for item in rendered.values()}))
    stored = names(terminal.get(f"{kinds} --selector app.kubernetes.io/instance=tasker")["items"])
    must(set(stored) == set(rendered), f"there should be {sorted(rendered)}, there is {sorted(stored)}")
    for name, item in rendered.items():
        must(within(item, stored[name]), f"{name} should be {item}, is {stored[name]}")
    (job,) = (item for item in stored.values() if item["kind"] == "Job")
    must(job.get("status", {}).get("succeeded") == 1, f"the topology job did not end before that: {job}")
    for deployment in (item for item in stored.values() if item["kind"] == "Deployment"):
        must(int(job["metadata"]["resourceVersion"]) < int(deployment["metadata"]["resourceVersion"]), "the topology job was not first")
    return job["metadata"]["uid"], kinds


def check_declared(rabbitmq):
    for kind in ("queues", "exchanges"):
        wanted = {item["name"] for item in definitions()[kind]}
        must(wanted and wanted <= rabbitmq.names(kind), f"of {sorted(wanted)}, RabbitMQ has {sorted(rabbitmq.names(kind))}")


def definitions(*options):
    export = [PROGRAM, "topology", "export", *options]
    return json.loads(subprocess.run(export, check=True, stdout=subprocess.PIPE, cwd=check.ROOT).stdout)


def least_rights(terminal, rabbitmq, folder, password):
    """From here on, `tasker` is a worker."""
    passwords = {"tasker": password} | {user: f"{user}-password" for user in USERS}
    (folder / "passwords").mkdir()
    for user, word in passwords.items():
        (folder / "passwords" / user).write_text(word)
    served = ",".join(name.removeprefix(STEPS) for name in rabbitmq.names("queues") if name.startswith(STEPS))
    exported = definitions("--worker", f"tasker={served}", "--passwords", folder / "passwords")
    rabbitmq.call("POST", "/definitions", {key: exported[key] for key in ("users", "permissions", "topic_permissions")})
    for user, scheme in USERS.items():
        url = f"{scheme}://{user}:{passwords[user]}@rabbitmq:{'5672/%2f' if scheme == 'amqp' else '15672/'}"
        terminal.run(f"kubectl create secret generic {user} --from-literal=url='{url}'")


def walk(terminal, rabbitmq, folder):
    must(len(guide()) == 5, f"expected five commands in the guide, got {guide()}")
    create, install, test, hold, release = guide()
    said = dict(re.findall(r"--from-literal=(\w+)='([^']*)'", create))
    rabbitmq.empty()
    rabbitmq.call("PUT", "/users/tasker", {"password": said["password"], "tags": ""})
    rabbitmq.allow("tasker")

    terminal.run(create)
    stored = {key: base64.b64decode(value).decode() for key, value in terminal.get("secret rabbitmq")["data"].items()}
    must(stored == said, f"the secret holds {stored}, not {said}")

    terminal.run(install)
    first, _ = check_stored(terminal, install)
    check_declared(rabbitmq)
    terminal.run(test)
    for deployment in re.findall("kubectl exec (deployment/\\S+)", (check.ROOT / "docs/operations.md").read_text()):
        terminal.get(deployment)

    least_rights(terminal, rabbitmq, folder, said["password"])
    lost = next(name for name in sorted(rabbitmq.names("queues")) if name.startswith(STEPS))
    rabbitmq.call("DELETE", f"/queues/%2F/{lost}")
    terminal.run(test, refused=True)
    log = terminal.run("kubectl logs tasker-tasker-worker-rust-test")
    must(lost in log, f"the test should miss {lost}: {log}")

    terminal.run(f"helm upgrade tasker helm/tasker-worker-rust --reuse-values {APART}")
    second, kinds = check_stored(terminal, f"{install} {APART}")
    must(first != second, "the upgrade ran no topology job")
    check_declared(rabbitmq)
    terminal.run(test)

    (scaled,) = terminal.get("scaledobject")["items"]
    name, note = scaled["metadata"]["name"], re.search(r"(autoscaling\S+)=true", hold)[1]
    for command, wanted in ((hold, "true"), (release, None)):
        terminal.run(command.replace("NAME", name))
        annotations = terminal.get(f"scaledobject {name}")["metadata"].get("annotations", {})
        must(annotations.get(note) == wanted, f"$ {command}\nleaves {annotations}")

    terminal.run("helm uninstall tasker")
    until("the rest to go", lambda: {"Job", "PersistentVolumeClaim"} == {
        item["kind"] for item in terminal.get(f"{kinds} --selector app.kubernetes.io/instance=tasker")["items"]})
    check_declared(rabbitmq)
    terminal.run(f"{install} {APART}")
    check_stored(terminal, f"{install} {APART}")


def main():
    started = time.monotonic()
    start = {(): stand_in, ("current",): current}.get(tuple(sys.argv[2:]))
    must(start, f"expected nothing or current, got {sys.argv[2:]}")
    for helm in check.HELMS:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            terminal = Terminal(folder, helm)
            with start(terminal) as rabbitmq:
                until("RabbitMQ", lambda: rabbitmq.call("GET", "/overview"))
                walk(terminal, rabbitmq, folder)
    print(f"cluster: {len(guide())} commands of the guide, upgrade and uninstall, with Helm 3 and 4, in {time.monotonic() - started:.0f} s")


main()
