"""Plays the orchestrator in another language, against a worker that serves the namespace linear_workflow.

    RABBITMQ_URL=amqp://... "$(scripts/python-venv)" tests/contract/independent_client.py

What is run first is the example of docs/messages.md itself. It knows nothing of this package but that document.
Exits with 0 when everything is as documented, and with 1 after the first thing that is not.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import sys
import time
import uuid

import pika

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "messages.md"
NAMESPACE = "linear_workflow"
PARKED = f"tasker.dead_letters.{NAMESPACE}"
SECONDS = 30
APP_ID = "tasker-worker-rust"


class Wrong(Exception):
    """Something is not as documented."""


def expect(what, actual, expected):
    if actual != expected:
        raise Wrong(f"{what} is {actual!r}, expected {expected!r}")
    print(f"  ok: {what} is {actual!r}")


def documented_example():
    """Runs the document's program and gives back its variables."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    if len(blocks) != 1:
        raise Wrong(f"{DOCUMENT} has {len(blocks)} Python programs, expected 1")
    variables, output = {"__name__": "example"}, io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(compile(blocks[0], str(DOCUMENT), "exec"), variables)
    except SystemExit as end:
        raise Wrong(f"the example ended with: {end}") from end
    expect("the example's output", output.getvalue().strip(), "completed 12")
    return variables


def check_properties(properties, request, kind, message_kind):
    attempt = request["attempt"]
    expect("content_type", properties.content_type, "application/json")
    expect("delivery_mode", properties.delivery_mode, 2)
    expect("message_id", properties.message_id, f"{request['step_uuid']}:{attempt}:{message_kind}")
    expect("correlation_id", properties.correlation_id, request["correlation_id"])
    expect("type", properties.type, kind)
    expect("app_id", properties.app_id, APP_ID)
    expect("header tasker-attempt", properties.headers.get("tasker-attempt"), attempt)
    if not properties.headers.get("tasker-worker-id"):
        raise Wrong(f"there is no header tasker-worker-id in {properties.headers!r}")
    if abs(properties.timestamp - time.time()) > 300:
        raise Wrong(f"timestamp {properties.timestamp} is not the time, {time.time():.0f}")


def new_request(step_name):
    return {
        "task_uuid": str(uuid.uuid4()),
        "step_uuid": str(uuid.uuid4()),
        "namespace": NAMESPACE,
        "step_name": step_name,
        "attempt": 1,
        "task_data": {"even_number": 6},
        "correlation_id": f"independent-{uuid.uuid4()}",
    }


def publish(channel, routing_key, body, message_id):
    channel.basic_publish(
        "tasker.steps",
        routing_key,
        body,
        pika.BasicProperties(
            content_type="application/json", delivery_mode=2, message_id=message_id, type="step.request"
        ),
    )


def channel_with_results(connection):
    """A channel that confirms, and a queue of our own for the namespace's results."""
    channel = connection.channel()
    channel.confirm_delivery()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, "tasker.results", f"result.{NAMESPACE}.*")
    return channel, queue


def result_of(channel, queue, request):
    """The first result of the request's step, its properties and its routing key."""
    deadline = time.monotonic() + SECONDS
    try:
        for method, properties, body in channel.consume(queue, inactivity_timeout=1):
            if method is not None:
                channel.basic_ack(method.delivery_tag)
                result = json.loads(body)
                if result["step_uuid"] == request["step_uuid"]:
                    return result, properties, method.routing_key
            if time.monotonic() > deadline:
                raise Wrong(f"no result of step {request['step_name']} within {SECONDS} s")
    finally:
        channel.cancel()


def dead_letter(connection, is_ours, what):
    """Takes one of our dead letters out of the parking queue. Those of others go back to it."""
    channel = connection.channel()
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            method, properties, body = channel.basic_get(PARKED)
            if method is None:
                connection.sleep(0.1)
            elif is_ours(properties, body):
                channel.basic_ack(method.delivery_tag)
                return properties, body, method.routing_key
    finally:
        # Gives back what was not acked, once: a queue may drop what was handed out too often.
        channel.close()
    raise Wrong(f"no dead letter of {what} in {PARKED} within {SECONDS} s")


def the_documented_example(_connection):
    example = documented_example()
    result, request = example["result"], example["request"]
    try:
        expect("status", result["status"], "completed")
        expect("success", result["success"], True)
        expect("data.generated_value", result["data"]["generated_value"], 12)
        for field in ["task_uuid", "step_uuid", "namespace", "step_name", "attempt", "protocol_version"]:
            expect(field, result[field], request[field])
        expect("execution_environment", result["metadata"]["execution_environment"], "rust")
        expect("error", result.get("error"), None)
        expect("routing key", example["method"].routing_key, f"result.{NAMESPACE}.completed")
        check_properties(example["properties"], request, "step.result", "result")
    finally:
        example["connection"].close()


def the_older_spelling_under_the_namespace_alone(connection):
    channel, queue = channel_with_results(connection)
    request = new_request("linear_step_2")
    older = {field: request[field] for field in ["task_uuid", "step_uuid", "namespace", "step_name"]}
    first = {"generated_value": 12, "step_1_timestamp": "2026-03-01T08:15:30Z", "processing_info": "by hand"}
    older["task_context"] = {"even_number": 6}
    older["previous_results"] = {"linear_step_1": {"success": True, "result": first, "status": "completed"}}
    older["metadata"] = {"attempt": 2, "max_attempts": 3}
    publish(channel, NAMESPACE, json.dumps(older).encode(), f"{request['step_uuid']}:2:request")

    result, properties, _ = result_of(channel, queue, request)
    expect("status", result["status"], "completed")
    expect("data.processed_value", result["data"]["processed_value"], 22)
    expect("attempt", result["attempt"], 2)
    expect("correlation_id", properties.correlation_id, request["task_uuid"])
    channel.close()


def a_step_that_nobody_has(connection):
    channel, queue = channel_with_results(connection)
    request = new_request("no_such_step")
    body = json.dumps(request).encode()
    publish(channel, f"step.{NAMESPACE}.no_such_step", body, f"{request['step_uuid']}:1:request")

    result, properties, routing_key = result_of(channel, queue, request)
    expect("status", result["status"], "failed")
    expect("success", result["success"], False)
    expect("data", result["data"], None)
    expect("error_type", result["error"]["error_type"], "HandlerNotFound")
    expect("retryable", result["error"]["retryable"], False)
    if "no_such_step" not in result["error"]["message"]:
        raise Wrong(f"the error does not name the step: {result['error']['message']!r}")
    expect("routing key", routing_key, f"result.{NAMESPACE}.failed")
    check_properties(properties, request, "step.result", "result")

    message_id = f"{request['step_uuid']}:1:dead"
    properties, parked, routing_key = dead_letter(
        connection, lambda properties, _: properties.message_id == message_id, "the unknown step"
    )
    expect("dead letter's key", routing_key, f"dead.{NAMESPACE}.handler_not_found")
    expect("dead letter's body is the request's", parked == body, True)
    expect("tasker-reason", properties.headers.get("tasker-reason"), "handler_not_found")
    expect("tasker-error-type", properties.headers.get("tasker-error-type"), "HandlerNotFound")
    expect("tasker-error", properties.headers.get("tasker-error"), result["error"]["message"])
    check_properties(properties, request, "step.dead_letter", "dead")
    channel.close()


def a_body_that_is_no_request(connection):
    channel = connection.channel()
    channel.confirm_delivery()
    body = f'{{"this is": "no request", "{uuid.uuid4()}":'.encode()
    publish(channel, f"step.{NAMESPACE}.linear_step_1", body, "independent-unreadable")
    properties, _, routing_key = dead_letter(
        connection, lambda _, parked: parked == body, "the unreadable body"
    )
    expect("dead letter's key", routing_key, f"step.{NAMESPACE}.linear_step_1")
    expect("message_id", properties.message_id, "independent-unreadable")
    expect("tasker-reason", properties.headers.get("tasker-reason"), None)
    expect("x-first-death-reason", properties.headers.get("x-first-death-reason"), "rejected")
    expect("x-first-death-queue", properties.headers.get("x-first-death-queue"), f"tasker.steps.{NAMESPACE}")
    channel.close()


def main():
    url = os.environ.get("RABBITMQ_URL")
    if not url:
        print("set RABBITMQ_URL to the broker of a running worker", file=sys.stderr)
        return 1
    scenes = [
        the_documented_example,
        the_older_spelling_under_the_namespace_alone,
        a_step_that_nobody_has,
        a_body_that_is_no_request,
    ]
    try:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        for scene in scenes:
            print(scene.__name__.replace("_", " "), flush=True)
            scene(connection)
        connection.close()
    except Wrong as wrong:
        print(f"  WRONG: {wrong}", flush=True)
        return 1
    except pika.exceptions.AMQPError as error:
        print(f"  WRONG: the broker refused: {error!r}", flush=True)
        return 1
    print(f"all {len(scenes)} as documented")
    return 0


if __name__ == "__main__":
    sys.exit(main())
