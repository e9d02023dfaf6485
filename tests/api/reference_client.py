"""A client of the orchestration API, written from its public description alone; nothing but the standard library.

    python3 tests/api/reference_client.py http://127.0.0.1:8080

Needs a template shop/order with the steps validate, reserve and ship in a row, and no worker.
"""

import json
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid

BASE = sys.argv[1]


def call(method, path, body=None, expect=200, **query):
    url = BASE + path + ("?" + urllib.parse.urlencode(query) if query else "")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, headers, text = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refused:
        status, headers, text = refused.code, refused.headers, refused.read()
    assert status == expect, (method, url, status, text)
    assert headers["x-request-id"], "every answer has a request id"
    return json.loads(text)


def refused(code, method, path, expect, body=None, **query):
    error = call(method, path, body, expect, **query)["error"]
    assert error["code"] == code and error["message"], error


def order(number, **more):
    request = {
        "name": "order", "namespace": "shop", "version": "1.10.0", "context": {"number": number},
        "initiator": "client", "source_system": "tests", "reason": "to see whether it works",
        "tags": ["reference"], "requested_at": "2026-03-01T12:00:00", "priority": 5,
    }
    return request | more


def fields(value, wanted):
    missing = [field for field in wanted.split() if field not in value]
    assert not missing, (missing, value)


# Health and templates.
for path, status in [("/health", "healthy"), ("/health/live", "alive"), ("/health/ready", "ready")]:
    assert call("GET", path)["status"] == status
checks = call("GET", "/health/detailed")["checks"]
fields(checks, "web_database orchestration_database circuit_breaker orchestration_system command_processor "
               "pool_utilization queue_depth channel_saturation")
fields(call("GET", "/health/ready")["info"], "version environment operational_state web_database_pool_size "
                                             "orchestration_database_pool_size circuit_breaker_state")
templates = call("GET", "/v1/templates", namespace="shop")
assert templates["total_count"] == len(templates["templates"]) > 0
detail = call("GET", "/v1/templates/shop/order/1.10.0")
assert detail["steps"][0]["name"] == "validate" and detail["steps"][0]["default_max_attempts"] == 3
assert [n["name"] for n in call("GET", "/v1/handlers")] == ["reports", "shop"]
assert call("GET", "/v1/handlers/shop/order")["version"] == "1.10.0"
assert len(call("GET", "/v1/handlers/shop")) == templates["total_count"]

# Create.
task = call("POST", "/v1/tasks", order(1), expect=201)
fields(task, "task_uuid name namespace version status created_at updated_at context initiator source_system reason "
             "priority tags correlation_id total_steps pending_steps in_progress_steps completed_steps failed_steps "
             "ready_steps execution_status recommended_action completion_percentage health_status steps "
             "step_count step_mapping")
assert set(task["step_mapping"]) == {"validate", "reserve", "ship"} and task["step_count"] == 3
again = call("POST", "/v1/tasks", order(1), expect=409)
assert again["error"]["code"] == "CONFLICT" and again["task_uuid"] == task["task_uuid"]
keyed = call("POST", "/v1/tasks", order(1, idempotency_key="k"), expect=201)
refused("NOT_FOUND", "POST", "/v1/tasks", 404, order(1, name="nothing"))
refused("JSON_ERROR", "POST", "/v1/tasks", 422, {"namespace": "shop"})
refused("BAD_REQUEST", "POST", "/v1/tasks", 400, order(1, name=""))

# List and filter, by every state.
others = [call("POST", "/v1/tasks", order(n, initiator="other"), expect=201) for n in range(2, 6)]
page = call("GET", "/v1/tasks", per_page=2, page=2)
assert len(page["tasks"]) == 2 and page["tasks"][0]["task_uuid"] == others[1]["task_uuid"]
assert page["pagination"] == {"page": 2, "per_page": 2, "total_count": 6, "total_pages": 3, "has_next": True,
                              "has_previous": True}
count = lambda **filters: call("GET", "/v1/tasks", **filters)["pagination"]["total_count"]
assert (count(initiator="other"), count(source_system="tests"), count(namespace="reports")) == (4, 6, 0)
STATES = ("pending initializing enqueuing_steps steps_in_process evaluating_results waiting_for_dependencies "
          "waiting_for_retry blocked_by_failures complete error cancelled resolved_manually").split()
assert sum(count(status=state) for state in STATES) == 6
refused("BAD_REQUEST", "GET", "/v1/tasks", 400, status="no_state")
refused("BAD_REQUEST", "GET", "/v1/tasks", 400, per_page=101)

# Read.
path = "/v1/tasks/" + task["task_uuid"]
read = call("GET", path)
assert read["steps"][0]["current_state"] == "enqueued" and read["execution_status"] == "processing"
fields(read["steps"][0], "workflow_step_uuid task_uuid named_step_uuid name current_state dependencies_satisfied "
                         "retry_eligible ready_for_execution total_parents completed_parents attempts max_attempts")
refused("INVALID_UUID", "GET", "/v1/tasks/7", 400)
refused("NOT_FOUND", "GET", "/v1/tasks/" + str(uuid.uuid4()), 404)
refused("NOT_FOUND", "GET", "/v1/nothing", 404)

# Cancel.
cancelled = call("DELETE", "/v1/tasks/" + keyed["task_uuid"])
assert cancelled["status"] == "cancelled" and cancelled["completed_at"]
refused("BAD_REQUEST", "DELETE", "/v1/tasks/" + keyed["task_uuid"], 400)
assert count(status="cancelled") == 1

# Resolve, to the task's end.
for name in ["validate", "reserve", "ship"]:
    step = path + "/workflow_steps/" + task["step_mapping"][name]
    action = {"action_type": "complete_manually", "reason": "no worker here", "completed_by": "client",
              "completion_data": {"result": {"step": name}}}
    if name == "ship":
        action = {"action_type": "resolve_manually", "reason": "sent by post", "resolved_by": "client"}
    done = call("PATCH", step, action)
    assert done["current_state"] == ("resolved_manually" if name == "ship" else "complete")
    record = call("GET", step + "/audit")[0]
    fields(record, "audit_uuid workflow_step_uuid transition_uuid task_uuid recorded_at success step_name to_state")
    assert record["success"] and record["from_state"] == "enqueued", record
task = call("GET", path, wait=10)
assert (task["status"], task["execution_status"], task["completion_percentage"]) == ("complete", "all_complete", 100)
steps = call("GET", path + "/workflow_steps")
assert steps[0]["results"]["result"] == {"step": "validate"} and steps[0]["results"]["success"]
summary = call("GET", path + "/summary")
fields(summary, "task template steps dlq links")
assert call("GET", summary["links"]["task"])["task_uuid"] == task["task_uuid"]

# What operators look at.
assert call("GET", "/v1/dlq") == [] and call("GET", "/v1/dlq/stats") == []
assert call("GET", "/v1/dlq/investigation-queue") == [] and call("GET", "/v1/dlq/staleness") == []
refused("NOT_FOUND", "GET", "/v1/dlq/task/" + task["task_uuid"], 404)
performance = call("GET", "/v1/analytics/performance", hours=1)
assert (performance["total_tasks"], performance["completed_tasks"], performance["active_tasks"]) == (6, 1, 4)
fields(call("GET", "/v1/analytics/bottlenecks", limit=5), "slow_steps slow_tasks resource_utilization recommendations")
print("everything holds")
