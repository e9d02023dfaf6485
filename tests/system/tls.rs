//! A RabbitMQ that speaks TLS, with an authority made for the test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::{Broker, BrokerStatus};
use tasker_worker_rust::client::Client;
use tasker_worker_rust::config::{BrokerConfig, TlsConfig};
use tasker_worker_rust::ops::http;
use tasker_worker_rust::{Config, Namespace, RustWorker, Step, StepResult};

use crate::node::Node;
use crate::support::{NAMESPACE, eventually, within};

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `name` that is valid until the end of `year`, and its key.
    pub(crate) fn sign(&self, name: &str, year: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// Files in one folder, and a node whose TLS listener uses some of them.
struct Scene {
    folder: PathBuf,
    authority: Authority,
    tls_port: u16,
    node: Node,
}

const DEFINITIONS: &str = r#"{
    "vhosts": [{"name": "/"}],
    "users": [
        {"name": "guest", "password_hash": "c2FsdDRwMuw4kgNZhm0cEYx1m4NAR6BCdplxDdFbnDjbRIKq", "tags": "administrator"},
        {"name": "tasker-worker", "password_hash": "", "tags": ""}
    ],
    "permissions": [
        {"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
        {"user": "tasker-worker", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    ]
}"#;

impl Scene {
    fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().to_owned();
        let authority = Authority::new("the authority");
        write(&folder, "ca.pem", &authority.pem);
        write(&folder, "other-ca.pem", &Authority::new("another authority").pem);
        write_pair(&folder, "server", &authority.sign("localhost", 2999));
        write_pair(&folder, "client", &authority.sign("tasker-worker", 2999));
        let tls_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let files = [
            ("definitions.json", DEFINITIONS.to_owned()),
            ("extra.plugins", "rabbitmq_auth_mechanism_ssl".to_owned()),
            ("extra.conf", listener(&folder, tls_port)),
        ];
        let files: Vec<(&str, &str)> =
            files.iter().map(|(name, content)| (*name, content.as_str())).collect();
        Self { node: Node::start(directory, &files), folder, authority, tls_port }
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.join(name))
    }

    fn config(&self, host: &str, tls: TlsConfig) -> BrokerConfig {
        let url = format!("amqps://guest:guest@{host}:{}/%2f", self.tls_port);
        BrokerConfig { urls: vec![url.into()], tls, ..BrokerConfig::default() }
    }

    fn trusting(&self) -> TlsConfig {
        TlsConfig { ca_file: self.file("ca.pem"), ..TlsConfig::default() }
    }

    fn by_certificate(&self) -> TlsConfig {
        TlsConfig {
            certificate_file: self.file("client.pem"),
            key_file: self.file("client.key"),
            external_login: true,
            ..self.trusting()
        }
    }

    /// Has the node read its certificate again.
    fn renew(&self, name: &str, year: i32) {
        write_pair(&self.folder, "server", &self.authority.sign(name, year));
        self.node.ctl(&["eval", "ssl:clear_pem_cache()."]);
    }
}

fn listener(folder: &Path, port: u16) -> String {
    let path = folder.display();
    format!(
        "listeners.ssl.default = 127.0.0.1:{port}\n\
         ssl_options.cacertfile = {path}/ca.pem\n\
         ssl_options.certfile = {path}/server.pem\n\
         ssl_options.keyfile = {path}/server.key\n\
         ssl_options.verify = verify_peer\n\
         ssl_options.fail_if_no_peer_cert = false\n\
         ssl_cert_login_from = common_name\n\
         auth_mechanisms.1 = PLAIN\n\
         auth_mechanisms.2 = EXTERNAL\n\
         load_definitions = {path}/definitions.json\n"
    )
}

fn write(folder: &Path, name: &str, content: &str) {
    std::fs::write(folder.join(name), content).unwrap();
}

fn write_pair(folder: &Path, name: &str, (certificate, key): &(String, String)) {
    write(folder, &format!("{name}.pem"), certificate);
    write(folder, &format!("{name}.key"), key);
}

/// What comes of connecting: nothing, or why not.
async fn outcome(config: &BrokerConfig) -> Result<(), String> {
    let broker = RabbitBroker::connect(config, "tls").map_err(|error| error.to_string())?;
    let mut status = broker.status();
    let settled = |status: &BrokerStatus| match status {
        BrokerStatus::Connecting(reason) => reason != "starting",
        _ => true,
    };
    let status = within(status.wait_for(settled)).await.unwrap().clone();
    within(broker.close()).await;
    match status {
        BrokerStatus::Connected => Ok(()),
        BrokerStatus::Connecting(reason) => Err(reason),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(outcome: Result<(), String>, parts: &[&str]) {
    let reason = outcome.expect_err("it connected");
    for part in parts {
        assert!(reason.contains(part), "{part:?} is not in: {reason}");
    }
    assert!(!reason.contains("guest:guest"), "{reason}");
}

async fn nothing(_: Step<()>) -> StepResult<()> {
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_tls_lets_in_and_why_it_refuses_the_others() {
    let scene = Scene::open();
    let (trusting, by_certificate) = (scene.trusting(), scene.by_certificate());
    let place = format!("localhost:{}", scene.tls_port);

    // By password, and by certificate without one.
    assert_eq!(outcome(&scene.config("localhost", trusting.clone())).await, Ok(()));
    assert_eq!(outcome(&scene.config("localhost", by_certificate.clone())).await, Ok(()));
    let users = scene.node.ctl(&["list_users"]);
    assert!(users.contains("tasker-worker"), "{users}");

    // An authority that is not ours; the public ones.
    let other = TlsConfig { ca_file: scene.file("other-ca.pem"), ..trusting.clone() };
    for tls in [other, TlsConfig::default()] {
        let outcome = outcome(&scene.config("localhost", tls)).await;
        refused(
            outcome,
            &[&place, "is not trusted here", "put the certificate of that authority into broker.tls.ca_file"],
        );
    }

    // Another name, unless it is said.
    let by_address = outcome(&scene.config("127.0.0.1", trusting.clone())).await;
    refused(by_address, &["is for another name", "broker.tls.server_name", "localhost"]);
    let named = TlsConfig { server_name: Some("localhost".to_owned()), ..trusting.clone() };
    assert_eq!(outcome(&scene.config("127.0.0.1", named)).await, Ok(()));

    // Our own certificate: run out, of another authority, or none where one is the login.
    write_pair(&scene.folder, "client", &scene.authority.sign("tasker-worker", 2021));
    let expired = outcome(&scene.config("localhost", by_certificate.clone())).await;
    refused(expired, &[&place, "our certificate", "renew broker.tls.certificate_file"]);
    write_pair(&scene.folder, "client", &Authority::new("a third").sign("tasker-worker", 2999));
    let strange = outcome(&scene.config("localhost", by_certificate.clone())).await;
    refused(strange, &["our certificate", "have its authority trusted by the broker"]);
    write_pair(&scene.folder, "client", &scene.authority.sign("nobody", 2999));
    refused(
        outcome(&scene.config("localhost", by_certificate.clone())).await,
        &["refused user", "ACCESS_REFUSED"],
    );

    // Files that are not what they should be are mistakes in the settings.
    write(&scene.folder, "client.key", "no key");
    refused(
        outcome(&scene.config("localhost", by_certificate)).await,
        &["broker.tls.key_file", "a private key"],
    );
    let missing = TlsConfig { ca_file: scene.file("no-such.pem"), ..TlsConfig::default() };
    refused(outcome(&scene.config("localhost", missing)).await, &["broker.tls.ca_file", "no-such.pem"]);

    // Plain AMQP behind an address that asks for TLS.
    let plain = format!("amqps://guest:guest@localhost:{}/%2f", scene.node.port);
    let plain = BrokerConfig { urls: vec![plain.into()], ..scene.config("localhost", trusting.clone()) };
    refused(outcome(&plain).await, &["no TLS is spoken there", "amqp://"]);

    a_worker_follows_the_brokers_certificate(&scene, trusting).await;
}

/// A broker whose certificate runs out is refused, `/health/ready` says so, and a new one is enough to go on.
async fn a_worker_follows_the_brokers_certificate(scene: &Scene, trusting: TlsConfig) {
    scene.renew("localhost", 2021);
    let mut config = Config::default();
    config.broker = scene.config("localhost", trusting);
    let worker = RustWorker::new(config).namespace(Namespace::new(NAMESPACE).step("nothing", nothing));
    let worker = worker.start().await.unwrap();
    let router = http::router(Arc::new(worker.health()), false);
    let server = http::serve("127.0.0.1:0", "worker.health_address", router).await.unwrap();
    let client = Client::new(&format!("http://{}", server.address())).unwrap();
    let said = eventually("the worker knows", async || {
        let (ready, report) = client.health(false).await.unwrap();
        let said = report["checks"]["broker"]["message"].as_str().unwrap().to_owned();
        (!ready && said != "not connected: starting").then_some(said)
    });
    let said = said.await;
    assert!(said.contains("the broker's certificate has expired: renew it"), "{said}");

    scene.renew("localhost", 2999);
    within(worker.ready()).await;
    assert!(client.health(false).await.unwrap().0);
    worker.shutdown().await;
}
