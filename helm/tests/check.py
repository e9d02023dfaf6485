"""What `make chart` checks: python helm/tests/check.py FOLDER_OF_CHART_TOOLS. Ends at the first thing that is wrong."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/tasker-worker-rust"
TESTS = ROOT / "helm/tests"
PROJECT = ROOT / "src/cli/new"
TOOLS = pathlib.Path(sys.argv[1]).resolve()
HELMS = ("helm3", "helm4")
KUBERNETES = [f"1.{minor}" for minor in range(28, 38)]

# Where TypeScript finds the types of resources, by their apiVersion.
TYPES = {
    "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
    "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
}
# No published types: the cluster operator's own webhook checks this one.
UNTYPED = {"rabbitmq.com/v1beta1"}


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"chart: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def template(helm, values, *options):
    """Renders, and returns the exit code with the objects or with what Helm said."""
    done = subprocess.run(
        [TOOLS / "bin" / helm, "template", "release", CHART, "--namespace", "shop", "-f", "-", *options],
        input=values, capture_output=True, text=True,
    )
    objects = [item for item in yaml.safe_load_all(done.stdout) if item] if done.returncode == 0 else []
    return done.returncode, objects, done.stderr


def find(value, path):
    """What is at `a.b.0.c`; a part like `[name=x]` is the item of a list with that name."""
    for part in re.findall(r"\[[^\]]*\]|(?:\\.|[^.\[\\])+", path):
        if value is None:
            return None
        if part.startswith("["):
            key, wanted = part[1:-1].split("=", 1)
            value = next((item for item in value if item.get(key) == wanted), None)
        elif isinstance(value, list):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part.replace("\\.", "."))
    return value


def check_examples():
    rendered = {}
    for values in [*sorted((CHART / "ci").glob("*-values.yaml")), PROJECT / "values.yaml"]:
        for helm in HELMS:
            run(TOOLS / "bin" / helm, "lint", "--strict", CHART, "-f", values)
            code, objects, said = template(helm, values.read_text())
            if code != 0:
                sys.exit(f"chart: {values.name} with {helm}: {said}")
            # From the second Helm on, only what comes out has to be the same.
            if rendered.setdefault(values.name, objects) != objects:
                sys.exit(f"chart: {values.name} comes out differently with {helm}")
    return rendered


def check_schemas(rendered, versions=KUBERNETES):
    for name, objects in rendered.items():
        for item in objects:
            if item["apiVersion"] in TYPES or item["apiVersion"] in UNTYPED:
                continue
            for version in versions:
                try:
                    kubernetes_validate.validate(item, version, strict=True)
                except Exception as error:
                    sys.exit(f"chart: {name}, {item['kind']} {item['metadata']['name']}, Kubernetes {version}: {error}")


def check_types(rendered):
    """Every resource as a typed literal: TypeScript finds unknown fields too, which schemas let pass."""
    lines = []
    for objects in rendered.values():
        for item in objects:
            if item["apiVersion"] in UNTYPED:
                continue
            package = TYPES.get(item["apiVersion"], f"kubernetes-models/{item['apiVersion']}")
            number = len(lines)
            lines.append(
                f"import {{I{item['kind']} as T{number}}} from '{package}/{item['kind']}';\n"
                f"export const o{number}: T{number} = {json.dumps(item)};\n"
            )
    source = TOOLS / "rendered.ts"
    source.write_text("".join(lines))
    run(TOOLS / "node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext",
        "--moduleResolution", "nodenext", source, cwd=TOOLS)
    return len(lines)


def check_cases():
    cases = yaml.safe_load((TESTS / "cases.yaml").read_text())
    for case in cases:
        for helm in HELMS:
            code, objects, said = template(helm, yaml.dump(case["values"]), *case.get("options", []))
            if "refused" in case:
                if code == 0 or not re.search(case["refused"], said):
                    sys.exit(f"chart: {case['name']} ({helm}): not refused with {case['refused']!r}: {said}")
                continue
            if code != 0:
                sys.exit(f"chart: {case['name']} ({helm}): {said}")
            by_name = {f"{item['kind']}/{item['metadata']['name']}": item for item in objects}
            for name in case.get("absent", []):
                if name in by_name:
                    sys.exit(f"chart: {case['name']} ({helm}): there is a {name}")
            for name, wanted in case.get("objects", {}).items():
                if name not in by_name:
                    sys.exit(f"chart: {case['name']} ({helm}): no {name} among {sorted(by_name)}")
                for path, value in wanted.items():
                    if (got := find(by_name[name], path)) != value:
                        sys.exit(f"chart: {case['name']} ({helm}): {name} {path} is {got!r}, expected {value!r}")
    return len(cases)


def check_values():
    """Every value is in the schema and the other way round, and the README's table is of today."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values, node, path):
        node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        if "properties" not in node:
            return
        # `global` is what Helm itself may add.
        known = set(node["properties"]) - {"global"}
        if node.get("additionalProperties") is not False or set(values) != known:
            sys.exit(f"chart: values.yaml and values.schema.json differ at {path or 'the top'}: {set(values) ^ known}")
        for key, value in values.items():
            compare(value, node["properties"][key], f"{path}.{key}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")
    run(sys.executable, ROOT / "scripts/chart-readme", "--check")


def check_rules(rendered):
    folder = pathlib.Path(tempfile.mkdtemp())
    shutil.copy(CHART / "rules/tasker.yaml", folder)
    shutil.copy(TESTS / "rules.yaml", folder)
    run(TOOLS / "bin/promtool", "check", "rules", folder / "tasker.yaml")
    run(TOOLS / "bin/promtool", "test", "rules", folder / "rules.yaml")
    queries = [trigger["metadata"]["query"] for item in rendered["keda-values.yaml"] if item["kind"] == "ScaledObject"
               for trigger in item["spec"]["triggers"] if trigger["type"] == "prometheus"]
    backlog = [{"record": "backlog", "expr": query} for query in queries]
    (folder / "recorded.yaml").write_text(yaml.dump({"groups": [{"name": "keda", "rules": backlog}]}))
    shutil.copy(TESTS / "backlog.yaml", folder)
    run(TOOLS / "bin/promtool", "test", "rules", folder / "backlog.yaml")
    # The chart's templates must not touch Prometheus's own.
    rules = yaml.safe_load((CHART / "rules/tasker.yaml").read_text())
    shipped = [item["spec"] for objects in rendered.values() for item in objects if item["kind"] == "PrometheusRule"]
    if not shipped or any(spec != rules for spec in shipped):
        sys.exit("chart: the PrometheusRule is not rules/tasker.yaml")
    tested = {test["alert_rule_test"][0]["alertname"] for test in yaml.safe_load((TESTS / "rules.yaml").read_text())["tests"]}
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    if tested != alerts:
        sys.exit(f"chart: helm/tests/rules.yaml does not test {alerts ^ tested}")
    dashboard = json.loads((CHART / "dashboards/tasker.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    recorded = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "5m", text).replace("$namespace", ".*")}
        for number, text in enumerate(expressions)
    ]
    (folder / "panels.yaml").write_text(yaml.dump({"groups": [{"name": "panels", "rules": recorded}]}))
    run(TOOLS / "bin/promtool", "check", "rules", folder / "panels.yaml")
    run(TOOLS / "bin/promtool", "check", "config", "--syntax-only", ROOT / "deploy/prometheus.yml")
    shutil.rmtree(folder)
    return len(alerts), len(expressions)


def check_metrics():
    """The guide's table, which a test holds to the code, as Prometheus would be served it."""
    rows = re.findall(r"^\| `(tasker_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", (ROOT / "docs/operations.md").read_text(), re.M)
    if not rows:
        sys.exit("chart: docs/operations.md has no table of metrics")
    lines = []
    for name, kind, labels, text in rows:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        given = [f'{label}="x"' for label in labels.split(", ") if label]
        buckets = ['le="+Inf"'] if kind == "histogram" else []
        for ending in ["_bucket", "_sum", "_count"] if buckets else [""]:
            shown = ",".join(given + buckets * (ending == "_bucket"))
            lines.append(f"{name}{ending}{{{shown}}} 1")
    run(TOOLS / "bin/promtool", "check", "metrics", input="\n".join(lines) + "\n")
    return len(rows)


def check_files():
    venv = TOOLS / "venv/bin"
    run(venv / "hadolint", ROOT / "Dockerfile", PROJECT / "Dockerfile")
    scripts = [path for path in sorted((ROOT / "scripts").iterdir()) if path.read_text().startswith("#!/usr/bin/env bash")]
    run(venv / "shellcheck", "--severity=warning", *scripts)
    run(venv / "python", "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec",
        ROOT / "docker-compose.yml", ROOT / "deploy/compose-tls.yml")


def main():
    started = time.monotonic()
    rendered = check_examples()
    check_schemas(rendered)
    typed = check_types(rendered)
    cases = check_cases()
    check_values()
    alerts, panels = check_rules(rendered)
    metrics = check_metrics()
    check_files()
    with tempfile.TemporaryDirectory() as folder:
        run(TOOLS / "bin/helm3", "package", CHART, "--destination", folder)
    print(
        f"chart: {len(rendered)} examples with Helm 3 and 4 against Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]}, "
        f"{typed} typed objects, {cases} cases, {alerts} alerts, {panels} expressions, {metrics} metrics, in {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
