//! How spans reach a collector: by TLS, with what it wants of its callers, and how many of them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use tasker_worker_rust::trace::TraceContext;

use crate::program::{Program, stderr};
use crate::support::{DEADLINE, Desk};
use crate::tls::Authority;
use crate::traces::{linear_request, worker_program};

/// A request as the collector received it.
struct Received {
    /// Written small.
    head: String,
    traces: BTreeSet<String>,
}

/// Answers one request after the other on this connection.
fn answer(stream: impl Read + Write, requests: &Sender<Received>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.parse().expect("a number")];
        stream.read_exact(&mut body)?;
        let body: Value = serde_json::from_slice(&body).expect("the body is JSON");
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans");
        let traces = spans.iter().map(|span| span["traceId"].as_str().expect("a trace").to_owned()).collect();
        // The test may have seen enough.
        let _ = requests.send(Received { head, traces });
        stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")?;
    }
}

/// A collector, its address and what it receives; with TLS where there is a certificate and its key.
fn collector(certificate: Option<(String, String)>) -> (String, Receiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let address = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
    let config = certificate.map(|(certificate, key)| {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Arc::new(config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap())
    });
    let (requests, received) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, config, requests) = (stream.unwrap(), config.clone(), requests.clone());
            std::thread::spawn(move || serve(stream, config, &requests));
        }
    });
    (address, received)
}

fn serve(stream: TcpStream, config: Option<Arc<ServerConfig>>, requests: &Sender<Received>) {
    // A connection that breaks off is the program's affair; the test sees what it says of it.
    let _ = match config {
        None => answer(stream, requests),
        Some(config) => answer(StreamOwned::new(ServerConnection::new(config).unwrap(), stream), requests),
    };
}

const SECRET: &str = "kept-to-itself";

fn with_headers(program: Program) -> Program {
    program.set("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{SECRET}, x-team = shop"))
}

async fn one_step(desk: &mut Desk) {
    desk.send(&linear_request(desk)).await;
    desk.next_result().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_go_by_tls_with_the_collectors_headers() {
    let authority = Authority::new("the authority");
    let (address, received) = collector(Some(authority.sign("localhost", 2999)));
    let (mut desk, program) = worker_program(Some(&address)).await;
    let program = with_headers(program)
        .write("ca.pem", &authority.pem)
        .set("OTEL_EXPORTER_OTLP_CERTIFICATE", "ca.pem")
        .set("RUST_LOG", "debug");
    let mut worker = program.start(&["worker"]);
    worker.says("serving");
    one_step(&mut desk).await;
    let request = received.recv_timeout(DEADLINE).expect("the spans arrive");
    assert!(request.head.starts_with("post /v1/traces http/1.1\r\n"), "{}", request.head);
    for header in [format!("authorization: bearer {SECRET}"), "x-team: shop".to_owned()] {
        assert!(request.head.lines().any(|line| line == header), "no {header} in {}", request.head);
    }
    assert!(!request.traces.is_empty());
    let said = worker.finish().join("\n");
    assert!(!said.contains(SECRET) && !said.contains("takes no spans"), "{said}");
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_nobody_vouches_for_is_told_nothing() {
    let (authority, other) = (Authority::new("the authority"), Authority::new("another"));
    let (address, received) = collector(Some(authority.sign("localhost", 2999)));
    for trusted in [Some(&other.pem), None] {
        let (mut desk, mut program) = worker_program(Some(&address)).await;
        if let Some(pem) = trusted {
            program = program.write("ca.pem", pem).set("TASKER__TRACING__CA_FILE", "ca.pem");
        }
        let program = with_headers(program);
        let mut worker = program.start(&["worker"]);
        worker.says("serving");
        one_step(&mut desk).await;
        let complaint = worker.says("the collector takes no spans");
        assert!(complaint["problem"].as_str().unwrap().contains("UnknownIssuer"), "{complaint}");
        drop(worker);
        desk.close().await;
    }
    assert!(received.try_recv().is_err());
}

#[test]
fn an_authority_that_cannot_be_read_is_said_at_the_start() {
    for (content, problem) in [(None, "No such file"), (Some(""), "it holds none")] {
        let mut program = Program::new()
            .set("OTEL_EXPORTER_OTLP_ENDPOINT", "https://localhost:1")
            .set("TASKER__TRACING__CA_FILE", "ca.pem");
        if let Some(content) = content {
            program = program.write("ca.pem", content);
        }
        let output = program.run(&["orchestrator"]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains("tracing.ca_file: cannot use ca.pem") && said.contains(problem), "{said}");
    }
}

#[test]
fn headers_that_cannot_be_sent_are_refused_and_never_shown() {
    for wrong in ["hunter2", "a b=hunter2", "x-key=hunter2%0d%0a", "x-key=hunter2,", "x-key=%ff"] {
        let program = Program::new().set("OTEL_EXPORTER_OTLP_HEADERS", wrong);
        let said = stderr(&program.run(&["config", "check"]));
        assert!(
            said.contains("expected NAME=VALUE,NAME=VALUE") && !said.contains("hunter2"),
            "{wrong}: {said}"
        );
    }
    let output = with_headers(Program::new()).run(&["config", "show"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&output.stdout).contains(SECRET));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_of_the_traces_is_recorded_and_callers_decide_about_theirs() {
    let (address, received) = collector(None);
    let (mut desk, program) = worker_program(Some(&address)).await;
    let program = program.set("TASKER__TRACING__SAMPLE_RATIO", "0.5");
    let mut worker = program.start(&["worker"]);
    worker.says("serving");
    let (mut wanted, mut unwanted) = (BTreeSet::new(), BTreeSet::new());
    // Two to the power of -63 that all fall on one side.
    for _ in 0..64 {
        desk.send(&linear_request(&desk)).await;
        let begun = desk.next_trace().await;
        let recorded = if begun.sampled { &mut wanted } else { &mut unwanted };
        recorded.insert(format!("{:032x}", begun.trace_id));
    }
    assert!(!wanted.is_empty() && !unwanted.is_empty(), "{} of 64", wanted.len());
    for sampled in [true, false] {
        for _ in 0..8 {
            let mut caller = TraceContext::root();
            caller.sampled = sampled;
            desk.send_within(&linear_request(&desk), Some(&caller)).await;
            assert_eq!(desk.next_trace().await.sampled, sampled);
            if sampled {
                wanted.insert(format!("{:032x}", caller.trace_id));
            }
        }
    }
    // Everything is sent before the program ends.
    worker.finish();
    let traces: BTreeSet<String> = received.try_iter().flat_map(|request| request.traces).collect();
    assert_eq!(traces, wanted);
    desk.close().await;
}
