//! Who may do what on RabbitMQ: as little as each part of an installation needs. The one place that says so.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::topology::{ExchangeKind, Names, Topology};

/// A user of the broker, with patterns of what it may configure, write to and read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// What it may see of the management API.
    pub tags: &'static str,
    /// What it may create and delete.
    pub configure: String,
    /// What it may publish to.
    pub write: String,
    /// What it may consume from, or bind to.
    pub read: String,
    /// The routing keys it may publish with, by exchange; any where nothing is said.
    pub keys: BTreeMap<String, String>,
}

/// The users of an installation: `tasker-topology` for whoever declares, pauses and replays, `tasker-orchestrator`,
/// `tasker-scaler`, and one for each of `workers`, which serves only its own namespaces.
pub fn users(names: &Names, workers: &[(String, BTreeSet<String>)]) -> Vec<User> {
    let all = format!("^{}", escaped(&names.everything()));
    let mut users = vec![
        User {
            configure: all.clone(),
            // Pauses are published to their queues directly.
            write: format!("{all}|^amq\\.default$"),
            read: all,
            ..user("tasker-topology")
        },
        User {
            write: exactly([
                escaped(&names.steps()),
                // To see how long they are.
                format!("{}.*", escaped(&names.step_queue(""))),
                escaped(&names.dead_letters()),
                escaped(&names.control()),
            ]),
            read: exactly([escaped(&names.orchestrator_queue())]),
            ..user("tasker-orchestrator")
        },
        // Lengths are seen by whoever may see the virtual host.
        User { tags: "management", ..user("tasker-scaler") },
    ];
    users.extend(workers.iter().map(|(name, namespaces)| worker(names, name, namespaces)));
    users
}

fn worker(names: &Names, name: &str, namespaces: &BTreeSet<String>) -> User {
    let of_each = |queue: fn(&Names, &str) -> String| {
        namespaces.iter().map(move |namespace| escaped(&queue(names, namespace)))
    };
    // The queue that control messages come by, which has a name of the broker's making.
    let own = "amq\\.gen.*".to_owned();
    let published = [names.results(), names.retries(), names.dead_letters()];
    let served = namespaces.iter().map(String::as_str).collect::<Vec<_>>().join("|");
    let keys = published.iter().map(|exchange| (exchange.clone(), format!("^[a-z]+\\.({served})\\.")));
    User {
        configure: exactly([own.clone()]),
        // Not to be published to, but to be seen: whether the namespace is paused.
        write: exactly(
            published
                .iter()
                .map(|name| escaped(name))
                .chain([own.clone()])
                .chain(of_each(Names::paused_queue)),
        ),
        read: exactly([own, escaped(&names.control())].into_iter().chain(of_each(Names::step_queue))),
        keys: keys.collect(),
        ..user(name)
    }
}

fn user(name: &str) -> User {
    let nothing = || "^$".to_owned();
    User {
        name: name.to_owned(),
        tags: "",
        configure: nothing(),
        write: nothing(),
        read: nothing(),
        keys: BTreeMap::new(),
    }
}

fn exactly(patterns: impl IntoIterator<Item = String>) -> String {
    format!("^({})$", patterns.into_iter().collect::<Vec<_>>().join("|"))
}

/// Names have no other character that means something in a pattern.
fn escaped(name: &str) -> String {
    name.replace('.', "\\.")
}

/// All of it as RabbitMQ imports it. Users without a password in `passwords` can log in by certificate only.
pub fn definitions(
    topology: &Topology,
    users: &[User],
    passwords: &BTreeMap<String, String>,
    vhost: &str,
) -> Value {
    let exchanges = topology.exchanges.iter().map(|exchange| {
        let kind = match exchange.kind {
            ExchangeKind::Topic => "topic",
            ExchangeKind::Fanout => "fanout",
        };
        json!({
            "name": exchange.name, "vhost": vhost, "type": kind, "durable": true, "auto_delete": false,
            "internal": false, "arguments": exchange.arguments(),
        })
    });
    let queues = topology.queues.iter().map(|queue| {
        json!({
            "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false,
            "arguments": queue.arguments(),
        })
    });
    let bindings = topology.bindings.iter().map(|binding| {
        json!({
            "source": binding.exchange, "vhost": vhost, "destination": binding.queue, "destination_type": "queue",
            "routing_key": binding.routing_key, "arguments": {},
        })
    });
    let logins = users.iter().map(|user| {
        let hash = passwords.get(&user.name).map(|password| password_hash(password)).unwrap_or_default();
        json!({
            "name": user.name, "password_hash": hash, "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": user.tags,
        })
    });
    let permissions = users.iter().map(|user| {
        json!({
            "user": user.name, "vhost": vhost, "configure": user.configure, "write": user.write, "read": user.read,
        })
    });
    let keys = users.iter().flat_map(|user| {
        user.keys.iter().map(move |(exchange, pattern)| {
        json!({ "user": user.name, "vhost": vhost, "exchange": exchange, "write": pattern, "read": "^$" })
    })
    });
    json!({
        "vhosts": [{ "name": vhost }],
        "users": logins.collect::<Vec<_>>(),
        "permissions": permissions.collect::<Vec<_>>(),
        "topic_permissions": keys.collect::<Vec<_>>(),
        "exchanges": exchanges.collect::<Vec<_>>(),
        "queues": queues.collect::<Vec<_>>(),
        "bindings": bindings.collect::<Vec<_>>(),
    })
}

/// As RabbitMQ keeps passwords: four random bytes, and the digest of these and the password.
fn password_hash(password: &str) -> String {
    let salt: [u8; 4] = rand::random();
    let salted = [&salt, password.as_bytes()].concat();
    STANDARD.encode([&salt, digest(&SHA256, &salted).as_ref()].concat())
}
