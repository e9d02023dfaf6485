"""Reads what kubectl and Helm send in Kubernetes' protobuf encoding where they use typed clients: namespaces and secrets."""

import base64


def fields(data):
    """The fields of a message: (number, value), a value being bytes or an integer."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        value = varint()
        if kind == 2:
            value, at = data[at:at + value], at + value
        yield number, value


def texts(data, names):
    return {names[number]: value.decode() for number, value in fields(data) if number in names and value}


def pairs(data, number, decode):
    entries = [dict(fields(entry)) for here, entry in fields(data) if here == number]
    return {entry[1].decode(): decode(entry.get(2, b"")) for entry in entries}


def read(body):
    unknown = dict(fields(body.removeprefix(b"k8s\0")))
    item, raw = texts(unknown[1], {1: "apiVersion", 2: "kind"}), unknown[2]
    metadata = dict(fields(raw))[1]
    item["metadata"] = texts(metadata, {1: "name", 3: "namespace", 6: "resourceVersion"})
    for number, name in ((11, "labels"), (12, "annotations")):
        if given := pairs(metadata, number, bytes.decode):
            item["metadata"][name] = given
    if item["kind"] == "Secret":
        item |= texts(raw, {3: "type"}) | {"data": pairs(raw, 2, lambda value: base64.b64encode(value).decode())}
    return item
