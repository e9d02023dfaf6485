//! Rounds: ours and the bare twin in turn, under the same watch.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tasker_worker_rust::broker::Broker;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::topology::{Names, Topology};
use tasker_worker_rust::config::QueueKind;
use tasker_worker_rust::{Config, Error};
use url::Url;
use uuid::Uuid;

use super::Answer;
use super::caller::{self, Caller};
use super::job::{Habit, Job, Who, Worker};
use super::machine::{DISTURBED, Machine};

/// What every workload needs.
pub(super) struct Bench {
    pub(super) config: Config,
    /// The arguments that give a child the same settings.
    pub(super) settings: Vec<String>,
    pub(super) quick: bool,
    pub(super) rounds: usize,
    /// Parts of the names of the cases that are wanted; none for all.
    pub(super) only: Vec<String>,
    /// How far the store grows in W6.
    pub(super) stored_tasks: u32,
    pub(super) machine: Machine,
    place: (String, u16),
}

/// One measurement, and what happened on the machine meanwhile.
#[derive(Debug, Clone)]
pub(super) struct Run<T> {
    pub(super) value: T,
    /// Processor seconds of the broker.
    pub(super) broker: f64,
    /// Cores used by others.
    pub(super) others: f64,
}

/// Ours and the twin's, one right after the other.
pub(super) struct Round<T> {
    pub(super) ours: Run<T>,
    pub(super) bare: Option<Run<T>>,
}

impl<T> Round<T> {
    fn others(&self) -> f64 {
        self.bare.as_ref().map_or(0.0, |bare| bare.others).max(self.ours.others)
    }

    /// A number of each.
    pub(super) fn both(&self, number: impl Fn(&Run<T>) -> f64) -> (f64, Option<f64>) {
        (number(&self.ours), self.bare.as_ref().map(number))
    }
}

/// The rounds that count.
pub(super) struct Rounds<T> {
    pub(super) rounds: Vec<Round<T>>,
    pub(super) disturbed: usize,
}

impl<T> Rounds<T> {
    /// A number of each, round by round.
    pub(super) fn numbers(&self, number: impl Fn(&Run<T>) -> f64) -> Vec<(f64, Option<f64>)> {
        self.rounds.iter().map(|round| round.both(&number)).collect()
    }
}

impl Bench {
    pub(super) fn new(
        config: Config,
        settings: Vec<String>,
        quick: bool,
        rounds: usize,
        stored_tasks: u32,
    ) -> Answer<Self> {
        let address = config.broker.urls.first().ok_or("broker.urls is empty")?;
        let address = Url::parse(address.expose())?;
        let place = (address.host_str().unwrap_or("127.0.0.1").to_owned(), address.port().unwrap_or(5672));
        let local = matches!(place.0.as_str(), "127.0.0.1" | "localhost" | "::1");
        let machine = Machine::new(local.then_some(place.1));
        let rounds = if quick { rounds.min(3) } else { rounds };
        Ok(Self { config, settings, quick, rounds, only: Vec::new(), stored_tasks, machine, place })
    }

    /// Whether a case is wanted.
    pub(super) fn wants(&self, case: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| case.contains(part))
    }

    pub(super) fn url(&self) -> &str {
        self.config.broker.urls.first().map_or("", |url| url.expose())
    }

    /// `many`, or `few` in the quick form.
    pub(super) fn scaled<N>(&self, many: N, few: N) -> N {
        if self.quick { few } else { many }
    }

    /// What the broker says of itself in the first words of the protocol.
    pub(super) fn broker_version(&self) -> String {
        let ask = || -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect((self.place.0.as_str(), self.place.1))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"AMQP\x00\x00\x09\x01")?;
            let mut words = vec![0; 4096];
            let length = stream.read(&mut words)?;
            words.truncate(length);
            Ok(words)
        };
        const FIELD: &[u8] = b"\x07versionS\x00\x00\x00";
        let words = ask().unwrap_or_default();
        let version = words.windows(FIELD.len()).position(|part| part == FIELD).and_then(|at| {
            let (length, text) = words.get(at + FIELD.len()..)?.split_first()?;
            text.get(..usize::from(*length))
        });
        version.map_or_else(
            || "unknown".to_owned(),
            |version| format!("RabbitMQ {}", String::from_utf8_lossy(version)),
        )
    }

    /// Runs rounds until enough of them were not disturbed, but at most twice as many.
    pub(super) async fn rounds<T>(
        &self,
        what: &str,
        count: usize,
        twin: bool,
        mut measure: impl AsyncFnMut(Who) -> Answer<Run<T>>,
    ) -> Answer<Rounds<T>> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for attempt in 1..=self.scaled(2 * count, count) {
            let (mut ours, mut bare) = (None, None);
            let order = if attempt % 2 == 1 { [Who::Ours, Who::Bare] } else { [Who::Bare, Who::Ours] };
            for who in order {
                match who {
                    Who::Ours => ours = Some(measure(who).await?),
                    Who::Bare if twin => bare = Some(measure(who).await?),
                    Who::Bare => {}
                }
            }
            let round = Round { ours: ours.ok_or("nothing was measured")?, bare };
            eprintln!("bench: {what}, round {attempt}: others used {:.2} cores", round.others());
            if round.others() > DISTURBED {
                bad.push(round)
            } else {
                good.push(round)
            }
            if good.len() == count {
                break;
            }
        }
        bad.sort_by(|a, b| a.others().total_cmp(&b.others()));
        let disturbed = count.saturating_sub(good.len()).min(bad.len());
        good.extend(bad.into_iter().take(disturbed));
        Ok(Rounds { rounds: good, disturbed })
    }

    /// Awaits `work`, and tells what happened on the machine meanwhile.
    pub(super) async fn watch<T>(
        &self,
        running: &[u32],
        work: impl Future<Output = Answer<T>>,
    ) -> Answer<Run<T>> {
        let (begin, before) = (Instant::now(), self.machine.used(running));
        let value = work.await?;
        let (seconds, after) = (begin.elapsed().as_secs_f64(), self.machine.used(running));
        let broker = if self.machine.sees_broker() { after.broker_since(&before) } else { f64::NAN };
        Ok(Run { value, broker, others: after.others_since(&before, seconds) })
    }

    /// Removes the queues that programs with these settings have declared.
    pub(super) async fn remove(&self, prefix: &str, namespaces: &[&str]) -> Answer {
        let kind = self.config.broker.queue_kind;
        let topology = Topology::new(&Names::new(prefix), &self.config.ladder(), kind, namespaces);
        caller::remove(self.url(), &topology).await
    }

    /// Queues of their own, with somebody at their other end.
    pub(super) async fn site(&self, kind: QueueKind, namespaces: usize) -> Answer<Site<'_>> {
        let prefix = format!("bench-{}", Uuid::new_v4().simple());
        let job = Job {
            who: Who::Ours,
            prefix,
            kind,
            namespaces,
            prefetch: 100,
            steps: 0,
            sleep_ms: 0,
            habit: Habit::Best,
        };
        let config = job.config(self.config.clone());
        let topology = Topology::new(&config.names(), &config.ladder(), kind, job.namespaces());
        let broker = RabbitBroker::connect(&config.broker, "bench").map_err(Error::from)?;
        broker.declare(&topology).await.map_err(Error::from)?;
        broker.close().await;
        let caller = Caller::open(self.url(), &job.prefix).await?;
        Ok(Site { bench: self, job, topology, caller })
    }
}

/// Queues of their own for one case.
pub(super) struct Site<'a> {
    bench: &'a Bench,
    pub(super) job: Job,
    topology: Topology,
    pub(super) caller: Caller,
}

impl Site<'_> {
    pub(super) fn start(&self, job: &Job) -> Answer<Worker> {
        Worker::start(job, &self.bench.settings)
    }

    /// Removes the queues.
    pub(super) async fn close(self) -> Answer {
        drop(self.caller);
        caller::remove(self.bench.url(), &self.topology).await
    }
}
