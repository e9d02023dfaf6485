//! The one task that publishes.
//!
//! It alone owns the publishing channel: several tasks publishing on one channel get each other's
//! confirmations. It answers each message with the broker's word, or with why there is none; who asked
//! publishes again. When the channel breaks it opens another.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{self, Instant};
use tracing::warn;

use super::Shared;
use super::confirms::reply;
use super::connection::GRACE;
use super::declare;
use super::failure::Failure;
use super::link::{Link, LinkState};
use super::properties::Outgoing;
use super::reconnect::{Tries, Trouble};
use super::suspects::{Suspects, Trial, Way};
use super::window::Window;
use crate::broker::{Confirm, Message, PublishError, PublishJob};
use crate::ops::metrics::METRICS;

pub(super) struct Lane {
    shared: Arc<Shared>,
    link: Link,
    jobs: mpsc::Receiver<PublishJob>,
    suspects: Suspects,
}

/// Why a channel is not used any longer.
enum End {
    /// The broker is being closed by us.
    Closing,
    /// It refuses what another may take, or left a message without an answer: what follows may wait as long.
    Worn,
    /// It is gone.
    Lost(Failure),
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, link: Link, jobs: mpsc::Receiver<PublishJob>) -> Self {
        Self { shared, link, jobs, suspects: Suspects::default() }
    }

    pub(super) async fn run(mut self) {
        let mut spent = 0;
        let mut down_since = Instant::now();
        let mut tries = Tries::new();
        while let Some(mut window) = self.open(spent, down_since).await {
            let end = self.serve(&mut window).await;
            if window.useful {
                tries.worked();
            }
            down_since = Instant::now();
            match end {
                End::Closing => {
                    // What is on its way may still be confirmed.
                    let _ = time::timeout(GRACE, window.finish()).await;
                    break;
                }
                End::Worn => drop(tokio::spawn(window.finish())),
                End::Lost(failure) => {
                    window.confirms.fail(&PublishError::Disconnected(failure.text.clone()));
                    if failure.connection_lost {
                        spent = window.connection;
                    } else {
                        METRICS.reconnects.with_label_values(&[failure.cause]).inc();
                        warn!(reason = %failure, "RabbitMQ closed the publishing channel; opening another");
                        let pause = time::sleep(tries.pause(Trouble::Outage));
                        self.shared.closing.run_until_cancelled(pause).await;
                    }
                }
            }
        }
        self.jobs.close();
        // To the last one that is being handed over just now: left in the queue, nobody would ever hear of it.
        while let Some(job) = self.jobs.recv().await {
            reply(job.confirm, Err(PublishError::Closed));
        }
    }

    /// A channel on a connection after number `spent`; `None` when closing. Jobs wait for it, but not longer
    /// than a confirmation may take.
    async fn open(&mut self, spent: u64, down_since: Instant) -> Option<Window> {
        let Self { shared, link, jobs, .. } = self;
        let mut opening = pin!(open_window(shared, link.clone(), spent));
        let mut patience = pin!(time::sleep_until(down_since + shared.publish_timeout));
        let mut overdue = false;
        loop {
            tokio::select! {
                // What is known of the connection comes before the messages that wait for it.
                biased;
                () = shared.closing.cancelled() => return None,
                window = &mut opening => return Some(window),
                () = link.changed() => {
                    if let LinkState::Up(_) = link.state() {
                        // The channel will follow.
                        patience.as_mut().reset(Instant::now() + shared.publish_timeout);
                        overdue = false;
                    }
                }
                () = &mut patience, if !overdue => overdue = true,
                Some(job) = jobs.recv(), if overdue => reply(job.confirm, Err(unavailable(link, shared.publish_timeout))),
            }
        }
    }

    async fn serve(&mut self, window: &mut Window) -> End {
        let timeout = self.shared.publish_timeout;
        // While the broker takes nothing, jobs wait until then.
        let mut patience = self.link.is_blocked().then(|| Instant::now() + timeout);
        let shared = self.shared.clone();
        let mut closing = pin!(shared.closing.cancelled());
        let mut alarm = pin!(time::sleep(Duration::MAX));
        let mut alarm_at = None;
        loop {
            let refusing = patience.is_some_and(|until| until <= Instant::now());
            // Once it has come, the end of patience would wake this task for ever, and nothing else be heard.
            let due = window.confirms.next_deadline().into_iter().chain(patience.filter(|_| !refusing)).min();
            if let Some(due) = due
                && alarm_at.is_none_or(|at| due < at)
            {
                alarm.as_mut().reset(due);
                alarm_at = Some(due);
            }
            let room = patience.is_none() && window.confirms.in_flight() < self.shared.publish_window;
            tokio::select! {
                // What is confirmed is taken first: where this task was kept waiting, it is not overdue.
                biased;
                () = &mut closing => return End::Closing,
                confirmed = window.publishing.select_next_some(), if !window.publishing.is_empty() => {
                    if let Err(failure) = window.take(confirmed) {
                        return End::Lost(failure);
                    }
                    if window.is_stuck() {
                        return End::Worn;
                    }
                }
                Some(job) = self.jobs.recv(), if refusing || room => {
                    if refusing {
                        reply(job.confirm, Err(PublishError::NotConfirmed(timeout)));
                    } else if let Err(end) = self.publish_waiting(window, job).await {
                        return end;
                    }
                }
                () = &mut alarm, if alarm_at.is_some() => {
                    alarm_at = None;
                    let given_up = window.confirms.expire(Instant::now());
                    // While the broker takes nothing, no queue is to blame.
                    if let (Some(message), None) = (given_up, patience) {
                        self.suspects.add(&message);
                        return End::Worn;
                    }
                }
                () = self.link.changed() => {
                    if !self.link.has(window.connection) {
                        return End::Lost(lost(&self.link));
                    }
                    patience = match (self.link.is_blocked(), patience) {
                        (true, None) => Some(Instant::now() + timeout),
                        (true, since) => since,
                        (false, _) => None,
                    };
                }
            }
        }
    }

    /// Publishes `job`, and the others that wait, as far as the window goes.
    async fn publish_waiting(&mut self, window: &mut Window, job: PublishJob) -> Result<(), End> {
        self.publish(window, job).await?;
        while window.confirms.in_flight() < self.shared.publish_window {
            let Ok(job) = self.jobs.try_recv() else { break };
            self.publish(window, job).await?;
        }
        Ok(())
    }

    /// Checks first whatever the broker would close the channel for, which fails every message on its way.
    async fn publish(&mut self, window: &mut Window, job: PublishJob) -> Result<(), End> {
        if !window.is_open() {
            let failure = lost(&self.link);
            reply(job.confirm, Err(PublishError::Disconnected(failure.text.clone())));
            return Err(End::Lost(failure));
        }
        let PublishJob { message, confirm } = job;
        let outgoing = match Outgoing::new(&message, self.shared.max_message_bytes, window.max_header_bytes) {
            Ok(outgoing) => outgoing,
            Err(problem) => {
                reply(confirm, Err(PublishError::Invalid(problem)));
                return Ok(());
            }
        };
        let exchange = outgoing.exchange.as_str();
        // The default exchange is always there.
        if !exchange.is_empty() && !window.exchanges.contains(exchange) {
            match self.find_exchange(exchange).await {
                Ok(true) => drop(window.exchanges.insert(exchange.to_owned())),
                Ok(false) => {
                    let (exchange, routing_key) =
                        (outgoing.exchange.to_string(), outgoing.routing_key.to_string());
                    reply(confirm, Err(PublishError::Unroutable { exchange, routing_key }));
                    return Ok(());
                }
                Err(failure) => {
                    reply(confirm, Err(PublishError::Disconnected(failure.text.clone())));
                    return if failure.connection_lost { Err(End::Lost(failure)) } else { Ok(()) };
                }
            }
        }
        match self.suspects.way(outgoing.exchange.as_str(), outgoing.routing_key.as_str()) {
            Way::Clear => window.publish(outgoing, message, confirm),
            Way::Alone(trial) => self.publish_alone(trial, outgoing, message, confirm),
            Way::Barred => reply(confirm, Err(PublishError::Refused)),
        }
        Ok(())
    }

    fn publish_alone(&self, trial: Trial, outgoing: Outgoing, message: Arc<Message>, confirm: Confirm) {
        let confirm = trial.told(confirm);
        let LinkState::Up(up) = self.link.state() else {
            return reply(confirm, Err(PublishError::Disconnected(lost(&self.link).text)));
        };
        let limit = self.shared.publish_timeout;
        tokio::spawn(async move {
            match time::timeout(limit, Window::open(&up, limit)).await {
                Ok(Ok(mut window)) => {
                    window.publish(outgoing, message, confirm);
                    window.finish().await;
                }
                Ok(Err(error)) => reply(confirm, Err(PublishError::Disconnected(Failure::from(error).text))),
                Err(_) => reply(confirm, Err(PublishError::NotConfirmed(limit))),
            }
        });
    }

    /// Whether an exchange exists. One that was declared here and is gone is declared again.
    async fn find_exchange(&self, name: &str) -> Result<bool, Failure> {
        let LinkState::Up(up) = self.link.state() else { return Err(lost(&self.link)) };
        let looking = async {
            Ok(declare::exchange_exists(&up.connection, name).await?
                || declare::restore(&self.shared, &up.connection, name).await?)
        };
        let limit = self.shared.publish_timeout;
        time::timeout(limit, looking)
            .await
            .unwrap_or_else(|_| Err(Failure::timeout(&format!("looking for exchange {name:?}"), limit)))
    }
}

async fn open_window(shared: &Shared, mut link: Link, mut spent: u64) -> Window {
    let mut tries = Tries::new();
    loop {
        let up = link.up(spent, |_| {}).await;
        let opening = async { Window::open(&up, shared.publish_timeout).await.map_err(Failure::from) };
        let limit = shared.access.connect_timeout;
        let failure = match link.on(up.number, "opening the publishing channel", limit, opening).await {
            Ok(window) => return window,
            Err(failure) => failure,
        };
        // One that the broker blocks is of use again once the alarm is over.
        let useless = failure.cause == "timeout" && !link.is_blocked();
        if useless {
            up.useless.cancel();
        }
        drop(up.connection);
        if failure.connection_lost || useless {
            spent = up.number;
        } else {
            warn!(reason = %failure, "RabbitMQ opens no publishing channel; trying again");
            time::sleep(tries.pause(Trouble::Outage)).await;
        }
    }
}

/// What is known about the end of the connection.
fn lost(link: &Link) -> Failure {
    match link.state() {
        LinkState::Down(failure) => failure.of_connection(),
        LinkState::Up(_) => Failure::outage("the publishing channel is closed", "channel_closed"),
    }
}

/// Why a message was not even sent.
fn unavailable(link: &Link, waited: Duration) -> PublishError {
    match link.state() {
        LinkState::Down(failure) => PublishError::Disconnected(failure.text),
        LinkState::Up(_) if link.is_blocked() => PublishError::NotConfirmed(waited),
        LinkState::Up(_) => PublishError::Disconnected("the publishing channel is not open yet".to_owned()),
    }
}
