"""A stand-in for the Kubernetes API on loopback: keeps what kubectl and Helm send, and refuses what the schemas refuse.

Its one user may do everything, nothing is defaulted, and what is applied replaces all but the labels and annotations of others.
"""

import base64
import copy
import datetime
import http.server
import json
import re
import threading
import urllib.parse
import uuid

import check
import protobuf

VERSION = check.KUBERNETES[-1]
KINDS = {
    "v1": "Namespace Secret ConfigMap Service ServiceAccount PersistentVolumeClaim Pod",
    "apps/v1": "Deployment ReplicaSet StatefulSet",
    "batch/v1": "Job",
    "policy/v1": "PodDisruptionBudget",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "networking.k8s.io/v1": "NetworkPolicy",
    "keda.sh/v1alpha1": "ScaledObject TriggerAuthentication",
    "monitoring.coreos.com/v1": "PodMonitor PrometheusRule",
    "rabbitmq.com/v1beta1": "RabbitmqCluster",
}
# What the server alone writes of an object's metadata.
OWN = {"namespace", "uid", "resourceVersion", "creationTimestamp"}
RESOURCES = {(api, re.sub("y$", "ie", kind.lower()) + "s"): kind for api, kinds in KINDS.items() for kind in kinds.split()}
PATH = re.compile(r"/apis?/(v1|[^/]+/v[^/]+)(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+))?(/log)?")


class Refused(Exception):
    def __init__(self, code, reason, message):
        super().__init__(message)
        self.code, self.reason = code, reason


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def merge(old, patch):
    """A merge patch, or a strategic one: that says by `$setElementOrder` which lists are merged, and by what key."""
    if not isinstance(patch, dict):
        return patch
    new = {key: value for key, value in (old if isinstance(old, dict) else {}).items() if key in patch.get("$retainKeys", [key])}
    for key, value in patch.items():
        order = patch.get(f"$setElementOrder/{key}")
        if value is None:
            new.pop(key, None)
        elif order and isinstance(order[0], dict):
            (by,) = order[0]
            items = {item[by]: item for item in new.get(key, [])}
            for item in value:
                items[item[by]] = merge(items.get(item[by]), item)
            new[key] = [items[item[by]] for item in order if item[by] in items]
        elif not key.startswith("$"):
            new[key] = merge(new.get(key), value)
    return new


def apply(old, new):
    """A server-side apply by the one who made all but some labels and annotations."""
    metadata = old["metadata"] | new["metadata"]
    for field in ("labels", "annotations"):
        metadata[field] = old["metadata"].get(field, {}) | new["metadata"].get(field, {})
    return new | {"metadata": metadata} | {key: value for key, value in old.items() if key == "status"}


class Cluster:
    def __init__(self):
        self.objects, self.logs = {}, {}
        # A resourceVersion is how many of these there were.
        self.events, self.changed = [], threading.Condition()
        self.known = set()
        self.created = lambda key, item: None

    def admit(self, item):
        """By the schemas of this version, and KEDA's and Prometheus's types."""
        sent = item | {"metadata": {key: value for key, value in item["metadata"].items() if key not in OWN}}
        sent.pop("status", None)
        if (text := json.dumps(sent, sort_keys=True)) in self.known:
            return
        try:
            check.check_schemas({"sent": [sent]}, [VERSION])
            if item["apiVersion"] in check.TYPES:
                check.check_types({"sent": [sent]})
        except SystemExit as error:
            raise Refused(422, "Invalid", str(error)) from None
        self.known.add(text)

    def tell(self, kind, item):
        item["metadata"]["resourceVersion"] = str(len(self.events) + 1)
        self.events.append((kind, item))
        self.changed.notify_all()

    def get(self, key):
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{key[1]} "{key[3]}" not found')
        return self.objects[key]

    def create(self, key, item):
        with self.changed:
            if key in self.objects:
                raise Refused(409, "AlreadyExists", f'{key[1]} "{key[3]}" already exists')
            if key[1] != "namespaces":
                self.get(("v1", "namespaces", None, key[2]))
                item["metadata"]["namespace"] = key[2]
            item["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
            self.store(key, item, "ADDED")
            self.created(key, item)
            return item

    def update(self, key, change):
        """Replaces an object by what `change` makes of it."""
        with self.changed:
            old = self.get(key)
            new = change(copy.deepcopy(old))
            if new["metadata"].get("resourceVersion", old["metadata"]["resourceVersion"]) != old["metadata"]["resourceVersion"]:
                raise Refused(409, "Conflict", f'{key[1]} "{key[3]}" has been changed meanwhile')
            new["metadata"] |= {name: value for name, value in old["metadata"].items() if name in OWN}
            if new != old:
                self.store(key, new, "MODIFIED")
            return self.objects[key]

    def store(self, key, item, event):
        if item["kind"] == "Secret":
            texts = item.pop("stringData", {})
            item["data"] = item.get("data", {}) | {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
        self.admit(item)
        self.objects[key] = item
        self.tell(event, item)

    def delete(self, key):
        with self.changed:
            item = copy.deepcopy(self.get(key))
            del self.objects[key]
            self.tell("DELETED", item)
            return item

    def patch(self, key, kind, patch):
        if kind != "application/apply-patch+yaml":
            return self.update(key, lambda old: merge(old, patch))
        return self.update(key, lambda old: apply(old, patch)) if key in self.objects else self.create(key, patch)


def selected(query, api, plural, namespace):
    """Whether an object is one of those asked for."""
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    wanted = [term.split("=") for term in query.get("labelSelector", "").split(",") if term]

    def fits(item):
        metadata = item["metadata"]
        return (item["apiVersion"], item["kind"]) == (api, RESOURCES[api, plural]) and namespace in (None, metadata.get("namespace")) \
            and name in ("", metadata["name"]) and all(metadata.get("labels", {}).get(key) == value for key, value in wanted)

    return fits


def discovery(path):
    """What there is, and that its fields are checked here."""
    groups = [api.split("/") for api in KINDS if "/" in api]
    resources = {api: [{"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": kind != "Namespace",
                        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]}
                       for (group, plural), kind in RESOURCES.items() if group == api] for api in KINDS}
    at = {api: f"apis/{api}" if "/" in api else f"api/{api}" for api in KINDS}
    answers = {
        "/version": {"major": "1", "minor": VERSION.split(".")[1], "gitVersion": f"v{VERSION}.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [
            {"name": group, "versions": [(given := {"groupVersion": f"{group}/{version}", "version": version})], "preferredVersion": given}
            for group, version in groups]},
        "/openapi/v3": {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in at.values()}},
    }
    for api, path_of in at.items():
        group, version = api.split("/") if "/" in api else ("", api)
        answers[f"/{path_of}"] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources[api]}
        answers[f"/openapi/v3/{path_of}"] = {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": {
            f"/{path_of}/{resource['name']}": {"patch": {
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": resource["kind"]},
                "parameters": [{"name": "fieldValidation", "in": "query"}], "responses": {}}}
            for resource in resources[api]}}
    return answers.get(path)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster = None

    def log_message(self, *_):
        pass

    def answer(self, code, body, kind="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do(self):
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if (known := discovery(address.path.rstrip("/"))) is not None:
                return self.answer(200, known)
            found = PATH.fullmatch(address.path)
            if not found or (found[1], found[3]) not in RESOURCES:
                raise Refused(404, "NotFound", f"there is no {address.path}")
            api, namespace, plural, name, log = found.groups()
            key = (api, plural, namespace, name)
            if self.command == "GET":
                return self.read(key, query, log)
            if self.command == "DELETE":
                return self.answer(200, self.cluster.delete(key))
            body = protobuf.read(text) if text.startswith(b"k8s\0") else json.loads(text)
            if self.command == "POST":
                return self.answer(201, self.cluster.create((*key[:3], body["metadata"]["name"]), body))
            if self.command == "PUT":
                return self.answer(200, self.cluster.update(key, lambda old: body))
            return self.answer(200, self.cluster.patch(key, self.headers["Content-Type"], body))
        except Refused as error:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(error), "reason": error.reason}
            return self.answer(error.code, status | {"code": error.code})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

    def read(self, key, query, log):
        api, plural, namespace, name = key
        if log:
            return self.answer(200, self.cluster.logs.get(self.cluster.get(key)["metadata"]["uid"], "").encode(), "text/plain")
        if name:
            return self.answer(200, self.cluster.get(key))
        fits = selected(query, api, plural, namespace)
        with self.cluster.changed:
            items = [item for item in self.cluster.objects.values() if fits(item)]
            seen = len(self.cluster.events)
        if query.get("watch") in ("1", "true"):
            return self.watch(fits, items, seen, query, {"apiVersion": api, "kind": RESOURCES[api, plural]})
        metadata = {"resourceVersion": str(seen)}
        return self.answer(200, {"apiVersion": api, "kind": f"{RESOURCES[api, plural]}List", "metadata": metadata, "items": items})

    def watch(self, fits, items, seen, query, kind):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events = []
        if (since := query.get("resourceVersion", "0")) not in ("", "0"):
            seen = int(since)
        else:
            events = [("ADDED", item) for item in items]
        if query.get("sendInitialEvents") == "true":
            marks = {"resourceVersion": str(seen), "annotations": {"k8s.io/initial-events-end": "true"}}
            events.append(("BOOKMARK", kind | {"metadata": marks}))
        while True:
            for event, item in events:
                line = json.dumps({"type": event, "object": item}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
            with self.cluster.changed:
                self.cluster.changed.wait_for(lambda: len(self.cluster.events) > seen)
                events = [(event, item) for event, item in self.cluster.events[seen:] if fits(item)]
                seen = len(self.cluster.events)


def serve(cluster):
    """Starts the API of a cluster, and returns it with its address."""
    handler = type("Bound", (Handler,), {"cluster": cluster})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"
